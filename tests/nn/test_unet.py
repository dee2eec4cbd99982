"""The U-Net against a plain one written for reading, and against diffusers' on shared weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sfumato.core.cond import Cond, CondShape
from sfumato.errors import UserError
from sfumato.nn import UNet
from sfumato.nn.embed import absolute_positions, grid_positions
from sfumato.nn.layers import apply_conv, conv, head_count, norm_groups, to_inner


def shaken(network: Any, size: float = 0.2) -> Any:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return network.eval()


class Plain:
    """The U-Net once more, from its formulas: ordinary memory layout, loops, softmax written out."""

    def __init__(self, network: UNet, dims: int, per_level: int, levels: int, heads: int, shift: bool) -> None:
        self.w = dict(network.state_dict())
        self.dims, self.per_level, self.levels, self.heads, self.shift = dims, per_level, levels, heads, shift
        self.groups = {k: m.num_groups for k, m in network.named_modules() if isinstance(m, torch.nn.GroupNorm)}

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.w[name + ".weight"]
        weight = weight.squeeze(2) if self.dims == 1 else weight
        f = (F.conv1d, F.conv2d, F.conv3d)[self.dims - 1]
        return f(x, weight.contiguous(), self.w[name + ".bias"], stride, 1)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        rows = x.reshape(len(x), self.groups[name], -1)
        rows = (rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        wide = (-1, *[1] * self.dims)
        return rows.reshape(x.shape) * self.w[name + ".weight"].view(wide) + self.w[name + ".bias"].view(wide)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = []
        for a, b, c in zip(q.chunk(self.heads, -1), k.chunk(self.heads, -1), v.chunk(self.heads, -1)):
            out.append((a @ b.transpose(1, 2) / math.sqrt(a.shape[-1])).softmax(-1) @ c)
        return torch.cat(out, -1)

    def attend(self, name: str, x: Tensor, tokens: Tensor | None) -> Tensor:
        if name + ".norm.weight" not in self.w:
            return x
        rows = self.norm(name + ".norm", x).flatten(2).transpose(1, 2)
        q, k, v = self.linear(name + ".attention.qkv", rows).chunk(3, -1)
        x = x + self.linear(name + ".attention.out", self.mix(q, k, v)).transpose(1, 2).reshape(x.shape)
        if tokens is None:
            return x
        q = self.linear(name + ".cross.q", self.norm(name + ".cross_norm", x).flatten(2).transpose(1, 2))
        w = self.w[name + ".cross.norm.weight"], self.w[name + ".cross.norm.bias"]
        kv = self.linear(name + ".cross.kv", F.layer_norm(tokens, tokens.shape[-1:], *w))
        kv = torch.cat([self.w[name + ".cross.nothing"].expand(len(x), 1, -1), kv], 1)
        mixed = self.linear(name + ".cross.out", self.mix(q, *kv.chunk(2, -1)))
        return x + mixed.transpose(1, 2).reshape(x.shape)

    def block(self, name: str, x: Tensor, tokens: Tensor | None) -> Tensor:
        mod = self.mods.pop(0)
        mod = mod.view(*mod.shape, *[1] * self.dims)
        h = self.conv(name + ".res.conv1", F.silu(self.norm(name + ".res.norm1", x)))
        if self.shift:
            h = self.norm(name + ".res.norm2", h + mod)
        else:
            scale, shift = mod.chunk(2, 1)
            h = self.norm(name + ".res.norm2", h) * (1 + scale) + shift
        h = self.conv(name + ".res.conv2", F.silu(h))
        if name + ".res.shortcut.weight" in self.w:
            x = self.linear(name + ".res.shortcut", x.movedim(1, -1)).movedim(-1, 1)
        return self.attend(name + ".attention", x + h, tokens)

    def __call__(self, x: Tensor, noise: Tensor, cond: Cond, widths: list[int]) -> Tensor:
        half = self.w["embed.first.weight"].shape[1] // 2
        angles = 1000 * noise[:, None] * 10_000 ** (-torch.arange(half, dtype=noise.dtype) / half)
        emb = self.linear("embed.first", torch.cat([angles.cos(), angles.sin()], 1))
        emb = self.linear("embed.second", F.silu(emb))
        if cond.vector is not None:
            emb = emb + self.linear("embed.vector", cond.vector)
        self.mods = list(self.linear("modulation", F.silu(emb)).split(widths, 1))
        h = self.conv("stem", x if cond.concat is None else torch.cat([x, cond.concat], 1))
        skips, n = [h], self.per_level
        for level in range(self.levels):
            for i in range(n):
                h = self.block(f"down.{level * n + i}", h, cond.tokens)
                skips.append(h)
            if level < self.levels - 1:
                h = self.conv(f"shrink.{level}.conv", h, stride=2)
                skips.append(h)
        h = self.block("middle.1", self.block("middle.0", h, cond.tokens), cond.tokens)
        for level in range(self.levels):
            for i in range(n + 1):
                h = self.block(f"up.{level * (n + 1) + i}", torch.cat([h, skips.pop()], 1), cond.tokens)
            if level < self.levels - 1:
                for axis, size in enumerate(skips[-1].shape[2:], start=2):
                    h = h.repeat_interleave(2, axis).narrow(axis, 0, size)
                h = self.conv(f"grow.{level}.conv", h)
        return self.conv("head", F.silu(self.norm("norm", h)))


@pytest.mark.parametrize("shape", [(1, 11), (2, 16), (3, 7, 5), (1, 8, 6), (2, 3, 5, 4)], ids=str)
@pytest.mark.parametrize("modulation", ["scale_shift", "shift"])
def test_equals_the_plain_network(shape: tuple[int, ...], modulation: Any) -> None:
    torch.manual_seed(0)
    asked = CondShape(vector=3, tokens=4, concat=1)
    settings: dict[str, Any] = {"width": 8, "mults": (1, 2, 1), "blocks": 1, "attention": (1,), "head_dim": 8}
    network = shaken(UNet(shape, asked, modulation=modulation, groups=4, **settings).double())
    x, noise = torch.randn(2, *shape).double(), torch.rand(2).double()
    cond = Cond(torch.randn(2, 3), torch.randn(2, 3, 4), None, torch.randn(2, 1, *shape[1:])).to("cpu", torch.float64)

    class TwoHeads(Plain):  # level 1 has 16 channels: two heads of 8; the middle, 8 channels, has one
        def attend(self, name: str, x: Tensor, tokens: Tensor | None) -> Tensor:
            self.heads = x.shape[1] // 8
            return super().attend(name, x, tokens)

    plain = TwoHeads(network, len(shape) - 1, 1, 3, 1, modulation == "shift")
    torch.testing.assert_close(
        network(x, noise, cond), plain(x, noise, cond, network.mod_widths), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("qk_norm", [True, False])
def test_normalised_queries_and_keys_make_attention_no_sharper_as_their_weights_grow(qk_norm: bool) -> None:
    torch.manual_seed(0)
    asked = CondShape(tokens=4)
    network = shaken(UNet((2, 8, 8), asked, width=8, mults=(1, 2), blocks=1, attention=(1,), qk_norm=qk_norm).double())
    x, noise, cond = (
        torch.randn(2, 2, 8, 8).double(),
        torch.rand(2).double(),
        Cond(tokens=torch.randn(2, 3, 4).double()),
    )
    before = network(x, noise, cond)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "attention.qkv." in name:
                parameter[: 2 * len(parameter) // 3] *= 1e3
            elif "cross.q." in name:
                parameter *= 1e3
    unchanged = torch.allclose(network(x, noise, cond), before, rtol=1e-4)
    assert unchanged == qk_norm


# ---------------------------------------------------------------- diffusers


def twins(width: int, mults: tuple[int, ...], level: int, size: int, groups: int) -> tuple[UNet, Any]:
    diffusers = pytest.importorskip("diffusers", reason="the peer is in the `bench` extra")
    n = len(mults)
    peer = diffusers.UNet2DModel(
        sample_size=size,
        block_out_channels=tuple(width * m for m in mults),
        layers_per_block=2,
        down_block_types=tuple("AttnDownBlock2D" if i == level else "DownBlock2D" for i in range(n)),
        up_block_types=tuple("AttnUpBlock2D" if n - 1 - i == level else "UpBlock2D" for i in range(n)),
        attention_head_dim=width,
        norm_num_groups=groups,
    )
    ours = UNet(
        (3, size, size),
        CondShape(),
        width=width,
        mults=mults,
        attention=(level,),
        head_dim=width,
        groups=groups,
        modulation="shift",
    )
    return ours, peer


def renamed(peer: Any) -> dict[str, Tensor]:
    """The state of a `UNet2DModel` under our names."""
    theirs, ours, projections = peer.state_dict(), {}, []

    def put(to: str, at: str) -> None:
        ours[to + ".weight"], ours[to + ".bias"] = theirs[at + ".weight"], theirs[at + ".bias"]

    def block(to: str, group: str, j: int) -> None:
        at = f"{group}.resnets.{j}"
        for part in ("norm1", "conv1", "norm2", "conv2"):
            put(f"{to}.res.{part}", f"{at}.{part}")
        if at + ".conv_shortcut.weight" in theirs:
            put(to + ".res.shortcut", at + ".conv_shortcut")
            ours[to + ".res.shortcut.weight"] = ours[to + ".res.shortcut.weight"].flatten(1)
        projections.append(at + ".time_emb_proj")
        at = f"{group}.attentions.{j}"
        if at + ".group_norm.weight" in theirs:
            put(to + ".attention.norm", at + ".group_norm")
            put(to + ".attention.attention.out", at + ".to_out.0")
            for s in ("weight", "bias"):
                ours[f"{to}.attention.attention.qkv.{s}"] = torch.cat([theirs[f"{at}.to_{k}.{s}"] for k in "qkv"])

    for to, at in [("stem", "conv_in"), ("norm", "conv_norm_out"), ("head", "conv_out")]:
        put(to, at)
    put("embed.first", "time_embedding.linear_1")
    put("embed.second", "time_embedding.linear_2")
    i = 0
    for level, part in enumerate(peer.down_blocks):
        for j in range(len(part.resnets)):
            block(f"down.{i}", f"down_blocks.{level}", j)
            i += 1
        if part.downsamplers is not None:
            put(f"shrink.{level}.conv", f"down_blocks.{level}.downsamplers.0.conv")
    block("middle.0", "mid_block", 0)
    block("middle.1", "mid_block", 1)
    i = 0
    for level, part in enumerate(peer.up_blocks):
        for j in range(len(part.resnets)):
            block(f"up.{i}", f"up_blocks.{level}", j)
            i += 1
        if part.upsamplers is not None:
            put(f"grow.{level}.conv", f"up_blocks.{level}.upsamplers.0.conv")
    for s in ("weight", "bias"):
        ours["modulation." + s] = torch.cat([theirs[p + "." + s] for p in projections])
    return ours


def test_equals_diffusers_on_shared_weights() -> None:
    torch.manual_seed(0)
    ours, peer = twins(width=16, mults=(1, 2, 2), level=1, size=8, groups=4)
    shaken(peer, 0.1)
    ours.load_state_dict(renamed(peer))
    x, noise = torch.randn(3, 3, 8, 8), torch.tensor([0.0, 0.31, 1.0])
    with torch.inference_mode():
        want = peer(x, 1000 * noise).sample
        torch.testing.assert_close(ours.eval()(x, noise), want, rtol=0, atol=1e-5 * max(1.0, float(want.std())))


def test_has_the_parameters_and_operations_of_ddpm_cifar10() -> None:
    """The network of google/ddpm-cifar10-32: 35.7 M parameters. Counted without running it, on the meta device."""
    with torch.device("meta"):
        ours, peer = twins(width=128, mults=(1, 2, 2, 2), level=1, size=32, groups=32)
    count = [sum(p.numel() for p in m.parameters()) for m in (ours, peer)]
    assert count[0] == count[1] == 35_746_307
    operations = []
    for network in (ours, peer):
        with FlopCounterMode(display=False) as counter, torch.device("meta"):
            network(torch.empty(1, 3, 32, 32), torch.empty(1))
        operations.append(counter.get_total_flops())
    assert abs(operations[0] / operations[1] - 1) < 0.001


# ---------------------------------------------------------------- choices


def test_attention_defaults_to_levels_of_at_most_256_positions() -> None:
    def levels(shape: tuple[int, ...]) -> list[bool]:
        network = UNet(shape, CondShape(), width=8, mults=(1, 1, 1, 1), blocks=1)
        return [b.attention is not None for b in network.blocks[:4]]

    assert levels((3, 32, 32)) == [False, True, True, True]
    assert levels((1, 8, 8)) == [True, True, True, True]
    assert levels((1, 1025)) == [False, False, False, True]
    assert levels((1, 1024)) == [False, False, True, True]
    assert levels((1, 16, 16, 16)) == [False, False, True, True]


@pytest.mark.parametrize(
    ("channels", "groups", "want"),
    [(8, None, 1), (64, None, 8), (96, None, 12), (512, None, 32), (7, None, 1), (64, 32, 32)],
)
def test_norm_groups(channels: int, groups: int | None, want: int) -> None:
    assert norm_groups(channels, groups) == want


@pytest.mark.parametrize(("channels", "head_dim", "want"), [(64, None, 1), (128, None, 2), (96, None, 2), (96, 32, 3)])
def test_head_count(channels: int, head_dim: int | None, want: int) -> None:
    assert head_count(channels, head_dim) == want


def test_a_head_that_does_not_fit_names_those_that_do() -> None:
    with pytest.raises(UserError, match="48 channels of a level; use one of 8, 12, 16, 24, 48"):
        head_count(48, 32)


def test_activations_stay_channels_last() -> None:
    """A copy to the other layout between two convolutions would cost more than a group norm."""
    network = UNet((3, 12, 12), CondShape(tokens=4), width=16, mults=(1, 2), blocks=1).eval()
    wrong: list[str] = []

    def look(name: str) -> Any:
        def hook(_: Any, args: tuple[Any, ...], out: Any) -> None:
            fields = [x for x in (args[0], out) if x.ndim == 4]
            wrong.extend(name for x in fields if not x.is_contiguous(memory_format=torch.channels_last))

        return hook

    for name, module in network.named_modules():
        if name:
            module.register_forward_hook(look(name))
    network(torch.randn(2, 3, 12, 12), torch.rand(2), Cond(tokens=torch.randn(2, 3, 4)))
    assert wrong == []


def test_dropout_acts_in_training_only() -> None:
    network = shaken(UNet((1, 8, 8), CondShape(), width=8, mults=(1,), dropout=0.5))
    x, noise = torch.randn(2, 1, 8, 8), torch.rand(2)
    assert torch.equal(network(x, noise), network(x, noise))
    network.train()
    assert not torch.allclose(network(x, noise), network(x, noise))


@pytest.mark.parametrize("shape", [(2, 256), (2, 64, 64), (2, 16, 16, 16)])
def test_positions_are_added_at_the_coarsest_level(shape: tuple[int, ...]) -> None:
    """With the layer at zero nothing changes; with it at one, the sinusoids of the coarsest positions are there."""
    torch.manual_seed(0)
    network = shaken(UNet(shape, CondShape(), width=16, mults=(1, 2), blocks=1, absolute=True))
    x, u, seen = torch.randn(2, *shape), torch.tensor([0.2, 0.7]), []
    network.middle[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(2)))
    with torch.no_grad():
        network.place.weight.zero_()
        network.place.bias.zero_()
        plain = network(x, u)
        state = {k: v for k, v in network.state_dict().items() if not k.startswith("place")}
        other = UNet(shape, CondShape(), width=16, mults=(1, 2), blocks=1)
        other.load_state_dict(state)
        assert torch.equal(other.eval()(x, u), plain)
        network.place.weight.copy_(torch.eye(32))
        network(x, u)
    added = (seen[1] - seen[0])[1].T
    grid = torch.tensor([n // 2 for n in shape[1:]])
    assert torch.allclose(added, absolute_positions(grid_positions(grid.tolist()), 32), atol=1e-5)


@pytest.mark.parametrize("absolute", [True, False])
def test_where_a_long_signal_ends_can_be_learned_with_positions_only(absolute: bool) -> None:
    """Of a number e, 1 before e and 0 after it, of noise that tells nothing. Best without positions: e everywhere, whose
    error is the mean of e (1 - e), 1/6."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"mults": (1, 1), "blocks": 1, "attention": (), "middle_attention": False}
    network = UNet((1, 512), CondShape(vector=2), width=16, absolute=absolute, **settings)
    optimizer, losses, steps = torch.optim.AdamW(network.parameters()), [], 150
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1.0, (steps - step) / 80)
        end = torch.rand(8)
        want = (torch.arange(512) / 512 < end[:, None]).float()[:, None]
        vector = torch.stack([end, 1 - end], 1) * 4 - 2
        loss = (network(torch.randn(8, 1, 512), torch.ones(8), Cond(vector=vector)) - want).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    found = sum(losses[-20:]) / 20
    assert found < 0.02 if absolute else found > 0.12


@pytest.mark.parametrize("size", [(9,), (5, 7), (3, 4, 5)])
@pytest.mark.parametrize("channels", [1, 2])
def test_convolutions_go_on_in_channels_last_memory(channels: int, size: tuple[int, ...]) -> None:
    """Also those of one channel, whose layout torch can't tell from its own and would go on in that."""
    x = to_inner(torch.randn(2, channels, *size))
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    assert apply_conv(conv(len(size), channels, 8), x).is_contiguous(memory_format=layout)
