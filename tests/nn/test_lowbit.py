"""Low-bit weights against formulas in float64 and against plain networks of the rounded weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from tests.tiny import tiny_pipeline
from torch import Tensor, nn

from sfumato.core import Cond, CondShape, Network
from sfumato.errors import UserError
from sfumato.nn import MLP, DiT, UNet, fused, lowbit
from sfumato.nn.captured import Captured
from sfumato.nn.layers import apply_linear
from sfumato.nn.lowbit import block_linears, fp8_training, is_lowbit, weight_bytes
from sfumato.nn.recompute import compile_blocks

needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="no GPU with fp8 products"
)
KINDS = ["int8", "int8-dynamic", "fp8"]
BATCH, LENGTH, TOKENS = 3, 5, 32


@pytest.fixture
def fp8_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fp8 run where we are: a CPU has the products, only slow, and torchao does not know."""
    if torch.cuda.is_available():
        pytest.skip("tested on the GPU itself")
    monkeypatch.setattr(lowbit, "_check_fp8", lambda *_: None)
    if find_spec("torchao") is not None:
        from torchao.quantization import quant_api

        monkeypatch.setattr(quant_api, "_check_hardware_support", lambda _: None)


def _shaken(network: nn.Module, seed: int = 0) -> Any:
    """Weights such that every part matters: matrices that keep the size of what goes through, offsets that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            spread = p[0].numel() ** -0.5 if p.ndim > 1 else 0.3
            p.add_(spread * torch.randn(p.shape, generator=generator))
    return network.eval()


def _dit(**more: Any) -> DiT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dit: DiT = _shaken(DiT((3, 8, 8), CondShape(vector=16, tokens=TOKENS), width=64, depth=3, heads=2, **more))
    return dit


def _layer(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Linear, Tensor]:
    """A network of one linear layer, the layer, and tokens for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(64, 96).to(dtype)
    network = nn.Module()
    network.blocks = nn.ModuleList([nn.Sequential(layer)])
    return network, layer, torch.randn(2, 75, 64, generator=torch.Generator().manual_seed(2)).to(dtype)


def _asked(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Cond]:
    generator = torch.Generator().manual_seed(1)
    x, vector, tokens = (
        torch.randn(BATCH, *size, generator=generator) for size in ((3, 8, 8), (16,), (LENGTH, TOKENS))
    )
    return x, torch.linspace(0.1, 0.9, BATCH), Cond(vector=vector.to(dtype), tokens=tokens.to(dtype))


