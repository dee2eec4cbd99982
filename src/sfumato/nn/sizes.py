"""One dial for the size of a transformer."""

from __future__ import annotations

import math
from typing import Literal

Size = Literal["xs", "s", "b", "l", "xl"]

# width, depth, heads: Peebles & Xie, "DiT", 2022, table 1; xs is ours, for a CPU
SIZES: dict[str, tuple[int, int, int]] = {
    "xs": (192, 6, 6),
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "xl": (1152, 28, 16),
}


def sized(size: Size, width: int | None, depth: int | None, heads: int | None) -> tuple[int, int, int]:
    """(width, depth, heads): what is given, and that of the size where nothing is."""
    whole = SIZES[size]
    return (
        whole[0] if width is None else width,
        whole[1] if depth is None else depth,
        whole[2] if heads is None else heads,
    )


def hidden_width(width: int, mlp_ratio: float) -> int:
    """Width inside an MLP: mlp_ratio * width, up to the next multiple of 16, in which GPUs multiply matrices; others take
    several times as long."""
    return 16 * math.ceil(mlp_ratio * width / 16)
