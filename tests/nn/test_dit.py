"""The diffusion transformer against a plain one written for reading, and its parts against their definitions."""

from __future__ import annotations

import cmath
import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.cond import Cond, CondShape
from sfumato.nn import (
    CrossAttention,
    DiT,
    NoiseEmbedding,
    SelfAttention,
    grid_positions,
    rope_table,
    rotate,
    sinusoids,
)
from sfumato.nn.dit import patchify, unpatchify
from sfumato.nn.mmdit import MMDiT
from sfumato.nn.sizes import hidden_width


def shaken(network: DiT) -> DiT:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return network.eval()


def turned(row: Tensor, place: tuple[int, ...], base: float) -> Tensor:
    """Rotary embedding of one head's channels at one place, as complex numbers."""
    pairs = len(row) // 2
    each = pairs // len(place)
    out = row.clone()
    for axis, k in itertools.product(range(len(place)), range(each)):
        i = axis * each + k
        z = complex(float(row[i]), float(row[i + pairs])) * cmath.exp(1j * place[axis] * base ** (-k / each))
        out[i], out[i + pairs] = z.real, z.imag
    return out


class Plain:
    """The transformer once more, from its formulas, one sample, one head and one token at a time."""

    def __init__(self, network: DiT, heads: int, patch: int, base: float) -> None:
        self.w = dict(network.state_dict())
        self.heads, self.patch, self.base = heads, patch, base
        self.depth = len(network.blocks)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def norm(self, x: Tensor, name: str = "", eps: float = 1e-6) -> Tensor:
        y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
        return y * self.w[name + ".weight"] + self.w[name + ".bias"] if name else y

    def mix(self, name: str, q: Tensor, k: Tensor, v: Tensor, places: list[tuple[int, ...]] | None) -> Tensor:
        out = []
        for a, b, c in zip(q.chunk(self.heads, -1), k.chunk(self.heads, -1), v.chunk(self.heads, -1)):
            a = a / (a.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.w[name + ".q_scale"]
            b = b / (b.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.w[name + ".k_scale"]
            if places is not None:
                a = torch.stack([turned(row, p, self.base) for row, p in zip(a, places)])
                b = torch.stack([turned(row, p, self.base) for row, p in zip(b, places)])
            out.append((a @ b.T / math.sqrt(a.shape[-1])).softmax(-1) @ c)
        return self.linear(name + ".out", torch.cat(out, -1))

    def __call__(self, x: Tensor, noise: Tensor, vector: Tensor, tokens: Tensor, concat: Tensor) -> Tensor:
        channels, size, p = len(x), x.shape[1:], self.patch
        both = torch.cat([x, concat])
        grid = [math.ceil(n / p) for n in size]
        whole = torch.zeros(len(both), *[g * p for g in grid], dtype=x.dtype)
        whole[(slice(None), *[slice(n) for n in size])] = both
        places = list(itertools.product(*[range(g) for g in grid]))
        boxes = [tuple(slice(i * p, i * p + p) for i in place) for place in places]
        h = self.linear("stem", torch.stack([whole[(slice(None), *box)].flatten() for box in boxes]))
        width, dims = h.shape[1], len(size)
        for row, place in zip(h, places):
            each, half = width // dims, width // dims // 2
            for axis, k in itertools.product(range(dims), range(half)):
                angle = place[axis] * 10_000 ** (-k / half)
                row[axis * each + k] += math.cos(angle)
                row[axis * each + half + k] += math.sin(angle)
        emb = torch.cat(
            [
                f(1000 * noise * 10_000 ** (-torch.arange(width // 2, dtype=x.dtype) / (width // 2)))
                for f in (torch.cos, torch.sin)
            ]
        )
        emb = self.linear("embed.second", F.silu(self.linear("embed.first", emb)))
        emb = F.silu(emb + self.linear("embed.vector", vector))
        modulation = self.linear("modulation", emb)
        for i in range(self.depth):
            name = f"layers.{i}"
            b1, s1, g1, b2, s2, g2 = modulation[6 * width * i : 6 * width * (i + 1)].chunk(6)
            q, k, v = self.linear(name + ".attention.qkv", self.norm(h) * (1 + s1) + b1).chunk(3, -1)
            h = h + g1 * self.mix(name + ".attention", q, k, v, places)
            q = self.linear(name + ".cross.q", self.norm(h, name + ".cross_norm"))
            kv = self.linear(name + ".cross.kv", self.norm(tokens, name + ".cross.norm", 1e-5))
            k, v = torch.cat([self.w[name + ".cross.nothing"][None], kv]).chunk(2, -1)
            h = h + self.mix(name + ".cross", q, k, v, None)
            inner = self.linear(name + ".mlp_in", self.norm(h) * (1 + s2) + b2)
            inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
            h = h + g2 * self.linear(name + ".mlp_out", inner)
        shift, scale = modulation[6 * width * self.depth :].chunk(2)
        out = self.linear("head", self.norm(h) * (1 + scale) + shift)
        canvas = torch.zeros(channels, *whole.shape[1:], dtype=x.dtype)
        for row, box in zip(out, boxes):
            canvas[(slice(None), *box)] = row.view(channels, *[p] * dims)
        return canvas[(slice(None), *[slice(n) for n in size])]


@pytest.mark.parametrize("shape", [(2, 9), (1, 5, 4), (2, 3, 4, 2)], ids=str)
def test_equals_the_plain_network(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = DiT(shape, CondShape(3, 4, 1), width=24, depth=2, heads=2, patch=2, rope_base=50.0).double()
    plain = Plain(shaken(network), heads=2, patch=2, base=50.0)
    x, noise, vector, tokens, concat = (
        torch.randn(*s, dtype=torch.float64) for s in ((2, *shape), (2,), (2, 3), (2, 3, 4), (2, 1, *shape[1:]))
    )
    noise = noise.sigmoid()
    with torch.inference_mode():
        got = network(x, noise, Cond(vector, tokens, None, concat))
        want = torch.stack([plain(*args) for args in zip(x, noise, vector, tokens, concat)])
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(1, 7), (2, 7, 5), (1, 3, 5, 4)], ids=str)
def test_odd_sizes_are_even_sizes_with_zeros_at_the_end(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = shaken(DiT(shape, CondShape(), width=24, depth=2, heads=2))
    even = (shape[0], *[n + n % 2 for n in shape[1:]])
    wide = DiT(even, CondShape(), width=24, depth=2, heads=2).eval()
    wide.load_state_dict(network.state_dict())
    x, noise = torch.randn(2, *shape), torch.rand(2)
    padded = torch.zeros(2, *even)
    inside = (slice(None), slice(None), *[slice(n) for n in shape[1:]])
    padded[inside] = x
    assert torch.equal(network(x, noise), wide(padded, noise)[inside])


@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("size", [(7,), (4, 5), (3, 4, 5)], ids=str)
def test_patches_go_there_and_back(size: tuple[int, ...], patch: int) -> None:
    x = torch.randn(2, 3, *size)
    sides = (patch,) * len(size)
    tokens, grid = patchify(x, sides)
    assert tokens.shape == (2, math.prod(grid), 3 * patch ** len(size))
    assert torch.equal(unpatchify(tokens, sides, grid, x.shape[2:]), x)


def test_patches_may_differ_by_axis() -> None:
    network = shaken(DiT((1, 6, 9), CondShape(), width=24, depth=1, heads=2, patch=(2, 3)))
    assert network.stem.in_features == 6
    assert network(torch.randn(2, 1, 6, 9), torch.rand(2)).shape == (2, 1, 6, 9)


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_rotary_scores_depend_on_differences_of_position_only(axes: int) -> None:
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 5, 16, generator=g).double()
    at = torch.randint(0, 20, (5, axes), generator=g).float()
    far = torch.randint(-50, 50, (1, axes), generator=g).float()

    def scores(positions: Tensor) -> Tensor:
        table = rope_table(positions, 16, 100.0)
        return rotate(q, table) @ rotate(k, table).T

    torch.testing.assert_close(scores(at + far), scores(at), rtol=0, atol=1e-4)
    assert float((scores(at * 2) - scores(at)).abs().max()) > 0.1
    torch.testing.assert_close(rotate(q, rope_table(at, 16, 100.0)).norm(dim=1), q.norm(dim=1), rtol=1e-6, atol=0)


def test_positions_are_the_cells_in_memory_order() -> None:
    assert grid_positions((2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_self_attention_without_positions_commutes_with_permutations() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(16, 4, qk_norm=True, zero_out=False).double()
    x, order = torch.randn(2, 7, 16).double(), torch.randperm(7)
    torch.testing.assert_close(attention(x[:, order]), attention(x)[:, order], rtol=1e-10, atol=1e-10)


def test_cross_attention_does_not_see_the_order_of_the_tokens() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(16, 6, 4).double()
    torch.nn.init.normal_(attention.out.weight)
    x, tokens, order = torch.randn(2, 5, 16).double(), torch.randn(2, 7, 6).double(), torch.randperm(7)
    mask = torch.rand(2, 7) > 0.4
    torch.testing.assert_close(
        attention(x, tokens[:, order], mask[:, order]), attention(x, tokens, mask), rtol=1e-10, atol=1e-10
    )


def test_masked_self_attention_equals_the_shorter_sequence() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(16, 4, zero_out=False).double()
    x = torch.randn(2, 7, 16).double()
    mask = torch.arange(7) < 4
    torch.testing.assert_close(
        attention(x, mask=mask.expand(2, -1))[:, :4], attention(x[:, :4]), rtol=1e-10, atol=1e-10
    )


def test_sinusoids_are_their_formula() -> None:
    got = sinusoids(torch.tensor([0.0, 2.5], dtype=torch.float64), 5)
    want = [[1, 1, 0, 0, 0], [math.cos(2.5), math.cos(0.025), math.sin(2.5), math.sin(0.025), 0]]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert sinusoids(torch.tensor([0.5], dtype=torch.bfloat16), 4).dtype == torch.float32


def test_noise_levels_stay_apart_in_half_precision() -> None:
    """1000 u in bfloat16 would round 501 and 502 to one number: the angles are taken in float32."""
    embedding = NoiseEmbedding(32, 32).bfloat16()
    near = embedding(torch.tensor([0.501, 0.502]))
    assert near.dtype == torch.bfloat16 and not torch.equal(near[0], near[1])


@pytest.mark.parametrize(("width", "ratio", "inside"), [(192, 4.0, 768), (192, 3.3, 640), (64, 1.6, 112), (8, 0.1, 16)])
def test_mlps_are_as_wide_as_gpus_multiply(width: int, ratio: float, inside: int) -> None:
    assert hidden_width(width, ratio) == inside
    for network in (DiT, MMDiT):
        made = network((1, 4, 4), CondShape(tokens=8), width=width, depth=1, heads=1, mlp_ratio=ratio)
        assert {m.out_features for n, m in made.named_modules() if n.endswith("mlp_in")} == {inside}