def _apart(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


@torch.no_grad()
def _out(network: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    return network(*_asked(dtype))


# ---------------------------------------------------------------- which layers


def test_a_transformer_changes_attention_and_mlp_of_its_blocks() -> None:
    parts = ["attention.qkv", "attention.out", "cross.q", "cross.kv", "cross.out", "mlp_in", "mlp_out"]
    every = {f"layers.{i}.{part}" for i in range(3) for part in parts}
    assert set(block_linears(_dit())) == every
    assert set(block_linears(_dit(), few_rows=False)) == {name for name in every if not name.endswith(".kv")}
    assert {n.rpartition(".")[2] for n in block_linears(_dit(), least=65)} == set()
    assert {n.rpartition(".")[2] for n in block_linears(_dit(mlp_ratio=1.5), least=64)} == {
        "qkv", "out", "q", "mlp_in", "mlp_out"
    }  # fmt: skip


def test_sizes_that_are_no_multiple_of_16_are_left() -> None:
    narrow = DiT((3, 8, 8), CondShape(), width=72, depth=1, heads=2, mlp_ratio=16 / 9)
    assert block_linears(narrow) == {}


def test_a_unet_changes_attention_alone() -> None:
    names = set(block_linears(UNet((3, 8, 8), CondShape(tokens=32), width=32, mults=(1, 2), blocks=1)))
    assert names and all(".attention.attention." in name or ".attention.cross." in name for name in names)
    assert {name.rpartition(".")[2] for name in names} == {"qkv", "q", "kv", "out"}


def test_a_perceptron_keeps_its_modulation() -> None:
    assert set(block_linears(MLP((12,), CondShape(), width=32, depth=1))) == {"layers.0.first", "layers.0.second"}


# ---------------------------------------------------------------- what is refused


def test_what_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="dtype=int4: no such low-bit weights; use int8, int8-dynamic or fp8"):
        lowbit.lowbit(_dit(), "int4")
    monkeypatch.setattr(lowbit, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"dtype=int8: needs torchao.*pip install sfumato\[lowbit\]"):
        lowbit.lowbit(_dit(), "int8")
    with pytest.raises(UserError, match=r"train.fp8=true: needs torchao.*pip install sfumato\[lowbit\]"):
        fp8_training(_dit())


def test_a_network_or_a_device_without_such_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowbit, "_need_torchao", lambda _: None)
    bare = UNet((3, 8, 8), CondShape(), width=16, mults=(1, 2), blocks=1, attention=(), middle_attention=False)
    with pytest.raises(UserError, match="'unet' has no attention or MLP in its blocks"):
        lowbit.lowbit(bare, "int8")
    with pytest.raises(UserError, match=r"dtype=fp8: the network is on cpu.*use dtype=int8"):
        lowbit.lowbit(_dit(), "fp8")
    with pytest.raises(UserError, match=r"train.fp8=true: the network is on cpu.*leave it unset"):
        fp8_training(_dit())
    monkeypatch.setattr(lowbit, "_check_fp8", lambda *_: None)
    with pytest.raises(UserError, match="weights are float32 and must be bfloat16"):
        lowbit.lowbit(_dit(), "fp8")
    monkeypatch.setattr(lowbit, "_device", lambda _: torch.device("cuda"))
    with pytest.raises(UserError, match="on a GPU this needs compiled blocks, and those of the network 'unet' are not"):
        lowbit.lowbit(UNet((3, 8, 8), CondShape(), width=16, mults=(1, 2), blocks=1), "int8-dynamic")
    with pytest.raises(UserError, match="no linear layers of 1024 and more"):
        fp8_training(_dit())
    with pytest.raises(UserError, match="scales=column: use row or tensor"):
        lowbit.lowbit(_dit(), "fp8", scales="column")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="recipe=best: use rowwise or tensorwise"):
        fp8_training(_dit(), recipe="best")  # type: ignore[arg-type]


@needs_torchao
def test_low_bit_weights_are_not_made_twice() -> None:
    network = _dit()
    lowbit.lowbit(network, "int8")
    with pytest.raises(UserError, match="low-bit already; load the model again"):
        lowbit.lowbit(network, "int8-dynamic")


# ---------------------------------------------------------------- int8


@needs_torchao
def test_int8_weights_are_within_half_a_step_of_each_row() -> None:
    """A row's numbers are 255 steps apart between its largest and its negative: no entry moves by more than half a step."""
    plain, network = _dit(), _dit()
    lowbit.lowbit(network, "int8")
    for name, layer in block_linears(network).items():
        exact = plain.get_submodule(name).weight.double()
        held: Any = layer.weight
        moved = (held.qdata.double() * held.scale.double().view(-1, 1) - exact).abs()
        assert held.qdata.dtype == torch.int8
        assert bool((moved <= exact.abs().amax(1, keepdim=True) / 255 * (1 + 1e-4)).all()), name


@needs_torchao
def test_int8_is_the_network_of_the_rounded_weights() -> None:
    plain, network = _dit(), _dit()
    lowbit.lowbit(network, "int8")
    rounded = copy.deepcopy(plain)
    with torch.no_grad():
        for name, layer in block_linears(network).items():
            rounded.get_submodule(name).weight.copy_(layer.weight.dequantize())
    assert 1e-3 < _apart(_out(network), _out(plain)) < 0.015
    assert _apart(_out(network), _out(rounded)) < 2e-6
    x, noise, cond = _asked()
    gradients = []
    for net in (network, rounded):
        x = x.detach().requires_grad_()
        gradients.append(torch.autograd.grad(net(x, noise, cond).square().sum(), x)[0])
    assert _apart(*gradients) < 2e-6


