"""`sfumato eval` of models that make sounds: `metrics=sounds`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from sfumato.data import Data
from sfumato.errors import UserError
from sfumato.evaluate.audio import sound_scores
from sfumato.evaluate.judge import Judge
from sfumato.evaluate.scores import Score
from sfumato.kinds import kind_of
from sfumato.pipeline import Pipeline
from sfumato.recipes.judges_audio import sound_judge_of, targets_of
from sfumato.request import ASKED

NAME = "sounds"
JUDGES = "judges"  # the folder of a model's own judges, inside its own


@final
@dataclass(frozen=True)
class SoundScoring:
    """Settings of scores of sounds: how many samples, and how they are drawn if not as the model says."""

    samples: int = 1000
    guidance: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise UserError(f"samples={self.samples}: must be at least 2")


def score_sounds(
    pipeline: Pipeline, data: Data, own: SoundScoring, seed: int, places: Mapping[str, Path]
) -> tuple[Mapping[str, Score], dict[str, Any], dict[str, Any]]:
    """Scores, their settings, and the judges that they are measured by.

    places: `model`, where judges that came with the model are, and `kept`, where those of the data are trained and
    kept.
    """
    if data.info.kind != "audio":
        raise UserError(f"metrics={NAME}: is for sounds, and this data is of {kind_of(data.info).noun}")
    judges: dict[str, Judge] = {}
    for column in targets_of(data):
        beside = places["model"] / JUDGES / column
        judges[column] = (
            Judge.load(beside) if beside.is_dir() else sound_judge_of(data, column, places["kept"] / column)
        )
        judges[column].to(pipeline.model.device)
    found = sound_scores(pipeline, data, judges, n=own.samples, seed=seed, guidance=own.guidance, steps=own.steps)
    names = {column: judge.weights_sha256 for column, judge in judges.items()}
    right = {f"judge_{column}": judge.trained.get("accuracy") for column, judge in judges.items()}
    settings = {**asdict(own), "judges": names, **right, **found.settings}
    about = {
        "name": ", ".join(f"{column} of {judge.name}" for column, judge in judges.items()) or None,
        "sha256": names,
    }
    return found.metrics, {"samples": found.n, **{k: v for k, v in settings.items() if k not in ASKED}}, about
