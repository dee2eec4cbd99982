"""`sfumato eval` of models that make voxel models: `metrics=voxels`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from sfumato.data import Data, Pictured, Solids
from sfumato.errors import UserError
from sfumato.evaluate.judge import CONFIG, Judge
from sfumato.evaluate.scores import Score, Scores
from sfumato.evaluate.voxels import POINTS, solid_scores, voxel_scores
from sfumato.kinds import kind_of
from sfumato.pipeline import Pipeline
from sfumato.recipes.judges_voxels import voxel_judge_of
from sfumato.request import ASKED

NAME = "voxels"


@final
@dataclass(frozen=True)
class VoxelScoring:
    """Settings of scores of voxel models: samples for each held-out model, points of a surface, and how they are drawn if not
    as the model says. Of the procedural solids, captions: how many are asked for in each part."""

    each: int = 4
    points: int = POINTS
    captions: int = 200
    guidance: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("each", "points", "captions"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")


def score_voxels(
    pipeline: Pipeline, data: Data, own: VoxelScoring, seed: int, places: Mapping[str, Path], judge: Judge | None
) -> tuple[Mapping[str, Score], dict[str, Any], dict[str, Any]]:
    """Scores, their settings, and the judge that they are measured by.

    places: `model`, where a judge that came with the model is, and `kept`, where one of the data is trained and kept.
    """
    if data.info.kind != "voxels":
        raise UserError(f"metrics={NAME}: is for voxel models, and this data is of {kind_of(data.info).noun}")
    drawn: dict[str, Any] = {"seed": seed, "guidance": own.guidance, "steps": own.steps}
    if isinstance(data.data if isinstance(data, Pictured) else data, Solids):
        found = solid_scores(pipeline, data, n=own.captions, **drawn)
        return found.metrics, _settings(own, found), {"name": "the reader of solids", "sha256": None}
    beside = places["model"] / "judge"
    if judge is None and data.info.labels:
        judge = Judge.load(beside) if (beside / CONFIG).is_file() else voxel_judge_of(data, places["kept"])
    if judge is not None:
        judge.to(pipeline.model.device)
    found = voxel_scores(pipeline, data, judge, each=own.each, points=own.points, **drawn)
    sha256 = None if judge is None else judge.weights_sha256
    settings = {"judge": sha256, "judge_accuracy": None if judge is None else judge.trained.get("accuracy")}
    return (
        found.metrics,
        {**_settings(own, found), **settings},
        {"name": judge and judge.name, "sha256": sha256},
    )


def _settings(own: VoxelScoring, found: Scores) -> dict[str, Any]:
    asked = {k: v for k, v in found.settings.items() if k not in ASKED}
    return {**asdict(own), "samples": found.n, **asked}