@needs_torchao
def test_int8_dynamic_is_a_product_of_whole_numbers() -> None:
    """y = s_x s_w (X W^T) + b with X = round(x / s_x), s_x the largest of a token over 127.5, and W likewise."""
    network, layer, x = _layer()
    with torch.no_grad():  # the largest positive: -127.5 and 127.5 would be rounded to -128 and 127
        for rows in (x, layer.weight):
            largest = rows.gather(-1, rows.abs().argmax(-1, keepdim=True))
            rows.mul_(largest.sign())

    def rounded(rows: Tensor) -> Tensor:
        step = rows.abs().amax(-1, keepdim=True) / 127.5
        return (rows / step).round().clamp(-128, 127) * step

    want = rounded(x.double()) @ rounded(layer.weight.detach().double()).T + layer.bias.double()
    exact = layer(x)
    lowbit.lowbit(network, "int8-dynamic")
    with torch.no_grad():
        assert _apart(layer(x), want) < 2e-6
    assert 2e-3 < _apart(want, exact) < 0.01


@needs_torchao
def test_int8_dynamic_costs_a_percent_of_a_network() -> None:
    plain, network = _dit(), _dit()
    lowbit.lowbit(network, "int8-dynamic")
    assert 1e-4 < _apart(_out(network), _out(plain)) < 0.02


# ---------------------------------------------------------------- fp8


@needs_torchao
@pytest.mark.parametrize("scales", ["row", "tensor"])
def test_fp8_is_a_product_of_e4m3(scales: Any, fp8_here: None) -> None:
    """y = s_x s_w (X W^T) + b with X = e4m3(x / s_x), s_x the largest of a token (or of all) over 448, and W likewise.

    e4m3 has 3 bits after the point: a factor is off by 1/16 at most, a product by 1/8 + 1/256 of sum |x| |w|. The divisors s
    are rounded to bfloat16.
    """
    network, layer, x = _layer(torch.bfloat16)
    weight = layer.weight.detach().double()

    def rounded(rows: Tensor) -> Tensor:
        largest = rows.abs().amax(-1, keepdim=True) if scales == "row" else rows.abs().max()
        step = (largest / 448).float()
        return ((rows.float() / step).to(torch.float8_e4m3fn).float() * step).double()

    want = rounded(x) @ rounded(layer.weight.detach()).T + layer.bias.double()
    exact = x.double() @ weight.T + layer.bias.double()
    lowbit.lowbit(network, "fp8", scales=scales)
    with torch.no_grad():
        got = layer(x)
    assert _apart(got, want) < 4e-3  # the output is bfloat16
    assert bool(((got.double() - exact).abs() <= 0.13 * (x.double().abs() @ weight.abs().T) + 0.02).all())
    assert 0.01 < _apart(got, exact) < 0.06


@needs_torchao
@pytest.mark.parametrize("scales", ["row", "tensor"])
def test_fp8_costs_some_percent_of_a_network(scales: Any, fp8_here: None) -> None:
    plain, network = _dit().to(torch.bfloat16), _dit().to(torch.bfloat16)
    lowbit.lowbit(network, "fp8", scales=scales)
    assert 0.01 < _apart(_out(network, torch.bfloat16), _out(plain, torch.bfloat16)) < 0.1


# ---------------------------------------------------------------- around it


