"""The settings of a run that trains in a second, and what a folder holds."""

from __future__ import annotations

from pathlib import Path

TINY = [
    "network.width=8", "conditioner.width=16", "conditioner.depth=1", "conditioner.heads=2", "conditioner.length=32",
    "batch=16", "train.pictures=0", "train.evaluations=1", "steps=2",
]  # fmt: skip
TRAIN = ["train", "image", "data=digits", "conditioner.length=40", *[s for s in TINY if "length" not in s]]


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
