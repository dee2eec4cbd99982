"""Settings for all tests."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Two pytest workers with two torch threads each on two cores spin at one another's barriers: 40 times slower.
torch.set_num_threads(1)