@needs_torchao
@pytest.mark.parametrize("kind", KINDS)
def test_everything_else_stays_as_it_was(kind: str, fp8_here: None) -> None:
    plain, network = _dit().to(torch.bfloat16), _dit().to(torch.bfloat16)
    done = lowbit.lowbit(network, kind)
    layers = block_linears(network, few_rows=kind == "int8")
    changed = {f"{name}.weight" for name in layers}
    assert done.layers == len(changed) == (21 if kind == "int8" else 18)
    assert done.of == sum(isinstance(m, nn.Linear) for m in plain.modules())
    assert is_lowbit(network) and not is_lowbit(plain)
    now = dict(network.named_parameters())
    assert list(now) == [name for name, _ in plain.named_parameters()]
    for name, was in plain.named_parameters():
        assert now[name].shape == was.shape and now[name].requires_grad == (name not in changed)
        if name not in changed:
            assert torch.equal(now[name], was), name
    assert [m.training for m in network.modules()] == [m.training for m in plain.modules()]
    entries = sum(layer.weight.numel() for layer in layers.values())
    rows = sum(layer.out_features for layer in layers.values())
    assert done.before == weight_bytes(plain) and done.after == weight_bytes(network)
    extra = done.after - (done.before - entries)  # one byte of two is saved; factors and zeros of every row remain
    assert extra == rows * (4 if kind == "fp8" else 5)
    assert str(done) == (
        f"{kind} weights in {done.layers} of {done.of} layers: "
        f"{done.before / 1e6:.1f} MB became {done.after / 1e6:.1f} MB"
    )


@needs_torchao
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_compile_without_a_break_and_copies_are_equal(kind: str, fp8_here: None) -> None:
    network = _dit().to(torch.bfloat16)
    lowbit.lowbit(network, kind)
    want, twin = _out(network, torch.bfloat16), copy.deepcopy(network)
    assert torch.equal(_out(twin, torch.bfloat16), want)
    assert torch.equal(_out(Captured(network), torch.bfloat16), want)  # off the GPU, the network itself
    torch._dynamo.reset()
    compile_blocks(twin, backend="aot_eager", fullgraph=True, dynamic=False)
    assert _apart(_out(twin, torch.bfloat16), want) < 0.02
    torch._dynamo.reset()


@needs_torchao
@pytest.mark.parametrize("kind", ["int8-dynamic", "fp8"])
def test_a_gradient_that_is_not_there_is_an_error(kind: str, fp8_here: None) -> None:
    network = _dit().to(torch.bfloat16)
    lowbit.lowbit(network, kind)
    x, noise, cond = _asked(torch.bfloat16)
    assert torch.isfinite(network(x, noise, cond)).all()
    with pytest.raises(UserError, match="low-bit products have none; use dtype=int8"):
        network(x.requires_grad_(), noise, cond)
    with torch.no_grad():
        network(x, noise, cond)


@needs_torchao
@pytest.mark.parametrize("network", ["dit", "unet"])
def test_a_pipeline_samples_with_int8_weights(network: str) -> None:
    settings: dict[str, Any] = {"n": 2, "num_inference_steps": 4, "guidance_scale": 1.5, "output_type": "pt"}
    pipeline = tiny_pipeline("label", network)
    want = pipeline(label=3, **settings).media
    done = lowbit.lowbit(pipeline.model.denoiser.network, "int8")
    got = pipeline(label=3, **settings).media
    assert done.layers > 0
    assert float((got.float() - want.float()).abs().mean()) < 2  # of 255
    assert not torch.equal(got, want)


@needs_torchao
def test_fused_parts_leave_low_bit_layers_alone(monkeypatch: pytest.MonkeyPatch, fp8_here: None) -> None:
    """What a fused part reads as a plain matrix is not one: such layers take their own path."""
    network, trained = _dit(), _dit()
    lowbit.lowbit(network, "int8")
    fp8_training(trained, least=16)
    monkeypatch.setattr(fused, "_interpreted", True)
    monkeypatch.setattr(fused, "linear", lambda *_: pytest.fail("a fused part took it"))
    x = torch.randn(2, 5, 64)
    for net in (network, trained):
        layer = net.get_submodule("layers.0.mlp_in")
        assert isinstance(layer, nn.Linear)
        assert torch.equal(apply_linear(layer, x), layer(x))
    assert fused.fits(x, _dit().head.weight)


