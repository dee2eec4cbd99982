"""Predictions of memory against what torch's CPU allocator measures, and what is said when memory does not suffice."""

from __future__ import annotations

import functools
import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from sfumato.codecs import Arrays
from sfumato.conditioners import Conditioner, Label, Text
from sfumato.core import Batch, DataInfo, DenoisingLoss, Draws, Flow, Loss, Network, Velocity
from sfumato.errors import SfumatoError, UserError
from sfumato.model import ModelSpec
from sfumato.nn import MLP, DiT, UNet
from sfumato.nn.attention import rms_norm
from sfumato.nn.recompute import blocks_of, first_blocks, recompute
from sfumato.recipes import load_recipe
from sfumato.recipes.build import prepare
from sfumato.spec import Spec
from sfumato.train import DiffusionTask, Task, Training, estimate, memory
from sfumato.train.memory import (
    GIB,
    Memory,
    Predictor,
    explain_oom,
    explain_sampling_oom,
    fitted,
    network_of,
    predict,
    recomputed,
    sampling_memory,
    several,
)
from sfumato.train.optim8 import AdamW8
from sfumato.train.settings import parse_memory
from sfumato.train.simulate import META, Alive, Rules, on_meta
from tests.train.tiny import TinyData, make_task

NETWORKS: dict[str, Spec[Network]] = {
    "dit": Spec(DiT, width=64, depth=3, heads=2, patch=2),
    "unet": Spec(UNet, width=16, mults=(1, 2), blocks=1, groups=4),
    "mlp": Spec(MLP, width=64, depth=3),
}
CONDITIONERS: dict[str, Spec[Conditioner]] = {
    "label": Spec(Label, width=16),
    "text": Spec(Text, width=16, depth=1, heads=2),
}
CPU: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
GPU: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}


def make(network: str, conditioner: str | None = None, **more: Any) -> tuple[DiffusionTask, Batch]:
    info = DataInfo((2, 16, 16), "array", labels=("a", "b"), captions=True)
    spec = ModelSpec(
        info,
        NETWORKS[network].with_(**more),
        Spec(Flow),
        Spec(Velocity),
        Spec(Arrays),
        CONDITIONERS[conditioner] if conditioner else None,
    )
    torch.manual_seed(0)
    batch = Batch(torch.randn(3, 2, 16, 16), {"label": torch.tensor([0, 1, 0]), "caption": ["a word", "two", ""]})
    return DiffusionTask(spec.build(), DenoisingLoss()), batch


def training(**more: Any) -> Training:
    return Training(**{"samples": 1, "batch": 32, **more})


def measured(task: Task, batch: Batch, settings: Training) -> int:
    """Bytes that torch's allocator gave at most in a step on the CPU, beside what was there before it."""
    micro = settings.batch // settings.accumulate
    network = network_of(task)
    assert network is not None
    optimizer = settings.optimizer.build(task, settings)
    whole = several(batch, micro)
    with recompute(network, first_blocks(network, settings.recompute)):
        for counted in (False, True):
            optimizer.zero()
            if not counted:
                task.loss(whole, Draws(0, 0, micro)).value.backward()
                continue
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
                for part in range(min(2, settings.accumulate)):
                    task.loss(whole, Draws(0, part * micro, micro)).value.backward()
                optimizer.step(1e-3, torch.zeros(()))
    now = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize(
    ("network", "conditioner", "more"),
    [
        ("dit", None, {}),
        ("dit", "text", {"batch": 16}),
        ("dit", None, {"recompute": 1.0}),
        ("dit", None, {"accumulate": 4}),
        ("unet", "label", {}),
        ("unet", None, {"recompute": 0.5}),
        ("unet", None, {"optimizer": Spec(AdamW8), "batch": 8}),
        ("mlp", "label", {"batch": 256}),
    ],
)
def test_it_is_what_the_allocator_measures(network: str, conditioner: str | None, more: dict[str, Any]) -> None:
    task, batch = make(network, conditioner)
    settings = training(**more)
    found = predict(task, settings, batch, **CPU)
    moving = found.gradients + found.activations + found.temporary
    assert moving == pytest.approx(measured(task, batch, settings), rel=0.1)


