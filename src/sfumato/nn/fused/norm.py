"""Group norm with what comes before and after it in one kernel, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_TILE = 32768  # elements of a tile: what a multiprocessor's registers hold in half precision
_AIM = 8192  # elements of a tile if the field allows
_NARROW, _WIDE = 32, 128  # channels of a tile
_LEAST, _BUSY = 8, 64  # channels of a tile, and programs below which tiles are made as narrow as that
_ALONE, _PART = 1024, 256  # rows that one program sums: all of few, else so many that reading keeps the GPU busy
_FEW = 64  # tiles of 128 x 128, of 132 multiprocessors: below, a product is shared out among more programs
_PROGRAMS, _MOST_PARTS = 264, 32


@dataclass(frozen=True)
class Normed:
    """What a norm reads, the field apart: settings and the tensors that go with it.

    gamma, beta: (C,). bias (C,) and add (B, C) are added to the field before the norm; scale and shift (B, C) act after it.
    add, scale and shift have equal row strides. stats: mean and 1 / deviation of every sample's groups, (2, B, G) float32.
    """

    groups: int
    eps: float
    act: bool
    gamma: Tensor
    beta: Tensor
    bias: Tensor | None = None
    add: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None

    @property
    def stride(self) -> int:
        """Elements from one sample's modulation to the next one's."""
        some = self.scale if self.scale is not None else self.add
        return 0 if some is None else some.stride(0)

    def tile(self, batch: int, positions: int, channels: int, most: int) -> dict[str, Any]:
        """How the field is cut: whole groups of channels, and all positions at once where they fit.

        Measured on an H100 (docs/performance.md): 32 channels of 16 x 16 positions and more, 16 where that is too much for
        the registers, and more of a smaller field, so that a program has some thousand elements. Few samples make few
        programs: then each takes less, down to 8 channels, so that more of the GPU has work.
        """
        per, rows = channels // self.groups, _power(positions)
        wide = max(_power(per), min(_WIDE, max(_NARROW, _AIM // rows), max(16, most // rows)))
        once = rows * wide <= most
        if not once:
            rows, wide = min(rows, 256), max(_power(per), _NARROW)
        while wide >= 2 * max(per, _LEAST) and batch * -(-channels // wide) < _BUSY:
            wide //= 2
        groups = max(1, min(self.groups, wide // per))
        wide = _power(groups * per)
        warps = max(2, min(8, rows * wide // 1024))
        return {"PER": per, "GROUPS": groups, "ROWS": rows, "CHANNELS": wide, "ONCE": once, "num_warps": warps}

    def flags(self) -> dict[str, bool]:
        """Which of the optional parts are there."""
        return {
            "HAS_BIAS": self.bias is not None,
            "HAS_ADD": self.add is not None,
            "HAS_SCALE": self.scale is not None,
            "ACT": self.act,
        }


def _launch(name: str, grid: tuple[int, ...], *args: Any, **settings: Any) -> None:
    """Run a kernel; not on tensors without numbers, with which a step is simulated."""
    if args[0].is_meta:
        return
    from sfumato.nn.fused import kernels

    getattr(kernels, name)[grid](*args, **settings)


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _sizes(first: Tensor, second: Tensor | None) -> tuple[int, int, int]:
    """(positions, channels of first, channels of second)."""
    return first[0, 0].numel(), first.shape[1], 0 if second is None else second.shape[1]


def channels_last(x: Tensor) -> Tensor:
    """x (B, C, *S) in the memory layout that the kernels read.

    Nearly always it has it: but torch can't tell the layouts of one channel apart, and what it makes of it may have another.
    """
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def field_like(x: Tensor, channels: int) -> Tensor:
    """An empty field of other channels with x's size and type, in channels-last memory."""
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return torch.empty((x.shape[0], channels, *x.shape[2:]), dtype=x.dtype, device=x.device, memory_format=layout)


@dataclass(frozen=True)
class Parts:
    """A field (B, C, *size) that is still to be summed from `data` (P, B S, C), float32: what `convolve_parts` makes."""

    data: Tensor
    batch: int
    size: tuple[int, ...]
    like: Tensor  # of the type and in the place of the result

    @property
    def count(self) -> int:
        """How many parts."""
        return len(self.data)

    def field(self) -> Tensor:
        """An empty field for the sum."""
        return field_like(self.like.new_empty(self.batch, 1, *self.size), self.data.shape[2])


