"""Whether pictures show what their captions say, by a judge of words: one of our own, or CLIP from a local folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.random import keys
from sfumato.data import Data
from sfumato.errors import UserError
from sfumato.evaluate.accuracy import Share
from sfumato.evaluate.contrastive import ContrastiveJudge
from sfumato.evaluate.judge import CONFIG, Judge
from sfumato.evaluate.scores import Score, Scores
from sfumato.pipeline import Pipeline

AMONG = 100
_BATCH = 250
_TEXTS = 256
_TOKENIZERS = ("tokenizer.json", "vocab.json")


class Aligner(ABC):
    """Pictures and captions as unit vectors whose product says how well they fit. name, sha256: as of an `Extractor`."""

    name: str
    sha256: str

    @abstractmethod
    def pictures(self, media: Tensor) -> Tensor:
        """(N, C, H, W) uint8 to (N, D) float32 of norm 1, on the CPU."""

    @abstractmethod
    def captions(self, texts: Sequence[str]) -> Tensor:
        """N texts to (N, D) float32 of norm 1, on the CPU."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Aligner:
        """Move the networks."""

    @final
    def fit(self, media: Tensor, texts: Sequence[str]) -> Tensor:
        """How well each picture shows its text: (N,) float32 in [-1, 1]."""
        return (self.pictures(media) * self._each(texts)).sum(1)

    @final
    def first(self, media: Tensor, choices: Sequence[Sequence[str]]) -> Tensor:
        """Whether the first of its choices fits picture i best, better than every other: (N,) bool."""
        seen = self.pictures(media)
        known = sorted({text for texts in choices for text in texts})
        at = {text: i for i, text in enumerate(known)}
        vectors = self._each(known)
        found = []
        for picture, texts in zip(seen, choices):
            fits = vectors[[at[text] for text in texts]] @ picture
            found.append(bool((fits[1:] < fits[0]).all()))
        return torch.tensor(found)

    def _each(self, texts: Sequence[str]) -> Tensor:
        return torch.cat([self.captions(texts[i : i + _TEXTS]) for i in range(0, len(texts), _TEXTS)])


@final
class JudgeAligner(Aligner):
    """One of our own judges of words."""

    def __init__(self, judge: ContrastiveJudge) -> None:
        self.judge, self.name, self.sha256 = judge, judge.name, judge.weights_sha256

    def pictures(self, media: Tensor) -> Tensor:
        return self.judge.embed(media).float().cpu()

    def captions(self, texts: Sequence[str]) -> Tensor:
        return self.judge.embed_words(texts).float().cpu()

    def to(self, device: torch.device | str) -> JudgeAligner:
        self.judge.to(device)
        return self


@final
class ClipAligner(Aligner):
    """CLIP (Radford et al. 2021) from a folder as transformers stores it, tokenizer included. Nothing is downloaded."""

    def __init__(self, folder: Path) -> None:
        from sfumato.evaluate.standard import Clip

        self._images = Clip(folder)
        self.name, self.sha256 = "clip", self._images.sha256
        network: Any = self._images.network
        if not hasattr(network, "text_model"):
            raise UserError(f"judge=clip:{folder}: holds the part for pictures alone; give the folder of a whole CLIP")
        self._length: int = network.config.text_config.max_position_embeddings
        import transformers

        missing = UserError(
            f"judge=clip:{folder}: there is no tokenizer that can be read; add the tokenizer files of the same model"
        )
        if not any((folder / name).is_file() for name in _TOKENIZERS):
            raise missing  # transformers would make an empty one, with no more than a warning
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError, ImportError):
            raise missing from None

    def pictures(self, media: Tensor) -> Tensor:
        return F.normalize(self._images(media), dim=1).cpu()

    @torch.no_grad()
    def captions(self, texts: Sequence[str]) -> Tensor:
        network: Any = self._images.network
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._length, return_tensors="pt"
        )
        read = network.text_model(**tokens.to(self._images.device)).pooler_output
        return F.normalize(network.text_projection(read).float(), dim=1).cpu()

    def to(self, device: torch.device | str) -> ClipAligner:
        self._images.to(device)
        return self


