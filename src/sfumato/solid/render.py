"""Pictures of voxel grids: an orthographic view with a light, darker corners and a soft shadow. numpy and Pillow alone.

The faces turned to the viewer are drawn from back to front. On a grid, going through each axis away from the viewer first is
an exact order for a parallel projection, so no depth is compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

_OVER = 3  # pictures are drawn so many times larger and then reduced: smooth edges
_LIGHT = (0.45, -0.75, 1.15)  # to the light, turning with the viewer; z is up
_SUN, _SKY = 0.55, 0.6
_GROUND = (255, 255, 255)
_CORNERS = np.asarray([[0, 0], [1, 0], [1, 1], [0, 1]])
Float = NDArray[np.float64]


def picture(voxels: NDArray[np.uint8], side: int = 160, yaw: float = 30.0, pitch: float = 28.0) -> Image.Image:
    """(4, X, Y, Z) uint8 as a square picture. yaw: degrees that the viewer goes round, pitch: that they look down.

    At yaw 0 the viewer stands in front, at -y, with x to the right.
    """
    big = side * _OVER
    image = Image.new("RGB", (big, big), _GROUND)
    occupied = voxels[3] > 0
    if not occupied.any():
        return image.resize((side, side))
    view = View.of(voxels.shape[1:], math.radians(yaw), math.radians(pitch), big)
    _shadow(image, occupied, view)
    draw = ImageDraw.Draw(image)
    corners, colours = _faces(voxels, occupied, view)
    for points, colour in zip(corners.reshape(-1, 8).tolist(), colours.tolist()):
        draw.polygon(points, fill=tuple(colour))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def turntable(voxels: NDArray[np.uint8], views: int = 8, side: int = 160) -> Image.Image:
    """Pictures from all around, side by side."""
    shown = [picture(voxels, side, 30 + 360 * i / views) for i in range(views)]
    sheet = Image.new("RGB", (side * views, side), _GROUND)
    for i, one in enumerate(shown):
        sheet.paste(one, (i * side, 0))
    return sheet


class View:
    """A parallel projection that holds the whole grid, from any yaw alike."""

    def __init__(self, right: Float, up: Float, towards: Float, centre: Float, scale: float, big: int) -> None:
        self.right, self.up, self.towards, self.centre, self.scale, self.big = right, up, towards, centre, scale, big

    @classmethod
    def of(cls, shape: Sequence[int], yaw: float, pitch: float, big: int) -> View:
        right = np.asarray([math.cos(yaw), math.sin(yaw), 0.0])
        away = np.asarray([-math.sin(yaw), math.cos(yaw), 0.0])
        towards = -away * math.cos(pitch) + np.asarray([0, 0, math.sin(pitch)])
        up = away * math.sin(pitch) + np.asarray([0, 0, math.cos(pitch)])
        wide = math.hypot(shape[0], shape[1])
        high = wide * math.sin(pitch) + shape[2] * math.cos(pitch)
        return cls(right, up, towards, np.asarray(shape) / 2, big / (1.02 * max(wide, high)), big)

    def __call__(self, points: Float) -> Float:
        """(..., 3) in cells to (..., 2) in pixels."""
        seen = points - self.centre
        across, height = seen @ self.right, seen @ self.up
        return np.stack([self.big / 2 + across * self.scale, self.big / 2 - height * self.scale], -1)

    @property
    def light(self) -> Float:
        """To the light, above the viewer's right shoulder."""
        away = np.asarray([-self.right[1], self.right[0], 0])
        made = _LIGHT[0] * self.right + _LIGHT[1] * away + np.asarray([0, 0, _LIGHT[2]])
        return np.asarray(made / np.linalg.norm(made))


def lit(view: View, normal: Float) -> float:
    """How bright a face of this normal (3,) is: the factor of its colour."""
    return _SKY + _SUN * max(0.0, float(normal @ view.light))


def _faces(voxels: NDArray[np.uint8], occupied: NDArray[np.bool_], view: View) -> tuple[Float, NDArray[np.int64]]:
    """Corners (F, 4, 2) in pixels and colours (F, 3) of the faces that look at the viewer, back to front."""
    open_air = _openness(occupied)
    padded = np.pad(occupied, 1)
    signs = np.where(view.towards >= 0, 1, -1)
    corners, colours, order = [], [], []
    for axis in range(3):
        if abs(view.towards[axis]) < 1e-9:
            continue
        step = np.zeros(3, int)
        step[axis] = signs[axis]
        beside = padded[tuple(slice(1 + s, 1 + s + n) for s, n in zip(step, occupied.shape))]
        cells = np.argwhere(occupied & ~beside)
        normal = step.astype(float)
        light = lit(view, normal)
        at = cells + step + 1
        air = open_air[at[:, 0], at[:, 1], at[:, 2]]
        own = voxels[:3, cells[:, 0], cells[:, 1], cells[:, 2]].T
        colours.append(np.clip(np.rint(own * (light * (0.55 + 0.45 * air))[:, None]), 0, 255))
        corners.append(view(_square(cells, axis, signs[axis] > 0)))
        order.append(cells)
    place = np.concatenate(order)
    first = np.lexsort(tuple(place[:, axis] * signs[axis] for axis in range(3)))
    return np.concatenate(corners)[first], np.concatenate(colours)[first].astype(np.int64)


def _square(cells: NDArray[np.int64], axis: int, far: bool) -> Float:
    """(N, 4, 3) corners of one face of each cell."""
    points = np.repeat(cells[:, None].astype(float), 4, 1)
    one, two = (a for a in range(3) if a != axis)
    points[..., one] += _CORNERS[:, 0]
    points[..., two] += _CORNERS[:, 1]
    points[..., axis] += far
    return points


def _openness(occupied: NDArray[np.bool_]) -> Float:
    """How much of the 5^3 cells around each cell (of the grid and one beyond) is empty, 0 to 1; the ground counts as full."""
    field = np.pad(occupied.astype(float), 3)
    field[:, :, :3] = 1.0
    for axis in range(3):
        total = np.cumsum(np.insert(field, 0, 0.0, axis), axis)
        n = field.shape[axis]
        field = (np.take(total, range(5, n + 1), axis) - np.take(total, range(n - 4), axis)) / 5
    return np.asarray(np.clip(1.45 * (1 - field), 0, 1))


def _shadow(image: Image.Image, occupied: NDArray[np.bool_], view: View) -> None:
    """What stands on the ground shades it: the columns, moved by their height along the light, blurred."""
    veil = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(veil)
    slant = -view.light[:2] / view.light[2]
    for low in range(0, occupied.shape[2], max(1, occupied.shape[2] // 16)):
        layer = occupied[:, :, low : low + max(1, occupied.shape[2] // 16)].any(2)
        cells = np.argwhere(layer)
        flat = np.concatenate([cells, np.zeros((len(cells), 1), int)], 1)
        points = _square(flat, 2, False)
        points[..., :2] += slant * low
        for corner in view(points).reshape(-1, 8).tolist():
            draw.polygon(corner, fill=120)
    veil = veil.filter(ImageFilter.GaussianBlur(image.width / 60))
    image.paste(Image.new("RGB", image.size, (150, 155, 165)), (0, 0), veil)
