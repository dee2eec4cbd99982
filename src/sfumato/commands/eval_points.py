"""`sfumato eval` of models that make point clouds: `metrics=points`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from sfumato.data import Data
from sfumato.errors import UserError
from sfumato.evaluate.points import point_scores
from sfumato.evaluate.scores import Score
from sfumato.kinds import kind_of
from sfumato.pipeline import Pipeline
from sfumato.request import ASKED

NAME = "points"


@final
@dataclass(frozen=True)
class PointScoring:
    """Settings of scores of point clouds. clouds: samples, 100 where there are as many held-out clouds; guidance, steps: how
    they are drawn, if not as the model says."""

    clouds: int | None = None
    guidance: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.clouds is not None and self.clouds < 2:
            raise UserError(f"clouds={self.clouds}: must be at least 2")


def score_points(
    pipeline: Pipeline, data: Data, own: PointScoring, seed: int
) -> tuple[Mapping[str, Score], dict[str, Any]]:
    """Scores and their settings."""
    if data.info.kind != "points":
        raise UserError(f"metrics={NAME}: is for point clouds, and this data is of {kind_of(data.info).noun}")
    found = point_scores(pipeline, data, n=own.clouds, seed=seed, guidance=own.guidance, steps=own.steps)
    sampling = {k: v for k, v in found.settings.items() if k not in ASKED}
    return found.metrics, {**asdict(own), "samples": found.n, **sampling}
