"""Tiles and slices: what is put together is what is computed at once, and where it can't be, by how much it differs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.core.cond import Cond, CondShape
from sfumato.errors import UserError
from sfumato.nn import MLP, DiT, UNet
from sfumato.nn.tiling import Sliced, sliced, tiled

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIZES = {1: (61,), 2: (37, 22), 3: (19, 12, 14)}


class Decoder(nn.Module):
    """Convolutions and two doublings of size, as in the decoder of an autoencoder; group norms if asked for.

    Output p sees inputs up to `reach` away from p // 4: a 3-wide convolution at 1, 2 and 4 times the size of the input adds
    1, 1/2 and 1/4 of its positions, so depth (1 + 1/2 + 1/4), rounded up.
    """

    def __init__(self, dims: int, *, norms: bool = False, depth: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        at = 3
        for level in range(3):
            for _ in range(depth):
                layers += [CONVS[dims](at, 8, 3, padding=1), *([nn.GroupNorm(2, 8)] if norms else []), nn.SiLU()]
                at = 8
            if level < 2:
                layers.append(nn.Upsample(scale_factor=2))
        self.layers = nn.Sequential(*layers, CONVS[dims](at, 2, 1))
        self.reach = -(-7 * depth // 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class Encoder(nn.Module):
    """A convolution, two halvings of size, a convolution: output p sees inputs up to 1 + 1 + 2 + 4 away from 4 p."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = CONVS[dims]
        halves = [conv(8, 8, 3, stride=2, padding=1), conv(8, 8, 3, stride=2, padding=1)]
        self.layers = nn.Sequential(conv(3, 8, 3, padding=1), *halves, nn.SiLU(), conv(8, 2, 3, padding=1))
        self.reach = 8

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return make().double()


