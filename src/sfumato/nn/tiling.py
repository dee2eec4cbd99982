"""Large things in parts: a field in overlapping tiles, a batch in slices. Memory of one part, and of the output."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple, final

import torch
from torch import Tensor

from sfumato.core.cond import Cond
from sfumato.core.network import Network
from sfumato.errors import UserError
from sfumato.nn.perturbed import Perturbable

Side = int | Sequence[int]
Factor = int | float | Fraction | Sequence[int | float | Fraction]

_LEVELS = 256  # weights are multiples of 1 / 256: products of three and their sums are then exact in float32


def tiled(f: Callable[[Tensor], Tensor], x: Tensor, *, tile: Side, overlap: Side, factor: Factor = 1) -> Tensor:
    """f(x) of a local f, computed on overlapping tiles of x and put together. x: (B, C, *S) with 1, 2 or 3 axes in S.

    tile: side of a tile at most, in positions of x; tiles of one axis are as equal as they can be. overlap: positions that
    neighbours share, at most half a tile. factor: size of f's output over that of its input: k, or 1/k, where tile and
    overlap are multiples of k and sizes that k does not divide are rounded up. Each is one number, or one an axis.

    In an overlap the quarter next to a tile's cut edge is context and thrown away, since f pads there where the field goes
    on; in the middle half neighbours are blended linearly, with weights whose sum is exactly 1. So the result is f(x), up to
    rounding, if every output depends on inputs at most overlap / 4 positions away and on nothing else (and overlap is at
    least 4 k, for a factor 1/k). Norms over positions (group norm) and attention do depend on all: each tile is then computed
    with statistics of its own, and the difference that is left has no seams.

    Memory: f of one tile, and the output, in float32 at least. Raises UserError for sizes that do not fit together.
    """
    axes = x.ndim - 2
    if axes not in (1, 2, 3):
        raise UserError(f"only fields (B, C, *S) of 1 to 3 axes are tiled, and this has shape {tuple(x.shape)}")
    tiles, overlaps = _each(tile, axes, "tile"), _each(overlap, axes, "overlap")
    factors = [_checked(value) for value in (factor if isinstance(factor, Sequence) else [factor] * axes)]
    if len(factors) != axes:
        raise UserError(f"factor={factor}: {len(factors)} numbers for {axes} axes; give one, or {axes}")
    lines = [_line(*of) for of in zip(x.shape[2:], tiles, overlaps, factors)]
    if all(len(line) == 1 for line in lines):
        return f(x)
    size = [math.ceil(n * k) for n, k in zip(x.shape[2:], factors)]
    out, kind = x.new_empty(0), x.dtype
    for i, cuts in enumerate(itertools.product(*lines)):
        part = x[_at(cut.read for cut in cuts)]
        made = f(part)
        _check_made(made, part, [cut.length for cut in cuts])
        if i == 0:  # tiles are added up in float32 at least
            kind = made.dtype
            wide = torch.promote_types(kind, torch.float32)
            out = made.new_zeros((len(x), made.shape[1], *size), dtype=wide)
        kept, weight = made[_at(cut.keep for cut in cuts)], _product([cut.weight for cut in cuts])
        out[_at(cut.write for cut in cuts)].addcmul_(kept.to(out.dtype), weight.to(out))
        del made, kept, part  # or a tile would be there while the next one is computed
    return out.to(kind)


class _Cut(NamedTuple):
    """A tile along one axis. read: of x; length: of f's output; keep: of that output, for `write` of the whole one."""

    read: slice
    length: int
    keep: slice
    write: slice
    weight: Tensor