# ---------------------------------------------------------------- training


@needs_torchao
@pytest.mark.parametrize(("recipe", "bound"), [("rowwise", 0.06), ("tensorwise", 0.09)])
def test_fp8_training_has_the_gradients_but_for_rounding(recipe: Any, bound: float, fp8_here: None) -> None:
    """Output and gradients of a layer are within `bound`, and their size is right to 1%: errors have random signs."""
    results = []
    for fp8 in (True, False):
        network, layer, x = _layer(torch.bfloat16)
        weight, bias = layer.weight, layer.bias
        if fp8:
            assert fp8_training(network, recipe=recipe, least=64) == 1
            layer = network.get_submodule("blocks.0.0")
        assert layer.weight is weight and layer.bias is bias and not is_lowbit(network)
        out = layer(x.requires_grad_())
        pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(out.dtype)
        (out * pull).sum().backward()
        results.append([out.detach(), x.grad, weight.grad, bias.grad])
    for name, got, want in zip(("output", "input", "weight"), *results):
        assert got.dtype == want.dtype == torch.bfloat16
        assert 0.02 < _apart(got, want) < bound, name
        along = (got.double() * want.double()).sum() / want.double().square().sum()
        assert abs(float(along) - 1) < 0.01, name
    assert torch.equal(results[0][3], results[1][3])


@needs_torchao
def test_the_copy_that_a_recorded_step_computes_with_trains_in_fp8(fp8_here: None) -> None:
    """As `train.step.GraphStep` has it: the copies of the weights stay those that are renewed after every step."""
    from tests.tiny import tiny_model, tiny_spec

    from sfumato.core import DenoisingLoss
    from sfumato.train import DiffusionTask
    from sfumato.train.step import working_copy

    task = DiffusionTask(tiny_model(tiny_spec()), DenoisingLoss())
    working, pairs = working_copy(task, torch.bfloat16)
    assert isinstance(working.halved, Network)
    assert fp8_training(working.halved, least=16) > 0
    held = {id(p) for p in working.parameters()}
    assert all(id(half) in held for _, half in pairs)
    assert {type(m) for m in task.modules() if isinstance(m, nn.Linear)} == {nn.Linear}


@needs_torchao
def test_a_network_learns_in_fp8_what_it_learns_in_bfloat16(fp8_here: None) -> None:
    losses = []
    for fp8 in (False, True):
        network = _dit(patch=4).train()
        target = torch.randn(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(3))
        if fp8:
            fp8_training(network, least=16)
        optimizer = torch.optim.Adam(network.parameters(), 2e-3)
        for _ in range(120):
            loss = (network(*_asked()) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] < 1e-3 and losses[1] < 5e-3  # from above 1


# ---------------------------------------------------------------- a GPU


@needs_torchao
@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu_recorded_and_compiled_blocks_equal_the_network(kind: str, compiled: bool) -> None:
    if kind == "int8-dynamic" and not compiled:
        pytest.skip("needs compiled blocks")
    network = _dit().to("cuda", torch.bfloat16)
    x, noise, cond = _asked(torch.bfloat16)
    asked = (
        x.cuda(),
        noise.cuda(),
        Cond(**{k: v.cuda() for k, v in {"vector": cond.vector, "tokens": cond.tokens}.items() if v is not None}),
    )
    with torch.no_grad():
        exact = network(*asked)
        lowbit.lowbit(network, kind)
        want = network(*asked)
        got = Captured(network, compiled=compiled)(*asked)
    assert _apart(want, exact) < (0.1 if kind == "fp8" else 0.025)
    # fp8: 0.040 was seen once, on an H100, where 0.03 had been guessed; why it is more than int8's has not been looked into.
    assert _apart(got, want) < ((0.06 if kind == "fp8" else 0.03) if compiled else 1e-6)