def test_its_parts_are_what_they_are_named() -> None:
    task, batch = make("dit", "label")
    count = sum(p.numel() for p in task.parameters())
    buffers = sum(b.numel() * b.element_size() for b in task.buffers())
    grains = 512 * len([*task.parameters(), *task.buffers()])
    found = predict(task, training(ema=(0.05, 0.1)), batch, **CPU)
    assert 0 <= found.weights - 4 * count - buffers <= grains
    assert 0 <= found.optimizer - 8 * count <= 2 * grains
    assert found.average == 2 * found.weights
    assert found.total == sum(v for k, v in found.to_dict().items() if k != "total") == found.to_dict()["total"]
    assert 0 <= predict(task, training(optimizer=Spec(AdamW8)), batch, **CPU).optimizer - 2.03 * count <= 3 * grains
    away = predict(task, training(offload="optimizer"), batch, **CPU)
    assert away.optimizer == 0 and away.average == found.weights
    assert predict(task, training(offload="all"), batch, **CPU).average == 0


def test_it_grows_and_shrinks_as_it_should() -> None:
    task, batch = make("dit")
    for where in (CPU, GPU):
        ask = Predictor(task, batch, **where)
        sizes = [ask(training(batch=n)).activations for n in (32, 64, 128)]
        assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.02)
        shares = [ask(training(batch=64, recompute=k / 3)).activations for k in range(4)]
        assert shares == sorted(shares, reverse=True) and shares[3] < 0.5 * shares[0]
        parts = [ask(training(batch=64, accumulate=n)).activations for n in (1, 2, 4)]
        assert parts == sorted(parts, reverse=True)
    half, whole = (
        predict(task, training(), batch, device="cuda", dtype=d, captured=False)
        for d in (torch.bfloat16, torch.float32)
    )
    assert half.activations < whole.activations


def test_a_captured_step_has_gradients_all_the_time_and_a_copy_in_half_precision() -> None:
    task, batch = make("dit", "label")
    count = sum(p.numel() for p in task.parameters())
    plain, captured = (predict(task, training(), batch, captured=c, **GPU) for c in (False, True))
    assert captured.gradients == pytest.approx(2 * count, rel=0.2)  # in the copies' type
    added = predict(task, training(batch=64, accumulate=2), batch, **GPU)
    assert added.gradients == pytest.approx(4 * count, rel=0.2)  # sums in float32
    assert captured.weights - plain.weights == pytest.approx(2 * count, rel=0.2)
    assert predict(task, training(), batch, **GPU) == captured
    for other in ({"compile": False}, {"offload": "optimizer"}):
        ask = Predictor(task, batch, **GPU)
        assert not ask.captures(training(**other))
    assert not Predictor(task, batch, **CPU).captures(training())