def _line(size: int, tile: int, overlap: int, factor: Fraction) -> list[_Cut]:
    """The tiles of an axis."""
    if size <= tile:
        n = math.ceil(size * factor)
        return [_Cut(slice(0, size), n, slice(0, n), slice(0, n), torch.ones(n))]
    grain = factor.denominator  # tiles begin where f's steps do
    said = f"tile={tile} overlap={overlap}"
    if tile < 1 or overlap < 0 or 2 * overlap > tile:
        raise UserError(f"{said}: a tile is at least 1, and an overlap at least 0 and at most half a tile")
    if tile % grain or overlap % grain:
        raise UserError(f"{said}: f makes one position of {grain}, so both must be multiples of {grain}")
    count = -(-(size - overlap) // (tile - overlap))
    even = grain * math.ceil(Fraction(size + (count - 1) * overlap, count * grain))
    side = max(even, 2 * overlap)  # or three tiles would meet
    shared = int(overlap * factor)
    away, ramp = _context(shared), _ramp(shared)
    cuts = []
    for i in range(count):
        start = i * (side - overlap)
        end = min(start + side, size)
        at, n = int(start * factor), math.ceil((end - start) * factor)
        low, high = (away if i else 0), n - (away if i < count - 1 else 0)
        weight = torch.ones(n)
        if i:
            weight[:shared] = ramp
        if i < count - 1:
            weight[n - shared :] = 1 - ramp
        cuts.append(_Cut(slice(start, end), n, slice(low, high), slice(at + low, at + high), weight[low:high]))
    return cuts


def _at(slices: Iterable[slice]) -> tuple[slice, ...]:
    """The index of a part of a field, all rows and channels of it."""
    return (slice(None), slice(None), *slices)


def _context(n: int) -> int:
    """Positions of an overlap of n that are thrown away at each end: a quarter."""
    return min(-(-n // 4), n // 2)


def _ramp(n: int) -> Tensor:
    """Weights (n,) of the later of two tiles in their overlap: 0 in the first quarter, 1 in the last, linear between."""
    away = _context(n)
    middle = n - 2 * away
    inside = (torch.arange(middle, dtype=torch.float64) + 0.5) / max(1, middle)
    rounded = (inside * _LEVELS).round() / _LEVELS
    return torch.cat([torch.zeros(away), rounded.float(), torch.ones(away)])


def _product(weights: Sequence[Tensor]) -> Tensor:
    """The outer product of the axes' weights."""
    out = weights[0]
    for weight in weights[1:]:
        out = out[..., None] * weight
    return out


def _check_made(made: Tensor, part: Tensor, sides: Sequence[int]) -> None:
    if made.ndim != part.ndim or (made.shape[0], *made.shape[2:]) != (len(part), *sides):
        raise UserError(
            f"f made {tuple(made.shape)} of a tile {tuple(part.shape)}, where ({len(part)}, C, "
            f"{', '.join(map(str, sides))}) was due; set factor= to what f does to sizes"
        )


def _each(value: Side, axes: int, name: str) -> Sequence[int]:
    values = [value] * axes if isinstance(value, int) else list(value)
    if len(values) != axes:
        raise UserError(f"{name}={value}: {len(values)} numbers for {axes} axes; give one, or {axes}")
    return values


def _checked(factor: float | Fraction) -> Fraction:
    exact = Fraction(factor).limit_denominator(1 << 16)
    if exact <= 0 or 1 not in (exact.numerator, exact.denominator):
        raise UserError(f"factor={factor}: must be a whole number, or 1 over one")
    return exact


# ---------------------------------------------------------------- batches


def sliced(f: Callable[[Tensor], Tensor], x: Tensor, most: int) -> Tensor:
    """f(x) of an f that treats rows alike, at most `most` rows at once, in parts as equal as they can be."""
    parts = [f(x[rows]) for rows in _rows(len(x), most)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@final
class Sliced(Network):
    """A network that sees at most `most` rows of a batch at once: guided sampling of B, a batch of 2 B, in two halves.

    Equal to the network up to the rounding between batch shapes. Time: as long as a slice fills the device, the same.
    """

    def __init__(self, network: Network, most: int) -> None:
        super().__init__()
        self.network = network
        self.most = most

    def perturbed(self, blocks: Sequence[int] | None = None) -> Network:
        """The network's own, in slices."""
        if not isinstance(self.network, Perturbable):
            raise UserError(f"guidance=pag needs a network with self-attention, and not {self.network.kind}")
        return Sliced(self.network.perturbed(blocks), self.most)

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        parts = [
            self.network(x[rows], noise[rows], None if cond is None else cond[rows])
            for rows in _rows(len(x), self.most)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rows(n: int, most: int) -> list[slice]:
    """Slices of n rows, as equal as they can be: few shapes to record or to choose kernels for."""
    if most < 1:
        raise UserError(f"slice={most}: at least 1 sample is computed at once")
    size = -(-n // max(1, -(-n // most)))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)] if n else [slice(0, 0)]
