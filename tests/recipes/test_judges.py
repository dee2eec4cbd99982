"""Judges learn real training digits alone, the same way every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.data import Arrays, Digits, Shapes
from sfumato.errors import UserError
from sfumato.evaluate import Judge
from sfumato.recipes.judges import digits_judge, judge_accuracy, judge_of, train_judge


def test_reaches_97_percent_of_held_out_digits_and_is_kept(tmp_path: Path) -> None:
    made = digits_judge(tmp_path)
    assert made.trained["accuracy"] >= 0.97
    assert made.trained["judged"] == 359
    assert made.trained["items"] == 1438
    before = (tmp_path / "judges" / "digits" / "judge.safetensors").stat().st_mtime_ns
    again = digits_judge(tmp_path)
    assert (tmp_path / "judges" / "digits" / "judge.safetensors").stat().st_mtime_ns == before
    share = judge_accuracy(again, Digits().split("held_out"))
    assert share.value == made.trained["accuracy"]
    assert list(share.interval) == made.trained["interval"]


def test_is_a_function_of_the_seed_and_touches_no_global_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = train_judge(Digits(), epochs=1, width=4, seed=1)
    assert torch.equal(torch.rand(3), expected)
    second = train_judge(Digits(), epochs=1, width=4, seed=1)
    other = train_judge(Digits(), epochs=1, width=4, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_held_out_digits_do_not_matter_to_it() -> None:
    """Pictures of the held-out part are replaced by noise: the trained weights are the same, bit for bit."""

    class Spoilt(Digits.__mro__[1]):  # type: ignore[misc]
        """Digits with noise for held-out pictures."""

        whole = Digits()
        table = whole.table

        @property
        def media(self) -> np.ndarray:
            spoilt = self.whole.media.copy()
            mask = self.held_out_mask()
            spoilt[mask] = np.random.default_rng(0).integers(0, 256, spoilt[mask].shape)
            return spoilt

        def held_out_mask(self) -> np.ndarray:
            return self.whole.held_out_mask()

        def fingerprint(self) -> str:
            return "spoilt"

    honest, blind = train_judge(Digits(), epochs=1, width=4), train_judge(Spoilt(), epochs=1, width=4)
    assert all(torch.equal(a, b) for a, b in zip(honest.state_dict().values(), blind.state_dict().values()))
    assert blind.trained["accuracy"] < honest.trained["accuracy"]


def test_other_data_or_settings_train_another(tmp_path: Path) -> None:
    first = judge_of(Digits(), tmp_path / "j", epochs=1, width=4)
    kept = judge_of(Digits(), tmp_path / "j", epochs=1, width=4)
    assert kept.weights_sha256 == first.weights_sha256
    other = judge_of(Digits(), tmp_path / "j", epochs=1, width=4, seed=3)
    assert other.weights_sha256 != first.weights_sha256
    assert Judge.load(tmp_path / "j").weights_sha256 == other.weights_sha256


def test_data_without_labels_or_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a judge needs pictures with labels"):
        train_judge(Shapes(count=10))
    np.save(tmp_path / "x.npy", np.zeros((20, 1, 8, 8), np.float32))
    with pytest.raises(UserError, match="not array data"):
        train_judge(Arrays(path=str(tmp_path / "x.npy")))