def test_nothing_of_the_task_changes() -> None:
    task, batch = make("unet", "text")
    before = {k: v.clone() for k, v in task.state_dict().items()}
    random = torch.get_rng_state()
    predict(task.eval(), training(recompute=1.0), batch, **GPU)
    assert all(torch.equal(v, before[k]) for k, v in task.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and not task.training
    network = network_of(task)
    assert network is not None and all("forward" not in block.__dict__ for block in blocks_of(network))
    assert all(p.grad is None for p in task.parameters())


def test_blocks_that_are_recomputed_already_are_counted_as_the_settings_say() -> None:
    task, batch = make("dit")
    plain = predict(task, training(), batch, **CPU)
    network = network_of(task)
    assert network is not None
    with recompute(network, [0, 1, 2]):
        assert predict(task, training(), batch, **CPU) == plain


class Looking(Task):
    """A task whose loss looks at a number."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_task()
        self.model = self.inner.model

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        loss = self.inner.loss(batch, draws)
        return loss._replace(value=loss.value * float(loss.value.detach()))


def test_a_task_that_looks_at_numbers_is_named() -> None:
    task = Looking()
    with pytest.raises(SfumatoError, match="can't be predicted, because a step of it does not run without numbers"):
        predict(task, training(), TinyData().fetch(range(4)), **CPU)
    cost = estimate(task, TinyData(), training(batch=16), device="cpu")
    assert cost.memory is None and "can't be predicted" in cost.unpredicted and cost.seconds_per_step is not None


# ---------------------------------------------------------------- the simulation


def test_storages_are_counted_once_and_while_they_live() -> None:
    with Alive() as alive:
        a = torch.empty(1000, device=META)
        assert alive.now == 4096
        b = a.view(10, 100)[3]
        assert alive.now == 4096
        c = torch.cat([a, a])
        assert alive.now == 4096 + 8192
        del a, c
        assert alive.now == 4096 and alive.peak == 4096 + 8192
        del b
        assert alive.now == 0


def test_a_copy_on_meta_shares_what_was_shared_and_holds_no_numbers() -> None:
    module = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    module[1].weight = module[0].weight
    twin = on_meta(module)
    assert twin[1].weight is twin[0].weight and all(p.is_meta and p.requires_grad for p in twin.parameters())
    assert not any(p.is_meta for p in module.parameters())


def test_casts_are_those_of_autocast_on_cuda() -> None:
    x, w = torch.empty(4, 6, device=META), torch.empty(6, 6, device=META, requires_grad=True)
    with Rules(torch.bfloat16, cuda=True) as rules:
        rules.begin()
        y = F.linear(x, w)
        assert y.dtype == torch.bfloat16
        assert F.layer_norm(y, (6,)).dtype == (y @ y.mT).softmax(-1).dtype == y.pow(2).dtype == torch.float32
        assert F.silu(y).dtype == F.gelu(y).dtype == y.square().dtype == torch.bfloat16
        assert F.linear(F.layer_norm(y, (6,)), w).dtype == torch.bfloat16
        q = torch.empty(2, 3, 5, 8, device=META)
        assert F.scaled_dot_product_attention(q, q, q).dtype == torch.bfloat16
    with Rules(torch.bfloat16, cuda=False):
        assert F.layer_norm(y, (6,)).dtype == torch.bfloat16
    with Rules(torch.float32, cuda=True):
        assert F.linear(x, w).dtype == torch.float32


def test_normed_queries_keep_one_number_a_row() -> None:
    q = torch.empty(2, 4, 64, 32, device=META, dtype=torch.bfloat16, requires_grad=True)
    gain = nn.Parameter(torch.empty(32, device=META))
    alive = Alive()
    alive.know([q, gain])
    with alive, Rules(torch.bfloat16, True):
        out = rms_norm(q, gain)
    assert out.dtype == torch.bfloat16
    assert alive.now == q.numel() * 2 + q.numel() // 32 * 4 + 512  # the output, its numbers, and the gain in bfloat16


def test_attention_keeps_no_matrix_of_pairs() -> None:
    q = torch.empty(1, 1, 4096, 8, device=META, requires_grad=True)
    with Alive() as alive, Rules(torch.float32, cuda=True):
        F.scaled_dot_product_attention(q, q, q).sum().backward()
    assert alive.peak < 4096 * 4096
    assert q.grad is not None and q.grad.shape == q.shape


# ---------------------------------------------------------------- what fits


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("40GiB", 40 * GIB),
        ("6GB", 6 * 10**9),
        ("512 MiB", 512 << 20),
        ("24", 24 * GIB),
        (1.5, GIB * 3 // 2),
        ("1e", None),
    ],
)
def test_amounts_of_memory(text: str | float, size: int | None) -> None:
    if size is not None:
        assert parse_memory(text) == size
        assert Training(samples=1, memory=text).memory == text
    for wrong in ("forty", "12 parsecs", "", "-1", "0", "1e", "GiB"):
        with pytest.raises(UserError, match=r"train.memory = .*: not an amount of memory; write 40GiB"):
            Training(samples=1, memory=wrong)


def test_the_fewest_blocks_and_then_the_fewest_parts_are_taken() -> None:
    task, batch = make("dit")
    ask = Predictor(task, batch, **CPU)
    settings = training()
    need = [ask(replace(settings, recompute=k / 3)).total for k in range(4)]
    assert ask.fit(settings, need[0]).settings == settings
    for k in (1, 2, 3):
        if need[k] < need[k - 1]:
            assert ask.fit(settings, need[k]).settings == replace(settings, recompute=k / 3)
    less = ask.fit(settings, min(need) - 1)
    assert less.settings.accumulate == 2 and less.memory.total < min(need)
    assert ask(less.settings) == less.memory
    with pytest.raises(UserError) as refused:
        ask.fit(settings, ask(replace(settings, accumulate=32, recompute=1.0, offload="all")).total)
    assert "set train.offload=all, which needs" in str(refused.value)
    with pytest.raises(UserError, match=r"train.memory = 0 MiB: a step of one sample.*; use a smaller network"):
        ask.fit(settings, 1000)


def test_the_fewest_parts_are_those_that_a_search_through_all_would_find() -> None:
    ask, settings = Predictor(*make("dit"), **CPU), training()
    totals = {
        n: ask(replace(settings, accumulate=n)).total for n in range(2, settings.batch + 1) if settings.batch % n == 0
    }
    for limit in {total + more for total in totals.values() for more in (0, -1)}:
        first = next((n for n, total in totals.items() if total <= limit), None)
        found = ask.fewest_parts(settings, limit)
        assert (None if found is None else found.settings.accumulate) == first


def test_settings_of_a_run_are_fitted_and_its_blocks_wrapped() -> None:
    task = make("dit")[0]
    settings, where = training(), {"device": torch.device("cpu"), "dtype": torch.float32}
    assert fitted(task, TinyData(), settings, **where) is settings
    tiny, limit = (
        make_task(width=256),
        predict(make_task(width=256), training(batch=256, accumulate=4), batch_of(8), **CPU),
    )
    asked = training(batch=256, memory=limit.total / GIB)
    assert fitted(tiny, TinyData(), asked, **where) == replace(asked, accumulate=4)
    assert len(recomputed(task, training(recompute=0.5))) == 2 and len(recomputed(tiny, training())) == 0
    with pytest.raises(UserError, match="has no list `blocks`"):
        recomputed(tiny, training(recompute=0.5))


def batch_of(n: int) -> Batch:
    return TinyData().fetch(range(n))


def test_a_network_without_blocks_is_computed_in_more_parts() -> None:
    task, data = make_task(width=64), TinyData()
    ask = Predictor(task, data.fetch(range(8)), **CPU)
    settings = training(batch=4096)
    fit = ask.fit(settings, ask(replace(settings, accumulate=4)).total)
    assert fit.settings == replace(settings, accumulate=4)


def test_a_dry_run_says_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    task, data = make_task(width=256), TinyData()
    settings = training(batch=256)
    free = estimate(task, data, settings, device="cpu")
    assert free.memory is not None and free.remedy is None and free.seconds_per_step is not None
    assert free.limit is not None and free.limit > free.memory.total
    module = importlib.import_module("sfumato.train.estimate")  # the package has the function of this name
    monkeypatch.setattr(module, "room", lambda device: int(0.9 * free.memory_bytes))
    tight = estimate(task, data, settings, device="cpu")
    assert tight.seconds_per_step is None and tight.samples == 1 and tight.minutes is None
    assert tight.remedy is not None and tight.remedy.startswith("set train.accumulate=")
    asked = estimate(task, data, replace(settings, memory=str(tight.limit / GIB)), device="cpu")
    assert asked.settings.accumulate > 1 and asked.memory_bytes <= tight.limit and asked.seconds_per_step is not None


def test_an_error_says_which_setting_to_change() -> None:
    task, batch = make("dit")
    settings = training()
    said = explain_oom(task, settings, batch, device=torch.device("cpu"), dtype=torch.float32)
    assert said.startswith("cpu is out of memory: a step with train.batch=32 needs about")
    assert "; set train.recompute=0.34 (" in said and " or train.accumulate=2 (" in said
    changed = replace(settings, recompute=0.34)
    ask = Predictor(task, batch, **CPU)
    assert ask(changed).total < 0.9 * ask(settings).total
    looking = explain_oom(
        Looking(), settings, TinyData().fetch(range(4)), device=torch.device("cpu"), dtype=torch.float32
    )
    assert looking == "cpu is out of memory in a step with train.batch=32; set train.accumulate=2"


def test_an_error_while_sampling_says_which_batch_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("unet", "label")[0].model
    where: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
    need = functools.partial(sampling_memory, model, **where)
    assert need(64) - need(32) == pytest.approx(2 * (need(32) - need(16)), rel=0.05)
    monkeypatch.setattr(memory, "room", lambda device: need(20))
    said = explain_sampling_oom(model, 64, **where)
    assert said.startswith("cpu is out of memory: 64 samples at once need about") and "; set batch=16 (" in said


def test_sampling_is_what_the_allocator_measures() -> None:
    model = make("dit")[0].model.eval()
    x, t = torch.randn(16, 2, 16, 16), torch.full((16,), 0.5, dtype=torch.float64)
    with torch.no_grad():
        model.denoiser(x, t)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            model.denoiser(x, t)
    now = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    weights = sum(p.numel() for p in model.parameters()) * 4
    ours = sampling_memory(model, 8, device="cpu", dtype=torch.float32)  # 8 guided: 16 through the network
    assert ours - weights == pytest.approx(most + 5 * x.nbytes, rel=0.25)


def test_memory_is_a_sum() -> None:
    assert Memory(1, 2, 3, 4, 5, 6).total == 21


def test_on_a_cpu_a_step_that_the_host_has_no_memory_for_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(load_recipe("digits", {"network.mults": "[1]", "network.blocks": "1"}))
    whole = prepared.estimate("cpu")
    assert whole.remedy is None and whole.seconds_per_step is not None
    assert whole.memory is not None
    for left, said in ((whole.memory.total, "set train."), (2**20, "use a smaller network: one sample at a time")):
        monkeypatch.setattr(memory, "free_memory", lambda left=left: left)  # a tenth of it is left to others
        small = prepared.estimate("cpu")
        assert small.seconds_per_step is None and small.remedy is not None and small.remedy.startswith(said)