def norm_forward(
    first: Tensor | Parts, second: Tensor | None, n: Normed, stats: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(normed field, stats) of [first | second]. stats given: they are used instead of computed."""
    known = stats is not None
    if isinstance(first, Parts):
        given, apart, count = first.data, first.data[0].numel(), first.count
        positions, c1, c2 = given.shape[1] // first.batch, given.shape[2], 0
        out = first.field()
    else:
        first, second = channels_last(first), None if second is None else channels_last(second)
        given, apart, count = first, 0, 1
        positions, c1, c2 = _sizes(first, second)
        out = field_like(first, c1 + c2)
    if stats is None:
        stats = torch.empty(2, len(out), n.groups, dtype=torch.float32, device=out.device)
    tile = n.tile(len(out), positions, c1 + c2, _TILE)
    _launch(
        "norm_forward", (-(-n.groups // tile["GROUPS"]), len(out)),
        given, _or(second, given), out, _or(n.bias, given), _or(n.add, given), n.gamma, n.beta, _or(n.scale, given),
        _or(n.shift, given), stats[0], stats[1], n.groups, n.stride, n.eps, apart,
        S=positions, C1=c1, C2=c2, **tile, **n.flags(), KNOWN=known, PARTS=count,
    )  # fmt: skip
    return out, stats


@dataclass(frozen=True)
class NormGrads:
    """first, second: of the field. gamma, beta, bias: (C,) float32; add: (B, C) float32. modulation: (B, 2 C), of scale and
    shift. beside: (C,) float32, sums over the batch and field of what was passed on."""

    first: Tensor
    second: Tensor | None
    gamma: Tensor
    beta: Tensor
    bias: Tensor | None
    add: Tensor | None
    modulation: Tensor | None
    beside: Tensor | None


def norm_backward(
    first: Tensor,
    second: Tensor | None,
    grad: Tensor,
    n: Normed,
    stats: Tensor,
    beside: tuple[Tensor, Tensor | None] | None = None,
) -> NormGrads:
    """Gradients of `norm_forward` for grad (B, C, *S); `beside` is added to the field's."""
    first, second, grad = channels_last(first), None if second is None else channels_last(second), channels_last(grad)
    if beside is not None:
        beside = (channels_last(beside[0]), None if beside[1] is None else channels_last(beside[1]))
    positions, c1, c2 = _sizes(first, second)
    batch, channels, device = len(first), c1 + c2, first.device
    tile = n.tile(batch, positions, channels, _TILE // 2)
    dfirst = torch.empty_like(first)
    dsecond = None if second is None else torch.empty_like(second)
    shifted = n.bias is not None or n.add is not None
    count = 2 + shifted + (beside is not None)
    sums = torch.empty(batch, count, channels, dtype=torch.float32, device=device)
    mod = None if n.scale is None else n.scale.new_empty(batch, 2 * channels)
    _launch(
        "norm_backward", (-(-n.groups // tile["GROUPS"]), batch),
        first, _or(second, sums), grad, dfirst, _or(dsecond, sums),
        sums if beside is None else beside[0], sums if beside is None else _or(beside[1], sums),
        _or(n.bias, sums), _or(n.add, sums), n.gamma, n.beta, _or(n.scale, sums), _or(n.shift, sums),
        stats[0], stats[1], sums, _or(mod, sums), sums if mod is None else mod[:, channels:],
        n.groups, n.stride, 2 * channels,
        S=positions, C1=c1, C2=c2, **tile, **n.flags(), BESIDE=beside is not None, SUMS=count,
    )  # fmt: skip
    over = column_sums(sums.view(batch, count * channels)).view(count, channels)
    return NormGrads(
        dfirst,
        dsecond,
        over[0],
        over[1],
        over[2] if shifted else None,
        sums[:, 2] if shifted else None,
        mod,
        over[-1] if beside is not None else None,
    )


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    return other if tensor is None else tensor


def mix(
    beside: Tensor | Parts | None,
    first: Tensor | None,
    second: Tensor | None,
    weight: Tensor | None,
    *biases: Tensor | None,
) -> Tensor:
    """beside + [first | second] weight^T + biases, for rows (M, K1), (M, K2), weight (N, K1 + K2); without a weight
    beside + first + biases. One pass over each."""
    if isinstance(beside, Parts):
        held, count, like = beside.data, beside.count, beside.like
        rows, wide = beside.data.shape[1:]
    else:
        given = first if beside is None else beside
        assert given is not None
        held, count, like, rows = given, int(beside is not None), given, len(given)
        wide = given.shape[1] if weight is None else weight.shape[0]
    out = torch.empty(rows, wide, dtype=like.dtype, device=like.device)
    some = _or(
        first, held
    )  # stands in for a second part: what a loop of no turns would load must have the weight's type
    b1, b2 = [*[b for b in biases if b is not None], None, None][:2]
    tile: dict[str, int] = {"BLOCK_M": 64, "BLOCK_N": min(128, _power(wide)), "BLOCK_K": 16, "num_warps": 4}
    if weight is not None:
        tile = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
    if -(-rows // tile["BLOCK_M"]) * -(-wide // tile["BLOCK_N"]) < _FEW:
        tile = {"BLOCK_M": 32, "BLOCK_N": max(16, min(32, _power(wide))), "BLOCK_K": 64, "num_warps": 4}
    _launch(
        "mix", (-(-wide // tile["BLOCK_N"]) * -(-rows // tile["BLOCK_M"]),),  # a second axis ends at 65,535
        held, some, _or(second, some), _or(weight, held), _or(b1, held), _or(b2, held), out, rows,
        N=wide, K1=0 if first is None else first.shape[1], K2=0 if second is None else second.shape[1],
        BESIDE=count, FIRST=first is not None, HAS_BIAS=b1 is not None, HAS_BIAS2=b2 is not None,
        PRODUCT=weight is not None, **tile,
    )  # fmt: skip
    return out


def few(rows: int, wide: int) -> bool:
    """Whether a product of so many rows and columns leaves most of a GPU idle in a library's tiles."""
    return -(-rows // 128) * -(-wide // 128) <= _FEW


def convolve_parts(x: Tensor, weight: Tensor, stride: tuple[int, int] = (1, 1), up: tuple[int, int] = (1, 1)) -> Parts:
    """A convolution of x (B, C, H, W), first enlarged `up` times by nearest neighbour, without a bias, in parts.

    For few positions: then a library's kernels run on a handful of multiprocessors, each through the whole inner dimension.
    """
    x = channels_last(x)
    batch, channels, height, width = x.shape
    wide, _, kh, kw = weight.shape
    size = (-(-height * up[0] // stride[0]), -(-width * up[1] // stride[1]))
    rows = batch * size[0] * size[1]
    block_m = 16 if rows <= 16 else 32 if rows <= 512 else 64
    block_n, block_k = (max(16, min(64, _power(n))) for n in (wide, channels))
    tiles = -(-rows // block_m) * -(-wide // block_n)
    steps = kh * kw * -(-channels // block_k)
    each = -(-steps // max(1, min(steps, _MOST_PARTS, _PROGRAMS // tiles)))
    parts = torch.empty(-(-steps // each), rows, wide, dtype=torch.float32, device=x.device)
    _launch(
        "conv_parts", (-(-wide // block_n), -(-rows // block_m), len(parts)),
        x, weight, parts, rows, height, width, *size,
        C=channels, N=wide, KH=kh, KW=kw, DOWN_H=stride[0], DOWN_W=stride[1], UP_H=up[0], UP_W=up[1], STEPS=each,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=4, num_stages=4,
    )  # fmt: skip
    return Parts(parts, batch, size, x)


def column_sums(x: Tensor) -> Tensor:
    """Sums over the rows of x (M, N), float32 (N,), in an order that does not depend on the run."""
    rows, wide = x.shape
    parts = 1 if rows <= _ALONE else min(-(-rows // _PART), 512)
    block_n = 32 if parts == 1 else min(128, _power(wide))
    out = torch.empty(parts, wide, dtype=torch.float32, device=x.device)
    _launch(
        "column_sums",
        (-(-wide // block_n), parts),
        x,
        out,
        rows,
        N=wide,
        PER=-(-rows // parts),
        BLOCK_M=4096 // block_n,
        BLOCK_N=block_n,
        num_warps=4,
    )
    return out[0] if parts == 1 else column_sums(out)
