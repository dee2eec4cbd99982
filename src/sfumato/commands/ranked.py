"""`sfumato sample ... best_of=8`: many candidates are drawn, and those are kept that a judge of words finds to fit best."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.commands.words import whole_number
from sfumato.errors import UserError, did_you_mean
from sfumato.pipeline import Pipeline

if TYPE_CHECKING:
    from sfumato.evaluate.alignment import Aligner

JUDGE = "judge"  # the folder of a model's own judge, inside its own
_LAST = re.compile(r",\s*([^,]+?)\s+emoji\s*$", re.IGNORECASE)
_FRONT = re.compile(r"^\s*([^,]+?)\s+emoji\s+of\s", re.IGNORECASE)


def best_of(settings: Mapping[str, str]) -> int:
    """How many candidates are drawn for each sample; 1 where that is not asked for."""
    many = whole_number(settings, "best_of", 1)
    if "best_of" in settings and many < 2:
        raise UserError(f"best_of={many}: draws several candidates for each sample; set it to 2 or more")
    if JUDGE in settings and "best_of" not in settings:
        raise UserError(f"judge={settings[JUDGE]} ranks candidates and best_of= is not given; add best_of=8")
    return many


def open_judge(settings: Mapping[str, str], folder: Path, pipeline: Pipeline) -> Aligner:
    """The judge that `judge=` names, or the one that came with the model in `folder`."""
    from sfumato.evaluate.alignment import open_aligner  # only where a judge is asked

    conditioner = pipeline.model.conditioner
    if conditioner is None or "caption" not in conditioner.columns:
        raise UserError(f"best_of={settings['best_of']}: ranks pictures by their prompts, and this model takes none")
    if JUDGE in settings:
        return open_aligner(settings[JUDGE])
    if not (folder / JUDGE / "judge.json").is_file():
        raise UserError(
            f"best_of={settings['best_of']} needs a judge of words and this model has none beside it; give judge=FOLDER, or "
            "judge=clip:FOLDER"
        )
    return open_aligner(str(folder / JUDGE))


def ranked(aligner: Aligner, media: Tensor, texts: Sequence[str], many: int) -> tuple[list[int], Tensor]:
    """The rows to keep of candidates that lie prompt by prompt, one in `many` of each prompt's, best first; and their fits.

    Candidates of one prompt are neighbours with the same text. Equal fits keep the order of their seeds.
    """
    fits = aligner.fit(media, texts)
    kept: list[int] = []
    start = 0
    while start < len(texts):
        stop = start + 1
        while stop < len(texts) and texts[stop] == texts[start]:
            stop += 1
        order = torch.sort(fits[start:stop], descending=True, stable=True).indices
        kept += [start + int(i) for i in order[: (stop - start) // many]]
        start = stop
    return kept, fits[kept]


def check_styles(trained: Mapping[str, Any], prompts: Sequence[str]) -> None:
    """Refuse a design that the model was not trained on: ", WORDS emoji" at the end or "WORDS emoji of" in front."""
    known = [str(style).replace("-", " ") for style in trained.get("styles") or ()]
    for prompt in prompts if known else ():
        found = _LAST.search(prompt) or _FRONT.search(prompt)
        if found is not None and found[1].lower() not in known:
            raise UserError(
                f"the prompt '{prompt}' asks for the design '{found[1]}', which this model does not know; "
                f"{did_you_mean(found[1].lower(), known)}"
            )
