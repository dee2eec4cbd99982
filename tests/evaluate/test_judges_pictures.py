"""Judges of pictures: what they are shown in training, and that they learn what they are shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from sfumato.data.columns import Columns
from sfumato.data.memory import InMemory
from sfumato.errors import UserError
from sfumato.evaluate import Judge
from sfumato.recipes.cosine import rising_cosine
from sfumato.recipes.judges_pictures import Schooling, moved, train_picture_judge

STILL = Schooling(shift=0, flip=False, cut=0)


class Stripes(InMemory):
    """10x8 noise under a wave of one of four orientations and any phase: no pixel on its own says which."""

    @property
    def media(self) -> NDArray[np.uint8]:
        rng = np.random.default_rng(0)
        down, right = np.mgrid[:10, :8]
        wave = np.stack([down, right, down + right, down - right])[self.labels]
        phase = rng.uniform(0, 2 * np.pi, (400, 1, 1))
        grey = 128 + 60 * np.sin(np.pi / 2 * wave + phase) + rng.normal(0, 15, wave.shape)
        return np.repeat(grey.clip(0, 255).astype(np.uint8)[:, None], 3, 1)

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.random.default_rng(1).integers(0, 4, 400)

    @property
    def table(self) -> Columns:
        return Columns(self.labels, ("rows", "columns", "up", "down"))

    def held_out_mask(self) -> NDArray[np.bool_]:
        return np.arange(400) >= 300

    def fingerprint(self) -> str:
        return "stripes"


@pytest.mark.parametrize(
    ("architecture", "settings"), [("wrn", {"depth": 10, "widen": 1}), ("vgg", {"width": 8}), ("conv", {"width": 8})]
)
def test_every_architecture_learns_and_says_how(architecture: str, settings: dict[str, int]) -> None:
    """Flips are left out: they make of one diagonal the other."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    how = Schooling(epochs=14, batch=30, rate=0.05, shift=2, flip=False, cut=3)
    epochs: list[int] = []
    made = train_picture_judge(
        Stripes(),
        architecture,
        schooling=how,
        device="cpu",
        on_epoch=lambda done, of, loss: epochs.append(done),
        **settings,
    )
    assert torch.equal(torch.rand(3), expected)
    assert isinstance(made, Judge) and not made.training and made.kind == architecture
    assert made.trained["accuracy"] >= 0.95
    assert (made.trained["items"], made.trained["judged"], made.trained["fingerprint"]) == (300, 100, "stripes")
    assert made.trained["settings"]["rate"] == 0.05 and settings.items() <= made.trained["settings"].items()
    assert epochs == list(range(1, 15))


def test_a_function_of_the_seed() -> None:
    def weights(seed: int) -> str:
        how = Schooling(epochs=1, batch=100, rate=0.01, seed=seed)
        return train_picture_judge(Stripes(), "wrn", schooling=how, device="cpu", depth=10, widen=1).weights_sha256

    assert weights(1) == weights(1) != weights(2)


def test_without_moves_pictures_are_as_they_are() -> None:
    stored = torch.from_numpy(Stripes().media).permute(0, 2, 3, 1).contiguous()
    here = torch.tensor([7, 3, 7])
    assert torch.equal(moved(stored, here, STILL, torch.Generator()), stored[here].permute(0, 3, 1, 2))


def test_moves_are_shifts_into_a_mirrored_frame_and_flips() -> None:
    """Each picture is exactly one of the 2 x 5 x 5 crops of itself, mirrored beyond its edges; all of them come up."""
    one = torch.arange(48, dtype=torch.uint8).reshape(1, 1, 6, 8)
    stored = one.permute(0, 2, 3, 1).contiguous()
    framed = F.pad(one.float(), (2, 2, 2, 2), mode="reflect")
    crops = [framed[..., r : r + 6, c : c + 8] for r in range(5) for c in range(5)]
    known = torch.cat([*crops, *(crop.flip(3) for crop in crops)])
    here = torch.zeros(2000, dtype=torch.int64)
    made = moved(stored, here, replace(STILL, shift=2, flip=True), torch.Generator().manual_seed(0)).float()
    same = (made[:, None] == known[None]).flatten(2).all(2)
    assert (same.sum(1) == 1).all() and (same.sum(0) > 10).all()


def test_a_cut_is_one_grey_square_that_may_reach_over_the_edge() -> None:
    stored = torch.zeros(1, 9, 9, 1, dtype=torch.uint8)
    made = moved(stored, torch.zeros(3000, dtype=torch.int64), replace(STILL, cut=4), torch.Generator().manual_seed(0))
    grey = made[:, 0] == 127
    assert set(made.unique().tolist()) == {0, 127}
    rows, columns = grey.any(2), grey.any(1)
    assert torch.equal(grey, rows[:, :, None] & columns[:, None, :])  # a rectangle
    assert rows.sum(1).max() == 4 and rows.sum(1).min() == 2 and columns.sum(1).max() == 4
    assert grey.any(0).all()  # anywhere


def test_the_rate_goes_up_for_a_quarter_and_down_to_nothing() -> None:
    rates = [rising_cosine(step, 400, 0.25) for step in range(401)]
    assert rates[0] == 0.01 and rates[99] == rates[100] == 1 and rates[400] == pytest.approx(0, abs=1e-12)
    assert rates[250] == pytest.approx(0.5) and rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert [rising_cosine(step, 1, 0.25) for step in range(2)] == [1.0, 1.0]


def test_both_are_trained_once_by_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import judges

    small = {"wrn": {"depth": 10, "widen": 1}, "vgg": {"width": 2}}
    trained: list[str] = []

    def train(data: Any, architecture: str, **settings: Any) -> Judge:
        trained.append(architecture)
        return train_picture_judge(data, architecture, **settings, **small[architecture])

    monkeypatch.setattr(judges, "train_picture_judge", train)
    words = ["judges", "--data", "digits", "--out", str(tmp_path), "--epochs", "1", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", [*words, "--json", str(tmp_path / "rows.json")])
    judges.main()
    judges.main()
    assert trained == ["wrn", "vgg"]
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    for row, folder in zip(rows, ("wrn16-4", "vgg64")):
        judge = Judge.load(tmp_path / folder)
        assert (row["name"], row["accuracy"]) == (judge.name, judge.trained["accuracy"])
        assert row["sha256"] == judge.weights_sha256


def test_mistakes() -> None:
    with pytest.raises(UserError, match="there is no judge 'wrnn'; did you mean 'wrn'"):
        train_picture_judge(Stripes(), "wrnn", device="cpu")
    with pytest.raises(UserError, match="shift = 8: must be below the pictures' side, 8"):
        train_picture_judge(Stripes(), "wrn", schooling=replace(STILL, shift=8), device="cpu")
    with pytest.raises(UserError, match="epochs = 0, batch = 512"):
        Schooling(epochs=0)
