"""The recipe for pictures of 32 x 32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.core import Draws
from sfumato.errors import UserError
from sfumato.recipes import load_recipe, prepare


def _pictures(folder: Path, side: int = 32, labels: bool = True) -> str:
    generator = np.random.default_rng(0)
    media = generator.integers(0, 256, (24, 3, side, side), dtype=np.uint8)
    more = {"labels": np.arange(24) % 3} if labels else {}
    np.savez(folder / "pictures.npz", images=media, **more)
    return str(folder / "pictures.npz")


@pytest.mark.parametrize("labels", [False, True])
def test_it_trains_on_any_pictures_of_its_size(tmp_path: Path, labels: bool) -> None:
    asked = {"data": _pictures(tmp_path), "width": 16, "labels": labels, "train.batch": 4}
    prepared = prepare(load_recipe("cifar10", asked))
    assert (prepared.task.model.conditioner is not None) == labels and prepared.task.separable
    batch = prepared.data.fetch(np.arange(4))
    loss = prepared.task.loss(batch, Draws(0, 0, 4))
    loss.value.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss.value) and float(loss.value.detach()) > 0.5


def test_other_sizes_and_missing_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pictures of 32 x 32, not image data of \(3, 16, 16\); use recipe 'image'"):
        load_recipe("cifar10", {"data": _pictures(tmp_path, 16)})
    with pytest.raises(UserError, match="labels=true: the data has no labels"):
        load_recipe("cifar10", {"data": _pictures(tmp_path, labels=False), "labels": True})
