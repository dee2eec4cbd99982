"""The two-stream transformer: conformance, the DiT that it is without a second stream, and what its streams see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.core.cond import Cond, CondShape
from sfumato.errors import UserError
from sfumato.nn import DiT, MMDiT
from sfumato.nn.mmdit import MMDiTBlock
from sfumato.nn.recompute import recompute
from sfumato.nn.sizes import SIZES
from sfumato.spec import Spec
from sfumato.testing import check_network

SMALL: dict[str, Any] = {"width": 24, "depth": 2, "heads": 2}
COND = CondShape(vector=3, tokens=5)


def shaken(network: Any, size: float = 0.2) -> Any:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return network.eval()


def made(shape: tuple[int, ...] = (2, 6, 4), cond: CondShape = COND, **settings: Any) -> MMDiT:
    torch.manual_seed(0)
    network: MMDiT = shaken(MMDiT(shape, cond, **{**SMALL, **settings}).double())
    return network


def asked(shape: tuple[int, ...] = (2, 6, 4), length: int = 4) -> tuple[Tensor, Tensor, Cond]:
    g = torch.Generator().manual_seed(1)
    x, vector, tokens = (torch.randn(2, *s, dtype=torch.float64, generator=g) for s in (shape, (3,), (length, 5)))
    mask = torch.tensor([[True] * length, [True] * (length - 2) + [False] * 2])
    return x, torch.tensor([0.3, 0.8]).double(), Cond(vector, tokens, mask)


@pytest.mark.parametrize("single", [0, 2])
def test_conforms(single: int) -> None:
    check_network(Spec(MMDiT, **SMALL, single=single))


def as_dit(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Names of a DiT for the weights of an MM-DiT without tokens."""
    named = {}
    for key, value in state.items():
        new = key.replace("joint.", "layers.").replace(".patches.", ".")
        if key.startswith("single."):
            _, number, rest = key.split(".", 2)
            new = f"layers.{depth + int(number)}.{rest}"
        named[new] = value
    return named