def field(dims: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *SIZES[dims], dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- exactness


@pytest.mark.parametrize("dims", [1, 2, 3])
@torch.no_grad()
def test_a_decoder_in_tiles_is_the_decoder(dims: int) -> None:
    decoder, x = seeded(lambda: Decoder(dims)), field(dims)
    near = 4 * decoder.reach
    found = tiled(decoder, x, tile=2 * near, overlap=near, factor=4)
    torch.testing.assert_close(found, decoder(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dims", [1, 2, 3])
@torch.no_grad()
def test_an_encoder_in_tiles_is_the_encoder_at_sizes_that_4_does_not_divide(dims: int) -> None:
    encoder = seeded(lambda: Encoder(dims))
    size = {1: (151,), 2: (74, 133), 3: (5, 70, 6)}[dims]
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    found = tiled(encoder, x, tile=64, overlap=32, factor=1 / 4)
    torch.testing.assert_close(found, encoder(x), rtol=0, atol=1e-13)


@torch.no_grad()
def test_the_receptive_field_is_what_it_is_said_to_be() -> None:
    """The gradient of one output is nonzero within `reach` of it and nowhere else: less overlap than 4 reach is not exact."""
    decoder = seeded(lambda: Decoder(1, depth=2))
    with torch.enable_grad():
        x = torch.randn(1, 3, 61, dtype=torch.float64, requires_grad=True)
        seen = torch.zeros(61)
        for at in range(4 * 30, 4 * 31):
            (gradient,) = torch.autograd.grad(decoder(x)[0, 0, at], x)
            seen += gradient[0].abs().sum(0).ne(0)
    assert seen.nonzero().flatten().tolist() == list(range(30 - decoder.reach, 31 + decoder.reach))
    whole = decoder(x)
    exact = tiled(decoder, x, tile=40, overlap=4 * decoder.reach, factor=4)
    short = tiled(decoder, x, tile=40, overlap=decoder.reach, factor=4)
    assert (exact - whole).abs().max() < 1e-13 < 1e-6 < (short - whole).abs().max()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 40), st.integers(0, 20), st.sampled_from([1, 2, 3, 0.5, 1 / 3]))
def test_weights_sum_to_1_at_any_size(size: int, tile: int, overlap: int, factor: float) -> None:
    """Of ones every tile gives ones: the sum of weights, exactly, and each place is written to."""
    k = round(1 / factor) if factor < 1 else 1
    tile, overlap = max(1, tile) * k, min(overlap, tile // 2) * k
    sizes: list[int] = []

    def ones(x: Tensor) -> Tensor:
        sizes.append(x.shape[-1])
        n = -(-x.shape[-1] // k) if k > 1 else x.shape[-1] * int(factor)
        return torch.ones(1, 1, n)

    made = tiled(ones, torch.zeros(1, 1, size), tile=tile, overlap=overlap, factor=factor)
    assert torch.equal(made, torch.ones_like(made))
    assert made.shape[-1] == (-(-size // k) if k > 1 else size * int(factor))
    assert max(sizes) <= tile


def test_weights_sum_to_1_in_three_dimensions() -> None:
    x = torch.ones(1, 1, 29, 31, 23)
    assert torch.equal(tiled(lambda part: part, x, tile=(12, 10, 9), overlap=(5, 3, 4)), x)


def test_tiles_are_blended_linearly() -> None:
    """Tiles of constants 0, 1, 2, ...: a straight line over the middle half of each overlap, flat elsewhere."""
    count = iter(range(9))
    made = tiled(lambda part: torch.full_like(part, next(count)), torch.zeros(1, 1, 56), tile=24, overlap=8)[0, 0]
    # tiles 0-23, 16-39, 32-55: overlaps 16-23 and 32-39, of which 18-21 and 34-37 are blended
    line = [0.125, 0.375, 0.625, 0.875]
    expected = [0.0] * 18 + line + [1.0] * 12 + [1 + v for v in line] + [2.0] * 18
    assert made.tolist() == expected


def test_a_field_that_one_tile_holds_is_computed_at_once() -> None:
    x = torch.randn(2, 3, 8)
    seen: list[torch.Size] = []
    tiled(lambda part: seen.append(part.shape) or part, x, tile=8, overlap=2)  # type: ignore[func-returns-value]
    assert seen == [x.shape]


def test_tiles_are_as_equal_as_they_can_be_and_no_larger_than_asked() -> None:
    seen: list[int] = []
    tiled(lambda part: seen.append(part.shape[-1]) or part, torch.zeros(1, 1, 100), tile=48, overlap=8)  # type: ignore[func-returns-value]
    assert seen == [39, 39, 38]


def test_memory_is_one_tile_and_the_output() -> None:
    """The largest field that f makes is that of a tile, and tiles do not outlive their turn."""
    import gc
    import weakref

    alive: list[weakref.ref[Tensor]] = []

    def f(part: Tensor) -> Tensor:
        assert not any(ref() is not None for ref in alive)
        made = part * 2
        alive.append(weakref.ref(made))
        return made

    gc.disable()
    try:
        tiled(f, torch.zeros(1, 1, 64, 64), tile=24, overlap=8)
    finally:
        gc.enable()
    assert len(alive) == 16


def test_half_precision_is_added_up_in_float32() -> None:
    x = torch.randn(1, 1, 64, dtype=torch.bfloat16)
    made = tiled(lambda part: part, x, tile=16, overlap=8)
    assert made.dtype == torch.bfloat16 and torch.equal(made, x)


# ---------------------------------------------------------------- group norm


@torch.no_grad()
def test_group_norm_by_tiles_differs_by_what_is_written_in_the_docs() -> None:
    """4% of the deviation where statistics are the same everywhere, 26% where the level drifts from 1/2 to 3/2.

    Never a seam: the largest step between neighbours stays that of the whole decode.
    """
    decoder = seeded(lambda: Decoder(2, norms=True))
    even = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drifting = even * torch.linspace(0.5, 1.5, 64, dtype=torch.float64)
    for x, low, high in ((even, 0.03, 0.05), (drifting, 0.23, 0.29)):
        whole = decoder(x)
        made = tiled(decoder, x, tile=32, overlap=16, factor=4)
        difference = float((made - whole).std() / whole.std())
        assert low < difference < high
        steps = [(v[..., 1:] - v[..., :-1]).abs().amax((0, 1, 2)) for v in (made, whole)]
        assert steps[0].max() < 1.05 * steps[1].max()


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"tile": 0, "overlap": 0}, "tile=0 overlap=0: a tile is at least 1"),
        ({"tile": 8, "overlap": 5}, "tile=8 overlap=5: .* at most half a tile"),
        ({"tile": (8, 8), "overlap": 2}, r"tile=\(8, 8\): 2 numbers for 1 axes; give one, or 1"),
        ({"tile": 9, "overlap": 2, "factor": 0.5}, "must be multiples of 2"),
        ({"tile": 8, "overlap": 2, "factor": 1.5}, "factor=1.5: must be a whole number, or 1 over one"),
        (
            {"tile": 8, "overlap": 2, "factor": 2},
            r"f made \(1, 1, 8\) of a tile \(1, 1, 8\), where \(1, C, 16\) was due",
        ),
    ],
)
def test_mistakes_are_named(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiled(lambda part: part, torch.zeros(1, 1, 20), **given_)


def test_vectors_are_not_tiled() -> None:
    with pytest.raises(UserError, match=r"1 to 3 axes are tiled, and this has shape \(4, 5\)"):
        tiled(lambda part: part, torch.zeros(4, 5), tile=2, overlap=0)


# ---------------------------------------------------------------- slices


@pytest.mark.parametrize(("n", "most", "sizes"), [(10, 4, [4, 4, 2]), (9, 4, [3, 3, 3]), (3, 8, [3]), (4, 1, [1] * 4)])
def test_slices_are_as_equal_as_they_can_be(n: int, most: int, sizes: list[int]) -> None:
    seen: list[int] = []
    x = torch.randn(n, 2)
    made = sliced(lambda part: seen.append(len(part)) or part * 3, x, most)  # type: ignore[func-returns-value]
    assert seen == sizes and torch.equal(made, x * 3)


@pytest.mark.parametrize("kind", ["unet", "dit", "mlp"])
@torch.no_grad()
def test_a_sliced_network_is_the_network(kind: str) -> None:
    torch.manual_seed(0)
    shape = CondShape(vector=4, tokens=6, concat=1)
    made = {
        "unet": lambda: UNet((2, 8, 8), shape, width=8, mults=(1, 2), blocks=1),
        "dit": lambda: DiT((2, 8, 8), shape, width=16, depth=2, heads=2),
        "mlp": lambda: MLP((2, 8, 8), shape, width=16, depth=2),
    }[kind]()
    for p in made.parameters():
        p.add_(0.1 * torch.randn_like(p))
    x, noise = torch.randn(7, 2, 8, 8), torch.rand(7)
    mask = torch.arange(5) < torch.tensor([[5], [3], [1], [2], [5], [4], [5]])
    cond = Cond(torch.randn(7, 4), torch.randn(7, 5, 6), mask, torch.randn(7, 1, 8, 8))
    rows: list[int] = []
    made.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    whole = made(x, noise, cond)
    torch.testing.assert_close(Sliced(made, 3)(x, noise, cond), whole, rtol=1e-5, atol=1e-5)
    assert rows == [7, 3, 3, 1] and whole.abs().max() > 0.1
    if kind != "mlp":
        perturbed = made.perturbed()(x, noise, cond)
        torch.testing.assert_close(Sliced(made, 3).perturbed()(x, noise, cond), perturbed, rtol=1e-5, atol=1e-5)
        assert (perturbed - whole).abs().max() > 1e-3
    else:
        with pytest.raises(UserError, match="guidance=pag needs a network with self-attention, and not mlp"):
            Sliced(made, 3).perturbed()


def test_most_is_at_least_1() -> None:
    with pytest.raises(UserError, match="slice=0: at least 1"):
        sliced(lambda part: part, torch.zeros(2), 0)


def test_pairs_of_tiles_only_ever_meet() -> None:
    """The middle tile of three may not be shorter than both its overlaps."""
    reads: list[tuple[int, int]] = []

    def f(part: Tensor) -> Tensor:
        reads.append((int(part[0, 0, 0]), int(part[0, 0, -1]) + 1))
        return part

    x = torch.arange(25, dtype=torch.float32).view(1, 1, 25)
    assert torch.equal(tiled(f, x, tile=16, overlap=8), x)
    assert all(b[0] >= a[1] for a, b in pairwise(reads[::2]))
