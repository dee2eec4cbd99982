"""Quick pictures of voxel grids: exact faces, no holes, and the same view as the renderer whose place they take."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from sfumato.data import Solids
from sfumato.solid.grid import symmetry
from sfumato.solid.render import View, lit, picture
from sfumato.solid.views import draw

MODELS = Solids(count=24).fetch(np.arange(24)).media


def box(side: int = 8, colour: tuple[int, int, int] = (200, 100, 40)) -> NDArray[np.uint8]:
    made = np.zeros((4, side, side, side), np.uint8)
    made[:, 2:6, 2:6, 2:6] = np.asarray([*colour, 255], np.uint8)[:, None, None, None]
    return made


def test_a_box_from_the_front_is_one_square_of_one_colour() -> None:
    view = View.of((8, 8, 8), 0.0, 0.0, 100)
    shown = draw(box(), 100, yaw=0, pitch=0)
    light = lit(view, np.asarray([0.0, -1.0, 0.0]))
    face = np.rint(np.asarray([200, 100, 40]) * light)
    inside = (shown != 255).any(0)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert all(0 <= len(found) - (4 - 0.04) * view.scale < 2 for found in (rows, columns))  # every pixel it touches
    assert (shown[:, inside] == face[:, None]).all()


def test_three_faces_have_their_three_lights() -> None:
    view = View.of((8, 8, 8), math.radians(30), math.radians(28), 64)
    colours = {tuple(c) for c in draw(box(), 64, 30, 28).reshape(3, -1).T.tolist()} - {(255, 255, 255)}
    normals = np.asarray([[1.0, 0, 0], [0, -1.0, 0], [0, 0, 1.0]])
    assert colours == {
        tuple(np.minimum(np.rint(np.asarray([200, 100, 40]) * np.float32(lit(view, n))), 255).astype(int).tolist())
        for n in normals
    }


@pytest.mark.parametrize("pitch", [0.0, 20.0, 61.0, 90.0])
@pytest.mark.parametrize("side", [16, 33, 64])
def test_surfaces_have_no_holes(side: int, pitch: float) -> None:
    """A box is convex, so what is seen of it is one run in every row of pixels."""
    for yaw in range(-180, 180, 23):
        seen = (draw(box(), side, yaw, pitch) != 255).any(0)
        for row in seen:
            at = np.flatnonzero(row)
            assert not len(at) or at[-1] - at[0] + 1 == len(at)


def test_turning_the_model_is_turning_the_viewer() -> None:
    """A quarter turn that takes +x to +y, seen from a quarter turn further, is the same picture but for rounding at edges."""
    for model in MODELS[:8]:
        turned = draw(symmetry(model, 1).numpy(), 256, 20 + 90, 30)
        differs = (draw(model.numpy(), 256, 20, 30) != turned).any(0)
        assert differs.mean() < 0.01


def test_it_shows_what_the_renderer_shows() -> None:
    """Against the exact polygons of `render.picture`: the same silhouette but for its rim, the same colours in the middle."""
    for model in MODELS[:8]:
        quick = draw(model.numpy(), 64, 10, 25).transpose(1, 2, 0).astype(int)
        exact = np.asarray(picture(model.numpy(), 64, 10, 25)).astype(int)
        inside = (quick != 255).any(2)
        core = inside.copy()
        for axis in (0, 1):
            for way in (1, -1):
                core &= np.roll(inside, way, axis)
        assert (exact[core].min(1) < 254).all() or model[:3].max() > 220  # white solids are nearly as light as paper
        hue = np.abs(quick[core] - exact[core]).mean()
        assert hue < 40  # corners and bases are darker there


def test_an_empty_grid_is_white_and_grids_need_not_be_cubes() -> None:
    assert (draw(np.zeros((4, 5, 6, 7), np.uint8), 20) == 255).all()
    flat = np.full((4, 9, 4, 2), 255, np.uint8)
    flat[:3] = 90
    assert (draw(flat, 40) != 255).any()