@pytest.mark.parametrize(("shape", "single"), [((1, 9), 0), ((2, 6, 5), 1), ((2, 3, 4, 2), 0)], ids=str)
def test_without_tokens_it_is_a_dit(shape: tuple[int, ...], single: int) -> None:
    cond = CondShape(vector=3)
    network = made(shape, cond, single=single)
    dit = DiT(shape, cond, width=24, depth=2 + single, heads=2).double().eval()
    dit.load_state_dict(as_dit(network.state_dict(), 2))
    x, noise, given = asked(shape)
    given = Cond(vector=given.vector)
    torch.testing.assert_close(network(x, noise, given), dit(x, noise, given), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("single", [0, 1])
def test_all_tokens_masked_is_the_same_network_without_them(single: int) -> None:
    """Patches of a sample whose tokens are all masked see each other alone."""
    network = made(single=single)
    x, noise, cond = asked()
    nobody = Cond(cond.vector, cond.tokens, torch.zeros_like(cond.mask))  # type: ignore[arg-type]
    alone = made(cond=CondShape(vector=3), single=single)
    own = alone.state_dict()
    whole = network.state_dict()
    width = 24
    taken = {k: whole[k] for k in own if not k.startswith("modulation")}
    rows, first = [], 0
    for part in network.mod_widths:  # of a joint block, the six parts of the patches come first
        rows.append(torch.arange(first, first + (6 * width if part > 2 * width else part)))
        first += part
    taken |= {k: whole[k][torch.cat(rows)] for k in ("modulation.weight", "modulation.bias")}
    alone.load_state_dict(taken)
    want = alone(x, noise, Cond(cond.vector))
    torch.testing.assert_close(network(x, noise, nobody), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("single", [0, 1])
def test_the_order_of_tokens_does_not_count(single: int) -> None:
    """Tokens have no position of their own here: padding may stand anywhere."""
    network = made(single=single)
    x, noise, cond = asked()
    order = torch.tensor([3, 1, 0, 2])
    turned = Cond(cond.vector, cond.tokens[:, order], cond.mask[:, order])  # type: ignore[index]
    torch.testing.assert_close(network(x, noise, turned), network(x, noise, cond), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("single", [0, 1])
def test_masked_tokens_change_nothing(single: int) -> None:
    network = made(single=single)
    x, noise, cond = asked()
    longer = cond.pad(9)
    assert longer.tokens is not None and longer.mask is not None
    junk = torch.where(longer.mask[:, :, None], longer.tokens, torch.full_like(longer.tokens, 7.0))
    after = network(x, noise, Cond(cond.vector, junk, longer.mask))
    torch.testing.assert_close(after, network(x, noise, cond), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth", [1, 2])
def test_every_real_token_reaches_the_patches(depth: int) -> None:
    network = made(depth=depth)
    x, noise, cond = asked()
    assert cond.tokens is not None and cond.mask is not None
    tokens = cond.tokens.clone().requires_grad_()
    network(x, noise, Cond(cond.vector, tokens, cond.mask)).square().sum().backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad.abs().sum(-1) > 0, cond.mask)


@pytest.mark.parametrize("last", [False, True])
def test_a_block_equals_that_of_diffusers(last: bool) -> None:
    """Its JointTransformerBlock, the one of Stable Diffusion 3.5, on equal weights."""
    peer_module = pytest.importorskip("diffusers.models.attention")
    torch.manual_seed(0)
    width, heads = 24, 2
    peer = peer_module.JointTransformerBlock(width, heads, width // heads, context_pre_only=last, qk_norm="rms_norm")
    peer = shaken(peer.double())
    block = MMDiTBlock(width, heads, 4 * width, True, 0.0, tokens=True, last=last).double().eval()
    block.load_state_dict(from_diffusers(peer.state_dict(), last), strict=True)
    x, c, e = (torch.randn(2, *s, dtype=torch.float64) for s in ((6, width), (3, width), (width,)))
    emb = torch.nn.functional.silu(e)
    words = peer.norm1_context.linear(emb)
    mod = torch.cat([peer.norm1.linear(emb), words.roll(width, -1) if last else words], -1)  # theirs: scale, shift
    want_c, want_x = peer(hidden_states=x, encoder_hidden_states=c, temb=e)
    no_turn = torch.stack([torch.ones(6, width // heads // 2), torch.zeros(6, width // heads // 2)]).double()
    got_x, got_c = block(x, c, mod, no_turn, None)
    torch.testing.assert_close(got_x, want_x, rtol=1e-5, atol=1e-5)  # its norms are float32
    if not last:
        torch.testing.assert_close(got_c, want_c, rtol=1e-5, atol=1e-5)


def from_diffusers(theirs: dict[str, Tensor], last: bool) -> dict[str, Tensor]:
    """Our names for the weights of a JointTransformerBlock, but for its modulation."""
    made = {}
    for end in ("weight", "bias"):
        patches, words = "patches.attention", "words.attention"
        made[f"{patches}.qkv.{end}"] = torch.cat([theirs[f"attn.to_{k}.{end}"] for k in "qkv"])
        made[f"{patches}.out.{end}"] = theirs[f"attn.to_out.0.{end}"]
        made[f"patches.mlp_in.{end}"] = theirs[f"ff.net.0.proj.{end}"]
        made[f"patches.mlp_out.{end}"] = theirs[f"ff.net.2.{end}"]
        if last:
            made[f"listened.kv.{end}"] = torch.cat([theirs[f"attn.add_{k}_proj.{end}"] for k in "kv"])
            continue
        made[f"{words}.qkv.{end}"] = torch.cat([theirs[f"attn.add_{k}_proj.{end}"] for k in "qkv"])
        made[f"{words}.out.{end}"] = theirs[f"attn.to_add_out.{end}"]
        made[f"words.mlp_in.{end}"] = theirs[f"ff_context.net.0.proj.{end}"]
        made[f"words.mlp_out.{end}"] = theirs[f"ff_context.net.2.{end}"]
    made["patches.attention.q_scale"] = theirs["attn.norm_q.weight"]
    made["patches.attention.k_scale"] = theirs["attn.norm_k.weight"]
    made["listened.k_scale" if last else "words.attention.k_scale"] = theirs["attn.norm_added_k.weight"]
    if not last:
        made["words.attention.q_scale"] = theirs["attn.norm_added_q.weight"]
    return made


def test_perturbed_patches_see_themselves_and_the_tokens() -> None:
    """In the only block: a change of one patch reaches its own output alone, a change of a token all."""
    network = made((1, 8), depth=1, patch=2, absolute=False)
    worse = network.perturbed()
    x, noise, cond = asked((1, 8))
    other = x.clone()
    other[:, :, 2:4] += 1
    changed = (worse(other, noise, cond) - worse(x, noise, cond)).abs().sum((0, 1)) > 1e-9
    assert changed.tolist() == [False, False, True, True, False, False, False, False]
    told = Cond(cond.vector, cond.tokens + 1, cond.mask)  # type: ignore[operator]
    assert bool(((worse(x, noise, told) - worse(x, noise, cond)).abs() > 0).any())
    assert not torch.allclose(worse(x, noise, cond), network(x, noise, cond))
    with pytest.raises(UserError, match="this block of the mmdit has no self-attention; those that have are 0"):
        network.perturbed((1,))


def test_perturbed_of_one_patch_is_the_network() -> None:
    network = made((1, 2), depth=2, patch=2)
    x, noise, cond = asked((1, 2))
    worse = network.perturbed((0, 1))
    torch.testing.assert_close(worse(x, noise, cond), network(x, noise, cond), rtol=1e-12, atol=1e-12)


def test_recomputed_gradients_are_the_same() -> None:
    x, noise, cond = asked()
    plain, twice = made(single=1).train(), made(single=1).train()
    recompute(twice, range(3))
    for network in (plain, twice):
        network(x, noise, cond).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), twice.parameters()):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(b.grad, a.grad, msg=name)


@pytest.mark.parametrize("size", ["s", "b", "l", "xl"])
@pytest.mark.parametrize("kind", [DiT, MMDiT])
def test_one_dial_for_the_size(kind: type[DiT] | type[MMDiT], size: str) -> None:
    """18 width^2 a block: attention 4, MLP 8, modulation 6. Table 1 of the DiT paper has 33, 130, 458 and 675 M parameters,
    with an embedding of labels, which is none here, among them."""
    with torch.device("meta"):
        network = kind((4, 32, 32), CondShape(), size=size, absolute=False, qk_norm=False)
    width, depth, _ = SIZES[size]
    count = sum(p.numel() for p in network.parameters())
    blocks = depth * (18 * width**2 + 15 * width)
    rest = 2 * (width**2 + width) + 2 * width**2 + 2 * width + 2 * (16 * width) + width + 16
    assert count == blocks + rest
    paper = {"s": 33, "b": 130, "l": 458, "xl": 675}[size]
    assert abs(count / 1e6 - paper) < 0.025 * paper


def test_a_setting_goes_before_the_size() -> None:
    with torch.device("meta"):
        network = MMDiT((1, 8, 8), COND, size="s", depth=2)
    assert len(network.blocks) == 2 and network.stem.out_features == 384


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"single": -1}, "single = -1 must be"),
        ({"heads": 5}, "mmdit: heads = 5 does not split width = 24.*use heads=4"),
        ({"depth": 0}, "mmdit: depth = 0 must be at least 1"),
        ({"patch": (2,)}, "mmdit: patch = .* has 1 entries for 2 dimensions"),
    ],
)
def test_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        MMDiT((1, 8, 8), COND, **{**SMALL, **settings})
