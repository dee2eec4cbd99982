"""Meshes: exact volumes, closed surfaces on any grid, files that open in trimesh, and meshes back to grids."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfumato.errors import UserError
from sfumato.evaluate.voxels import is_closed
from sfumato.solid import mesh
from sfumato.solid.faces import Surface, closed_cubes, cubes
from sfumato.solid.smooth import smooth_surface

SIDE = 6


def random_model(share: float, seed: int, side: int = SIDE) -> Any:
    rng = np.random.default_rng(seed)
    voxels = rng.integers(1, 255, (4, side, side, side)).astype(np.uint8)
    voxels[3] = 255
    return voxels * (rng.random((side,) * 3) < share)


def ball(side: int, radius: float) -> Any:
    at = np.indices((side,) * 3) - (side - 1) / 2
    full = (at**2).sum(0) < radius**2
    return np.stack([full * 200, full * 60, full * 20, full * 255]).astype(np.uint8)


def volume(surface: Surface) -> float:
    """By the divergence theorem; right only for surfaces that are closed and face outwards."""
    a, b, c = (surface.vertices[surface.triangles[:, k]] for k in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def test_the_volume_of_cubes_is_the_number_of_voxels() -> None:
    for seed in range(4):
        voxels = random_model(0.4, seed)
        assert volume(cubes(voxels)) == pytest.approx((voxels[3] > 0).sum(), abs=1e-9)


def test_faces_between_voxels_are_left_out() -> None:
    assert len(cubes(np.full((4, 3, 4, 5), 255, np.uint8)).triangles) == 2 * 2 * (12 + 15 + 20)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_any_grid_gives_closed_surfaces(share: float, seed: int) -> None:
    """Random grids touch in edges and corners everywhere."""
    voxels = random_model(share, seed)
    count = int((voxels[3] > 0).sum())
    closed = closed_cubes(voxels)
    assert is_closed(closed)
    assert volume(closed) == pytest.approx(count, rel=0.01)  # parts that touch are drawn apart by a thousandth
    assert is_closed(smooth_surface(voxels))


def test_apart_from_touching_parts_closed_cubes_are_exact() -> None:
    assert volume(closed_cubes(ball(9, 4.2))) == pytest.approx((ball(9, 4.2)[3] > 0).sum(), abs=1e-9)


def test_the_smooth_surface_separates_occupied_cells_from_empty_ones() -> None:
    """Straight between the centres of two neighbours of which one is occupied, there is exactly one vertex."""
    voxels = random_model(0.3, 7)
    occupied = np.pad(voxels[3] > 0, 1)
    borders = sum(int(np.diff(occupied.astype(int), axis=axis).astype(bool).sum()) for axis in range(3))
    offset = smooth_surface(voxels).vertices - 0.5
    on_axis = (np.abs(offset - np.round(offset)) < 1e-9).sum(1) == 2
    assert on_axis.sum() == borders


def test_a_smooth_ball_is_nearly_one() -> None:
    made = smooth_surface(ball(20, 8.0))
    radius = np.linalg.norm(made.vertices - 10, axis=1)
    assert radius.std() < 0.25
    assert volume(made) == pytest.approx(4 / 3 * np.pi * 8.0**3, rel=0.06)


def test_colours_are_those_of_the_voxels() -> None:
    voxels = ball(8, 3.5)
    for made in (cubes(voxels), closed_cubes(voxels), smooth_surface(voxels)):
        assert (made.colours == [200, 60, 20]).all()


class TestFiles:
    """Through trimesh."""

    trimesh: Any = None

    @pytest.fixture(autouse=True)
    def _needs_trimesh(self) -> None:
        TestFiles.trimesh = pytest.importorskip("trimesh")

    def load(self, raw: bytes, suffix: str) -> Any:
        return self.trimesh.load(io.BytesIO(raw), file_type=suffix[1:], force="mesh")

    @pytest.mark.parametrize("suffix", mesh.SUFFIXES)
    @pytest.mark.parametrize("surface", mesh.SURFACES)
    def test_every_file_opens_and_is_watertight_where_asked(self, suffix: str, surface: str) -> None:
        voxels = random_model(0.3, 3)
        found = self.load(mesh.encode(voxels, suffix, surface), suffix)
        if surface != "cubes":
            assert found.is_watertight
            assert found.is_winding_consistent
            assert found.volume > 0

    def test_cubes_of_one_piece_are_watertight_when_corners_are_merged(self) -> None:
        voxels = ball(9, 4.2)
        found = self.load(mesh.encode(voxels, ".glb"), ".glb")
        found.merge_vertices(merge_tex=True, merge_norm=True)
        assert found.is_watertight
        assert found.volume == pytest.approx((voxels[3] > 0).sum(), rel=1e-6)

    def test_glb_has_y_up_and_exact_colours(self) -> None:
        voxels = np.zeros((4, 3, 3, 3), np.uint8)
        voxels[:, 1, 1, 2] = 10, 200, 77, 255
        voxels[:, 1, 1, 0] = 250, 1, 130, 255
        found = self.load(mesh.encode(voxels, ".glb"), ".glb")
        assert found.bounds[:, 1].tolist() == [0, 3]
        colours = found.visual.to_color().vertex_colors
        low = found.vertices[:, 1] < 1.5
        assert (colours[low] == [250, 1, 130, 255]).all()
        assert (colours[~low] == [10, 200, 77, 255]).all()

    def test_a_mesh_of_voxels_comes_back_as_they_were(self) -> None:
        voxels = random_model(0.35, 11, 12)
        voxels[:, :, 0, 0] = voxels[:, 0, :, 0] = voxels[:, 0, 0, :] = 90  # all sides are full length
        for suffix in (".ply", ".glb", ".obj"):
            back = mesh.voxelise(mesh.encode(voxels, suffix), 12, suffix)
            both = (back[3] > 0) & (voxels[3] > 0)
            hidden = voxels[3] > 0  # an inside that is closed is filled, so that only empty pockets may differ
            assert both.sum() >= 0.99 * hidden.sum(), suffix

    def test_closed_insides_are_filled_in_the_nearest_colour(self) -> None:
        hollow = ball(16, 7.5) * ~(ball(16, 5.5)[3] > 0)
        back = mesh.voxelise(mesh.encode(hollow, ".ply"), 16, ".ply")
        assert (back[3, 8, 8, 8], back[0, 8, 8, 8]) == (255, 200)

    @pytest.mark.parametrize(
        ("suffix", "raw", "said"),
        [
            (".stl", b"", "can't be read|no surface"),
            (".obj", b"v 0 0 0\nv 1 1 1\n", "no surface|can't be read"),
            (".glb", b"glTF" + bytes(30), "can't be read"),
            (".ply", b"ply\nformat ascii 1.0\nelement vertex 99999999999\nend_header\n", "can't be read|no surface"),
            (".obj", b"v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "no surface|can't be read"),
        ],
    )
    def test_broken_meshes_are_one_sentence(self, suffix: str, raw: bytes, said: str, tmp_path: Path) -> None:
        file = tmp_path / f"model{suffix}"
        file.write_bytes(raw)
        with pytest.raises(UserError, match=said):
            mesh.voxelise(file, 8)

    def test_an_empty_model_has_no_mesh(self) -> None:
        with pytest.raises(UserError, match="empty"):
            mesh.encode(np.zeros((4, 4, 4, 4), np.uint8), ".glb")


def test_without_trimesh_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(UserError, match=r"sfumato\[mesh\]"):
        mesh.encode(ball(4, 2.0), ".glb")
