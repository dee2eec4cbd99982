"""Voxel models as everybody sees them: pictures, files by suffix, what is read back, options."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.core import DataInfo
from sfumato.data import Solids, preview
from sfumato.errors import UserError
from sfumato.kinds import kind_of
from sfumato.solid.render import picture, turntable

SOLIDS = Solids(count=8)
INFO = SOLIDS.info
KIND = kind_of(INFO)
MODEL = SOLIDS.fetch([1]).media[0]


def test_pictures_are_drawn_as_the_viewer_sees_them() -> None:
    """A red front (-y), a green right side (+x), a blue top: from the front, the right, the back."""
    voxels = np.zeros((4, 8, 8, 8), np.uint8)
    voxels[3] = 255
    voxels[:3] = 128
    voxels[0, :, 0, :7], voxels[1, :, 0, :7], voxels[2, :, 0, :7] = 255, 0, 0
    voxels[0, 7, 1:, :7], voxels[1, 7, 1:, :7], voxels[2, 7, 1:, :7] = 0, 255, 0
    voxels[0, :, :, 7], voxels[1, :, :, 7], voxels[2, :, :, 7] = 0, 0, 255

    def share(image: Image.Image) -> list[float]:
        array = np.asarray(image).astype(int)
        return [float((array[..., c] > array.sum(-1) * 0.7).mean()) for c in range(3)]

    front, right, back = (share(picture(voxels, 96, yaw)) for yaw in (0, 90, 180))
    assert front[0] > 0.1 > 0.005 > front[1]
    assert right[1] > 0.1
    assert right[0] < 0.05  # the cells of the edge are of the front
    assert back[0] < 0.005
    assert back[1] < 0.05
    assert min(front[2], right[2], back[2]) > 0.03


def test_nearer_voxels_hide_those_behind() -> None:
    voxels = np.zeros((4, 5, 5, 5), np.uint8)
    voxels[:, :, 4, :] = np.asarray([255, 0, 0, 255])[:, None, None]
    voxels[:, :, 0, :] = np.asarray([0, 255, 0, 255])[:, None, None]
    seen = np.asarray(picture(voxels, 64, 0, 0.0)).astype(int)
    assert (seen[..., 1] > 2 * seen[..., 0] + 20).any()
    assert not (seen[..., 0] > 2 * seen[..., 1] + 20).any()
    behind = np.asarray(picture(voxels, 64, 180, 0.0)).astype(int)
    assert not (behind[..., 1] > 2 * behind[..., 0] + 20).any()


def test_empty_models_are_white() -> None:
    assert (np.asarray(picture(np.zeros((4, 4, 4, 4), np.uint8), 32)) == 255).all()


def test_a_turntable_has_all_sides() -> None:
    sheet = turntable(MODEL.numpy(), 4, 48)
    assert sheet.size == (192, 48)
    assert np.array_equal(np.asarray(sheet)[:, :48], np.asarray(picture(MODEL.numpy(), 48, 30)))


def test_files_by_suffix(tmp_path: Path) -> None:
    for suffix in (".vox", ".npy"):
        file = tmp_path / f"model{suffix}"
        file.write_bytes(KIND.encode(MODEL, INFO, suffix))
        back = KIND.read(file, INFO)
        assert back is not None
        assert torch.equal(back, MODEL)
        assert KIND.is_whole(file)
        file.write_bytes(file.read_bytes()[:-50])
        assert not KIND.is_whole(file)
    with Image.open(io.BytesIO(KIND.encode(MODEL, INFO, ".png", {"prompt": "a ball"}))) as image:
        assert image.size == (8 * 160, 160)
        assert image.text["prompt"] == "a ball"  # type: ignore[attr-defined]


def test_options_choose_the_surface() -> None:
    pytest.importorskip("trimesh")
    made = {len(KIND.encode(MODEL, INFO, ".stl", options={"surface": s})) for s in KIND.options["surface"]}
    assert len(made) >= 2
    with pytest.raises(UserError, match="cubes or closed or smooth"):
        KIND.check_option("surface", "round")
    with pytest.raises(UserError, match="no such setting"):
        KIND.check_option("volume", "loud")


def test_previews_show_models_and_unknown_kinds_are_named() -> None:
    assert preview(SOLIDS, 4).width > 300
    with pytest.raises(UserError, match="there is no media 'voxel'; did you mean 'voxels'"):
        kind_of(DataInfo((4, 8, 8, 8), "voxel"))
