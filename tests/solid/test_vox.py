"""MagicaVoxel files: exact round trips, and every way to be broken."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from sfumato.errors import UserError
from sfumato.solid.vox import read_vox, write_vox


def model(*sides: int, colours: int = 40, share: float = 0.3, seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    rng = np.random.default_rng(seed)
    palette = rng.choice(1 << 24, colours, replace=False)
    ink = rng.choice(palette, sides)
    full = rng.random(sides) < share
    return np.stack([ink >> 16, ink >> 8 & 255, ink & 255, np.full(sides, 255)]).astype(np.uint8) * full


@pytest.mark.parametrize("sides", [(1, 1, 1), (5, 7, 3), (32, 32, 32), (256, 1, 2)])
def test_round_trip(sides: tuple[int, int, int]) -> None:
    voxels = model(*sides, share=1.0 if sides == (1, 1, 1) else 0.3, colours=255)
    assert np.array_equal(read_vox(write_vox(voxels)), voxels)


def test_more_colours_than_the_format_has_are_reduced() -> None:
    voxels = model(20, 20, 20, colours=5000, share=0.8)
    back = read_vox(write_vox(voxels))
    assert np.array_equal(back[3], voxels[3])
    assert len(np.unique(back[:3, back[3] > 0], axis=1).T) <= 255
    off = np.abs(back[:3].astype(int) - voxels[:3]).mean(where=np.broadcast_to(voxels[3] > 0, (3, 20, 20, 20)))
    assert off < 20  # of random colours


def test_an_empty_model_is_a_file_too() -> None:
    assert not read_vox(write_vox(np.zeros((4, 3, 3, 3), np.uint8))).any()


def test_the_layout_is_that_of_the_format() -> None:
    """Written by hand from the published layout: a red voxel at (1, 0, 2), with a chunk that is passed over."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return name + struct.pack("<ii", len(content), 0) + content

    palette = bytearray(1024)
    palette[4 * 6 : 4 * 7] = bytes([255, 0, 0, 255])
    children = (
        chunk(b"SIZE", struct.pack("<iii", 2, 1, 3))
        + chunk(b"XYZI", struct.pack("<i", 1) + bytes([1, 0, 2, 7]))
        + chunk(b"MATL", b"abcd")
        + chunk(b"RGBA", bytes(palette))
    )
    raw = b"VOX " + struct.pack("<i", 150) + b"MAIN" + struct.pack("<ii", 0, len(children)) + children
    found = read_vox(raw)
    assert found.shape == (4, 2, 1, 3)
    assert found[:, 1, 0, 2].tolist() == [255, 0, 0, 255]
    assert (found[3] > 0).sum() == 1


def test_a_file_without_colours_has_the_usual_ones() -> None:
    raw = write_vox(model(2, 2, 2, share=1.0, colours=1))
    end = raw.index(b"RGBA")
    children = raw[20:end]
    found = read_vox(raw[:16] + struct.pack("<i", len(children)) + children)
    assert found[:, 0, 0, 0].tolist() == [255, 255, 255, 255]  # number 1 is white


def broken() -> dict[str, tuple[bytes, str]]:
    whole = write_vox(model(4, 4, 4))
    at = whole.index(b"SIZE") + 12
    count = whole.index(b"XYZI") + 12
    return {
        "not one": (b"GIF89a" + whole, "not a MagicaVoxel file"),
        "nothing": (b"", "not a MagicaVoxel file"),
        "cut short": (whole[:-100], "cut short"),
        "no chunks": (whole[:8], "no model"),
        "bomb": (whole[:at] + struct.pack("<i", 1 << 30) + whole[at + 4 :], "sides lie in 1"),
        "negative": (whole[:at] + struct.pack("<i", -4) + whole[at + 4 :], "sides lie in 1"),
        "too few voxels": (whole[:count] + struct.pack("<i", 1 << 20) + whole[count + 4 :], "are not there"),
        "outside": (whole[:at] + struct.pack("<i", 1) + whole[at + 4 :], "outside"),
        "two models": (whole + whole[whole.index(b"SIZE") : whole.index(b"RGBA")], "several models"),
    }


@pytest.mark.parametrize("name", broken())
def test_broken_files_are_named_in_a_sentence(name: str, tmp_path: Path) -> None:
    raw, said = broken()[name]
    file = tmp_path / "model.vox"
    file.write_bytes(raw)
    with pytest.raises(UserError, match=said) as caught:
        read_vox(file)
    assert str(file) in str(caught.value)


def test_too_large_for_the_format() -> None:
    with pytest.raises(UserError, match="256 a side"):
        write_vox(np.zeros((4, 257, 1, 1), np.uint8))
