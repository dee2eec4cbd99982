"""Voxel models that a page turns about: a canvas for each, its voxels inline, and one script for all. No network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfumato.solid.grid import open_cells

SCRIPT = Path(__file__).with_name("viewer.js").read_text(encoding="utf-8")
_SIDE = 240


def fragment(models: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> str:
    """HTML with a canvas for every model (4, X, Y, Z) uint8; `SCRIPT` draws them. Dragging or arrow keys turn."""
    figures = []
    for model, caption in zip(models, captions):
        text = escape(caption)
        figures.append(
            f'<figure style="margin:0;width:{_SIDE}px"><canvas class="voxels" width="{2 * _SIDE}" height="{2 * _SIDE}" '
            f'tabindex="0" role="img" style="width:{_SIDE}px;height:{_SIDE}px;touch-action:none;cursor:grab" '
            f'aria-label="{text or "voxel model"}" data-size="{",".join(map(str, model.shape[1:]))}" '
            f'data-voxels="{base64.b64encode(_rows(model)).decode()}"></canvas><figcaption>{text}</figcaption></figure>'
        )
    return (
        f'<p>Drag to turn, wheel to zoom.</p><div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(figures)}</div>'
    )


def _rows(model: NDArray[np.uint8]) -> bytes:
    """x, y, z, red, green, blue of every voxel that has an empty neighbour, a byte each."""
    seen = open_cells(model[3] > 0)
    places = np.argwhere(seen).astype(np.uint8)
    return np.concatenate([places, model[:3, seen].T], 1).tobytes()
