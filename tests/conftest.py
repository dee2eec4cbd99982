"""Settings for all tests."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported: kernels run on the CPU

# Two pytest workers with two torch threads each on two cores spin at one another's barriers: 40 times slower.
torch.set_num_threads(1)


# What takes longest begins first, so that no worker is left with it at the end (`make test` gives whole files to workers:
# what a file makes once for many tests is made once).
_LONGEST = (
    "train/test_together.py", "train/test_memory.py", "test_docs.py", "nn/test_fused.py", "train/test_parallel.py",
    "train/test_sequence.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, all others in their order."""
    here = Path(__file__).parent
    place = {here / name: i for i, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
