"""The benchmarks of score models: what is learned in the plane, and what the table of pictures says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from benchmarks import scores, scores_2d
from PIL import Image

from sfumato.core import Cond, Denoiser
from sfumato.data import Digits
from sfumato.evaluate import Judge, frechet
from sfumato.samplers import LinearSolver, sample
from sfumato.samplers.base import start
from sfumato.spec import Spec
from sfumato.testing import GaussianDenoiser


def test_the_score_of_a_mixture_is_learned() -> None:
    """300 steps of either loss bring the score within 6% of the exact one (untrained: over 50%), and the exact score
    gives each component its share: samples of it are not to be told from data."""
    x0 = scores_2d.mixture(10_000, 0)
    assert scores_2d.score_error(scores_2d.learn(x0, scores_2d.LOSSES["dsm"], 1)) > 0.5
    errors = {name: scores_2d.score_error(scores_2d.learn(x0, loss, 300)) for name, loss in scores_2d.LOSSES.items()}
    assert max(errors.values()) < 0.06, errors


def test_the_exact_score_gives_the_data() -> None:
    points = scores_2d.draw(scores_2d.EXACT, 10_000)
    assert scores_2d.shares_off(points) < 0.03
    assert abs(scores_2d.kid(scores_2d.mixture(3000, 1), points).value) < 0.03
    assert scores_2d.kid(scores_2d.moons(3000, 1), points).value > 0.1


def test_the_evaluations_of_the_table_are_those_made() -> None:
    """Counted with a denoiser that counts."""

    class Counting:
        def __init__(self) -> None:
            self.process, self.n = scores_2d.PROCESS, 0

        def __call__(self, x_t: torch.Tensor, t: torch.Tensor, cond: Cond | None = None) -> torch.Tensor:
            self.n += 1
            return GaussianDenoiser(self.process)(x_t, t)

    for way in scores.ways(8.0, levels=6, repeats=3, steps=5):
        counting = Counting()
        denoiser: Denoiser = counting
        times = scores.LogSNRGrid(scores.SIGMA_MIN, 8.0)(scores_2d.PROCESS, way.steps)
        sample(denoiser, way.solver, start(scores_2d.PROCESS, torch.randn(1, 2), times[0]), times)
        assert counting.n == way.evaluations, way
    assert any(isinstance(way.solver, LinearSolver) for way in scores.ways(8.0, 6, 3, 5))


def test_a_run_is_trained_once_scored_and_drawn(tmp_path: Path) -> None:
    """The second call loads what the first has trained, and finds the same: seeds, not luck. Real items are scored right."""
    settings = {"n": 24, "width": 8, "repeats": 1, "steps": 3, "levels": 4, "epochs": 1, "device": "cpu"}
    data = Spec(Digits)
    first = scores.run(data, tmp_path, budget={"samples": 256}, **settings)  # type: ignore[arg-type]
    state = (tmp_path / "state.json").read_text()
    again = scores.run(data, tmp_path, budget={"samples": 256}, **settings)  # type: ignore[arg-type]
    assert (tmp_path / "state.json").read_text() == state
    assert [{**row, "seconds": 0} for row in first] == [{**row, "seconds": 0} for row in again]
    assert json.loads((tmp_path / "scores.json").read_text())["rows"] == again

    opened, judge = Digits(), Judge.load(tmp_path / "judge")
    held_out, train = opened.split("held_out"), opened.split("train")
    real = held_out.fetch(np.arange(24)).media
    others = train.fetch(np.linspace(0, len(train) - 1, 24).astype(np.int64)).media
    assert first[0]["frechet"]["value"] == frechet(judge.features(real), judge.features(others)).value
    names = {"real", *(way.name for way in scores.ways(8.0, 4, 1, 3))}
    sheets = {path.stem: Image.open(path).size for path in (tmp_path / "sheets").iterdir()}
    assert sheets.keys() == names and len(set(sheets.values())) == 1


def test_the_levels_follow_the_data() -> None:
    """sigma_max is a distance between two whitened digits; the mean squared one is twice the number of pixels."""
    sigma_max, levels = scores.levels_of(Digits())
    assert (2 * 64) ** 0.5 < sigma_max < 3 * (2 * 64) ** 0.5 and 20 < levels < 30
