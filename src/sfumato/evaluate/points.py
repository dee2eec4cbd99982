"""Scores of point clouds: do they cover the real ones, and can the two be told apart."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sfumato.core.random import keys
from sfumato.data import Data
from sfumato.errors import UserError
from sfumato.evaluate.scores import Score, Scores
from sfumato.evaluate.solid_sets import SetScores, chamfer_distance, set_scores
from sfumato.kinds import kind_of
from sfumato.pipeline import Pipeline
from sfumato.request import as_arguments

CLOUDS = 100  # samples, by default
DRAWS = 3  # of as many training clouds, for real against real
_BATCH = 32
_NOTES = {
    "mmd": "held-out clouds to the nearest sample",
    "cov": "held-out clouds that are a sample's nearest",
    "nna": "nearest other cloud is of the same set, 0.5 is best",
}


def point_scores(
    pipeline: Pipeline,
    data: Data,
    *,
    n: int | None = None,
    seed: int = 0,
    guidance: float | None = None,
    steps: int | None = None,
) -> Scores:
    """Ask once for what each of `n` held-out clouds is, and measure the samples against these clouds.

    mmd_cd, cov_cd, nna_cd: minimum matching distance, coverage and 1-nearest-neighbour accuracy (`solid_sets.set_scores`)
        under the Chamfer distance of places; real: of as many training clouds, the mean over 3 draws.
    mmd_ink, cov_ink, nna_ink: the same of places and colours together, six numbers a point, where there are colours.

    n: 100 by default, or as many as there are. guidance, steps: instead of the model's own. A function of its arguments.
    """
    if kind_of(data.info).kind != "points":
        raise UserError(f"point scores are for point clouds, and this data is '{data.info.kind}'; leave them out")
    held_out, train = data.split("held_out"), data.split("train")
    count = min(len(held_out), len(train), CLOUDS if n is None else n)
    if count < 2:
        raise UserError(f"point scores need 2 held-out and 2 training clouds, and {count} are there or asked for")
    batch = held_out.fetch(np.arange(count) * len(held_out) // count)
    columns = () if pipeline.model.conditioner is None else pipeline.model.conditioner.columns
    if lacking := [column for column in columns if column not in batch.conditions]:
        raise UserError(f"the model is asked by {lacking[0]}, which this data has not; give the data it was trained on")
    asked = as_arguments({column: batch.conditions[column] for column in columns})
    made = pipeline(
        **(asked or {"n": count}),
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        batch_size=_BATCH,
        output_type="pt",
    )
    draws = [np.argsort(keys(seed, f"real/{k}", np.arange(len(train))), kind="stable")[:count] for k in range(DRAWS)]
    real = [train.fetch(draw).media for draw in draws]
    spaces = {"cd": 3} | ({"ink": 6} if data.info.shape[0] == 6 else {})
    found: dict[str, Score] = {}
    for name, rows in spaces.items():
        ours, *others = _against(batch.media[:, :rows], [clouds[:, :rows] for clouds in (made.media, *real)])
        space = "Chamfer distance of places" + (" and colours" if rows == 6 else "")
        for key, note in _NOTES.items():
            mean = float(np.mean([getattr(one, key) for one in others]))
            spread = ours.nna_interval if key == "nna" else None
            found[f"{key}_{name}"] = Score(getattr(ours, key), spread, mean, f"{note}, {space}")
    return Scores(found, count, made.settings, made.media)


def _against(reference: Tensor, sets: list[Tensor]) -> list[SetScores]:
    """Scores of sets of clouds (N, C, P) against the reference clouds (N, C, P)."""
    truth = reference.transpose(1, 2).contiguous()
    among = chamfer_distance(truth, truth)
    found = []
    for clouds in sets:
        those = torch.nan_to_num(clouds).transpose(1, 2).contiguous()
        found.append(set_scores(chamfer_distance(those, those), chamfer_distance(those, truth), among))
    return found
