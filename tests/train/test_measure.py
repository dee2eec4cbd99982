"""Operations of a step against counts by hand, ceilings by name, and what a line of the log gets of them."""

from __future__ import annotations

from typing import final

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sfumato.codecs import Arrays
from sfumato.core import Batch, Cond, CondShape, DataInfo, DenoisingLoss, Draws, Flow, NetDenoiser, Network, Velocity
from sfumato.model import Model, ModelSpec
from sfumato.nn import DiT, UNet
from sfumato.spec import Spec
from sfumato.train import DiffusionTask, Training
from sfumato.train.measure import Use, ceiling, device_memory, step_flops
from sfumato.train.memory import recomputed
from tests.train.tiny import make_task

BATCH = Batch(torch.zeros(3, 1, 2))


def asked(batch: int, accumulate: int = 1, recompute: float = 0.0) -> Training:
    return Training(batch=batch, accumulate=accumulate, samples=1, recompute=recompute)


@pytest.mark.parametrize(("batch", "accumulate"), [(1, 1), (12, 1), (12, 3), (12, 12)])
def test_a_perceptron(batch: int, accumulate: int) -> None:
    """Layers of 4 x 16, 16 x 16 and 16 x 2: a product each forward; two backward, but for the first input one."""
    forward = 2 * (4 * 16 + 16 * 16 + 16 * 2)
    by_hand = 3 * forward - 2 * 4 * 16
    assert step_flops(make_task(), BATCH, asked(batch, accumulate)) == batch * by_hand


@final
class Convolved(Network, name="convolved-for-tests"):
    """A convolution, attention over the places with two heads, a linear layer at every place."""

    def __init__(self, shape: tuple[int, ...], cond: CondShape) -> None:
        super().__init__()
        self.enter = nn.Conv2d(shape[0], 8, 3, padding=1)
        self.qkv = nn.Linear(8, 24)
        self.leave = nn.Linear(8, shape[0])

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        tokens = self.enter(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.leave(mixed).transpose(1, 2).reshape(x.shape)


def test_convolution_and_attention() -> None:
    info = DataInfo((2, 6, 5), "array")
    network = Convolved(info.shape, CondShape())
    task = DiffusionTask(Model(NetDenoiser(network, Flow(), Velocity()), Arrays(info), None, info), DenoisingLoss())
    n = 6 * 5
    enter = 2 * n * 8 * (2 * 9)
    attention = 2 * (2 * n * n * 8)  # all pairs, twice, over both heads together
    linear = 2 * n * 8 * 24 + 2 * n * 8 * 2
    by_hand = 2 * enter + 3 * (attention + linear)  # nothing is learnt of the data, so that gradient is not made
    assert step_flops(task, Batch(torch.zeros(1, 2, 6, 5)), asked(4)) == 4 * by_hand


def task_of(network: Spec[Network]) -> DiffusionTask:
    spec = ModelSpec(DataInfo((4, 8, 8), "array"), network, Spec(Flow), Spec(Velocity), Spec(Arrays))
    return DiffusionTask(spec.build(), DenoisingLoss())


def test_what_is_recomputed_counts_once_and_the_task_stays_as_it_is() -> None:
    batch, task = Batch(torch.zeros(1, 4, 8, 8)), task_of(Spec(DiT, width=32, depth=4, heads=2))
    before = {name: value.clone() for name, value in task.state_dict().items()}
    plain = step_flops(task, batch, asked(2))
    recomputed(task, asked(2, recompute=1.0))
    assert step_flops(task, batch, asked(2, recompute=1.0)) == plain
    assert plain is not None and plain > 0
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in task.parameters())


@pytest.mark.parametrize(
    "network", [Spec(DiT, width=32, depth=4, heads=2), Spec(UNet, width=16, mults=(1, 2), blocks=1)]
)
def test_it_is_what_is_counted_in_a_real_step(network: Spec[Network]) -> None:
    """By torch's own counter, with attention made of products, which it then sees on a CPU."""
    task, media = task_of(network), torch.randn(4, 4, 8, 8)
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        task.loss(Batch(media), Draws(0, 0, 4)).value.backward()
    assert step_flops(task, Batch(media[:1]), asked(4)) == counted.get_total_flops() > 0


def test_a_loss_that_looks_at_numbers_has_no_count() -> None:
    task = make_task()
    task.model.denoiser.network.layers[1].register_forward_hook(lambda m, i, o: o * float(o.detach().sum()))
    assert step_flops(task, BATCH, asked(2)) is None


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4080 SUPER", None),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA B200", 2250),
        ("AMD Instinct MI300X", 1307.4),
        ("Tesla T4", None),
        ("", None),
    ],
)
def test_ceilings_by_name(name: str, tera: float | None) -> None:
    found = ceiling(name)
    assert found == (None if tera is None else pytest.approx(tera * 1e12))


def test_what_the_log_gets() -> None:
    use = Use(flops=6 * 10**12, batch=64, ceiling=2 * 989e12)
    assert use.entry(6400.0) == {"tflops": 600.0, "mfu": pytest.approx(600 / (2 * 989), abs=1e-4)}
    assert Use(6 * 10**12, 64, None).entry(6400.0) == {"tflops": 600.0}
    assert Use(None, 64, 989e12).entry(6400.0) == {} == use.entry(None)


def test_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    use = Use.of(make_task(), BATCH, asked(4), device, devices=8)
    assert use.ceiling == 8 * 989e12 and use.flops == 4 * (6 * 352 - 128)
    assert Use.of(make_task(), BATCH, asked(4), torch.device("cpu")) == Use(None, 4, None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 3 << 29)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 2 << 30)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 5 << 29)
    assert device_memory(device) == {"memory": 1.5, "memory_peak": 2.0, "memory_reserved": 2.5}
    assert device_memory(torch.device("cpu")) == {}
