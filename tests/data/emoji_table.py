"""A small table of emoji for tests: coloured squares with a mark, so that every picture and its mirror image are known."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.data.emoji import STYLES
from sfumato.data.emoji_table import Row, write_table

GROUPS = ("food-drink", "symbols")
SIZE = 16
NAMES = ("apple", "boat", "cat", "door", "egg", "fan", "goat", "hat", "ink", "jar", "kite", "lamp")
_COLOURS = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 0), (0, 255, 255), (255, 0, 255), (128, 128, 128),
    (255, 128, 0), (128, 0, 255), (128, 64, 0), (0, 128, 64),
)  # fmt: skip


def name_of(n: int) -> str:
    """The n-th name."""
    return NAMES[n] if n < len(NAMES) else f"{NAMES[n % len(NAMES)]} {n // len(NAMES)}"


def picture(name: int, style: int, tone: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: a colour for the name, a bar's colour for the design, a corner for the tone."""
    made = np.full((SIZE, SIZE, 3), 255, np.uint8)
    made[4:12, 4:12] = _COLOURS[name % 12]
    made[1:15, 1:4] = _COLOURS[style]
    made[0:2, 0:2] = 40 * tone
    return made


def rows(names: int = 12) -> list[Row]:
    """`names` names in five designs; the last two are the test part; name 0 has tones in noto."""
    made = []
    for n in range(names):
        for s, style in enumerate(STYLES):
            for t, tone in enumerate(("", "light", "dark") if n == 0 and style == "noto" else ("",)):
                stream = io.BytesIO()
                Image.fromarray(picture(n, s, t)).save(stream, "PNG")
                about = {"keywords": (f"word{n}", "thing"), "group": GROUPS[n % 2], "test": n >= names - 2}
                made.append(Row(stream.getvalue(), name_of(n), style, tone, **about))
    return made


def table(folder: Path, names: int = 12) -> Path:
    """The table as a file."""
    write_table(rows(names), folder / "emoji.npz")
    return folder / "emoji.npz"