def open_aligner(text: str) -> Aligner:
    """`FOLDER` of a judge of words, or `clip:FOLDER`. Raises UserError naming what is missing."""
    kind, colon, path = text.partition(":")
    if colon and kind == "clip":
        return ClipAligner(Path(path))
    if not (Path(text) / CONFIG).is_file():
        raise UserError(
            f"judge={text}: there is no judge in this folder; give one that sfumato.recipes.contrastive made, or clip:FOLDER"
        )
    judge = Judge.load(Path(text))
    if not isinstance(judge, ContrastiveJudge):
        raise UserError(
            f"judge={text}: this judge is of kind '{judge.kind}' and reads no words; give a contrastive one"
        )
    return JudgeAligner(judge)


def choices(own: Sequence[str], others: Sequence[str], among: int = AMONG, seed: int = 0) -> list[list[str]]:
    """For each of N captions, itself first and `among` - 1 different others, chosen at random by (seed, its number)."""
    pool = list(dict.fromkeys(others))
    made = []
    for i, caption in enumerate(own):
        order = np.argsort(keys(seed, f"choices {i}", np.arange(len(pool))), kind="stable")
        rest = [pool[k] for k in order.tolist() if pool[k] != caption][: among - 1]
        if len(rest) < among - 1:
            raise UserError(f"{len(rest) + 1} different captions are too few to choose among {among}; set among= lower")
        made.append([caption, *rest])
    return made


def alignment_scores(
    pipeline: Pipeline,
    data: Data,
    aligner: Aligner,
    *,
    n: int | None = None,
    among: int = AMONG,
    seed: int = 0,
    guidance: float | None = None,
    steps: int | None = None,
) -> Scores:
    """Draw one picture for each of `n` held-out captions, 500 at most by default, and ask a judge of words which fits.

    retrieval: share of pictures that fit their own caption better than each of `among` - 1 other held-out captions; real: the
    same of the held-out pictures. alignment: mean cosine of picture and caption; real: likewise.
    """
    held_out = data.split("held_out")
    if "caption" not in (() if pipeline.model.conditioner is None else pipeline.model.conditioner.columns):
        raise UserError("metrics=alignment is of models that are asked by a prompt, and this one is not")
    count = min(len(held_out), 500) if n is None else n
    if not 1 <= count <= len(held_out):
        raise UserError(f"n = {count}: the held-out part has {len(held_out)} items; set n between 1 and that")
    batch = held_out.fetch(np.arange(count, dtype=np.int64) * len(held_out) // count)
    if "caption" not in batch.conditions:
        raise UserError("metrics=alignment needs captions, which this data has not")
    said = [str(caption) for caption in batch.conditions["caption"]]
    every = [str(c) for c in held_out.columns(np.arange(len(held_out)))["caption"]]
    made = pipeline(
        said, seed=seed, num_inference_steps=steps, guidance_scale=guidance, batch_size=_BATCH, output_type="pt"
    )
    lists = choices(said, every, among, seed)
    ours, real = (Share(int(aligner.first(m, lists).sum()), count) for m in (made.media, batch.media))
    fits, real_fits = (aligner.fit(m, said).double() for m in (made.media, batch.media))
    spread = 1.96 * float(fits.std()) / count**0.5 if count > 1 else 0.0
    mean = float(fits.mean())
    found = {
        "retrieval": Score(ours.value, ours.interval, real.value, f"share nearest to its own of {among} captions"),
        "alignment": Score(
            mean, (mean - spread, mean + spread), float(real_fits.mean()), "cosine of picture and caption"
        ),
    }
    return Scores(found, count, {**made.settings, "among": among}, made.media)
