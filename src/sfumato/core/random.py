"""Randomness as a function of (seed, stream, index): no hidden state, so a resumed run and any batch see the same draws.

A sample's noise depends on its own key alone, never on its neighbours in the batch, the number of workers or of ranks.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfumato.core import philox

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio


def splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijective mix of 64-bit words (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014)."""
    with np.errstate(over="ignore"):
        z = x + np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


def keys(seed: int, stream: str, index: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """One 64-bit key for each index of a named stream. shape: that of `index`."""
    salt = (seed * 0xD1342543DE82EF95 + zlib.crc32(stream.encode())) & _MASK
    offset = splitmix64(np.asarray([salt], np.uint64))[0]
    return splitmix64(np.asarray(index, np.int64).astype(np.uint64) ^ offset)


def uniform(keys_: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Keys to uniform numbers of the open interval (0, 1)."""
    return ((keys_ >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def normal(
    keys_: npt.NDArray[np.uint64],
    shape: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise (B, *shape), one generator per sample.

    Drawn on the CPU in float32 whatever the device, so that a seed's picture is the same on every machine.
    """
    out = torch.empty(len(keys_), *shape)
    generator = torch.Generator()
    for row, key in zip(out, keys_.tolist()):
        torch.randn(row.shape, generator=generator.manual_seed(key & (_MASK >> 1)), out=row)
    if torch.device(device).type == "cuda":  # from pinned memory the copy makes nobody wait
        return out.pin_memory().to(device, dtype, non_blocking=True)
    return out.to(device, dtype)


def training_noise(keys_: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal noise (B, *shape) float32 for keys (B,) int64, where the keys are.

    On a CPU that of `normal`, on a GPU made there by a counter-based generator (`philox`): a run is a function of its
    seed on either, and the two differ.
    """
    if keys_.device.type == "cpu":
        return normal(keys_.numpy().view(np.uint64), shape)
    return philox.normal(keys_, shape)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one training batch: those of the global sample indices `start ... start + n - 1`."""

    seed: int
    start: int
    n: int

    @cached_property
    def index(self) -> npt.NDArray[np.int64]:
        """Global sample indices (n,)."""
        return np.arange(self.start, self.start + self.n, dtype=np.int64)

    def uniform(self, stream: str) -> Tensor:
        """Independent uniform numbers of (0, 1). (n,) float64."""
        return torch.from_numpy(uniform(keys(self.seed, stream, self.index)))

    def spread(self, stream: str) -> Tensor:
        """Uniform numbers of (0, 1) that cover the interval evenly over any run of consecutive samples. (n,) float64.

        Additive recurrence with the golden ratio, u_k = frac(u_0 + k / phi), in 64-bit integers (exact for every k):
        the low-discrepancy times of "Variational Diffusion Models" (Kingma et al. 2021, appendix I.1) without their
        dependence on the batch.
        """
        first = keys(self.seed, stream, [0])[0]
        with np.errstate(over="ignore"):
            k = self.index.astype(np.uint64) * np.uint64(_GOLDEN) + first
        return torch.from_numpy(uniform(k))

    def normal(self, shape: Sequence[int], stream: str = "noise", *, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal noise (n, *shape)."""
        return normal(keys(self.seed, stream, self.index), shape, device=device)

    def keys(self, stream: str = "noise") -> Tensor:
        """A key for every sample, (n,) int64, for noise that is made on a device (`training_noise`)."""
        return torch.from_numpy(keys(self.seed, stream, self.index).view(np.int64))


@dataclass(frozen=True)
class SampleNoise:
    """The noise of a batch of requested samples, one seed each. Step noise is numbered, so steps may interleave."""

    seeds: tuple[int, ...]

    def prior(self, shape: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal start (B, *shape)."""
        return self.step(0, shape, device=device)

    def step(self, number: int, shape: Sequence[int], *, draw: int = 0, device: torch.device | str = "cpu") -> Tensor:
        """The normal noise of draw `draw` in step `number` >= 1 of every sample. (B, *shape)."""
        stream = "sample" if draw == 0 else f"sample/{draw}"
        per_seed = [keys(seed, stream, [number])[0] for seed in self.seeds]
        return normal(np.asarray(per_seed, np.uint64), shape, device=device)

    def of_step(self, number: int, x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The noise of a step for tensors like x; each call is the next draw."""
        draws = count()
        return lambda t, s: self.step(number, x.shape[1:], draw=next(draws), device=x.device).to(x.dtype)
