"""Settings for all tests."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported: kernels run on the CPU

# Two pytest workers with two torch threads each on two cores spin at one another's barriers: 40 times slower.
torch.set_num_threads(1)
