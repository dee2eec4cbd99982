"""Our side of the GPU benchmarks: a training step, sampling, and a guided forward of the networks in `_gpu.Sizes`.

The network of the U-Net is diffusers' of google/ddpm-cifar10-32, block for block. The DiT is ours of the shape of
DiT-XL/2 as its paper has it: sinusoids alone for positions, no norm of queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks._gpu import GUIDANCE, SHAPES, Kind, Sizes, Work, sizes
from sfumato.codecs import Arrays
from sfumato.conditioners import Label
from sfumato.core import (
    Batch,
    CondShape,
    DataInfo,
    DenoisingLoss,
    DiscreteVP,
    Draws,
    Eps,
    Flow,
    HybridLoss,
    NetDenoiser,
    Network,
    UniformGrid,
    Velocity,
)
from sfumato.guidance import ClassifierFree
from sfumato.model import Model
from sfumato.nn import DiT, UNet
from sfumato.nn.captured import Captured
from sfumato.samplers import DDIM, sample
from sfumato.train import DiffusionTask, Training
from sfumato.train.ema import Ema
from sfumato.train.step import Step, choose_step

DROP = 0.1  # share of samples that learn "any class"
RATE = 1e-4


def networks(kind: Kind, size: Sizes) -> tuple[Network, Label | None]:
    """Our network of a kind and, for the DiT, its conditioner, on torch's default device."""
    if kind == "unet":
        unet = UNet(
            SHAPES["unet"],
            CondShape(),
            width=size.unet_width,
            mults=size.unet_mults,
            blocks=2,
            attention=(size.unet_attention,),
            groups=size.unet_groups,
            modulation="shift",
        )
        return unet, None
    info = DataInfo(SHAPES["dit"], "array", labels=tuple(str(i) for i in range(size.classes)))
    label = Label(info, width=size.dit_width)
    dit = DiT(
        SHAPES["dit"],
        label.shape,
        width=size.dit_width,
        depth=size.dit_depth,
        heads=size.dit_heads,
        patch=size.dit_patch,
        qk_norm=False,
        rotary=False,
        outputs=2,
    )
    return dit, label


def one_image(kind: Kind, size: Sizes) -> tuple[nn.Module, Callable[[], Tensor]]:
    """For `_gpu.count`: everything that is trained, on torch's default device, and a call of it for one image."""
    network, label = networks(kind, size)
    x, noise = torch.empty(1, *SHAPES[kind]), torch.empty(1)
    if label is None:
        return network, lambda: network(x, noise)
    numbers = torch.empty(1, dtype=torch.int64)
    return nn.ModuleList([network, label]), lambda: network(x, noise, label({"label": numbers}))


def denoiser_of(kind: Kind, network: Network) -> NetDenoiser:
    """The network under the process and parameterization that its kind is measured with."""
    if kind == "unet":
        return NetDenoiser(network, Flow(), Velocity())
    return NetDenoiser(network, DiscreteVP("linear"), Eps(), learned_variance=True)


def _denoiser(kind: Kind, device: torch.device) -> tuple[NetDenoiser, Label | None]:
    with device:
        network, label = networks(kind, sizes(device))
    return denoiser_of(kind, network), label


def task_of(kind: Kind, denoiser: NetDenoiser, label: Label | None, device: torch.device) -> DiffusionTask:
    """What is trained of it."""
    info = DataInfo(SHAPES[kind], "array", labels=() if label is None else label.labels)
    objective = DenoisingLoss() if kind == "unet" else HybridLoss()
    return DiffusionTask(Model(denoiser, Arrays(info), label, info), objective, drop=DROP).to(device).train()


def steps_of(
    task: DiffusionTask, asked: Batch, dtype: torch.dtype = torch.bfloat16, *, record: bool | None = None
) -> tuple[Step, Callable[[], object]]:
    """The library's own step, and a call that makes the next one of them on one batch: noise, loss, backward, clip, AdamW,
    average. record: as `train.compile`."""
    batch, done = len(asked.media), 0
    settings = Training(samples=1, batch=batch, lr=RATE)
    optimizer, ema = settings.optimizer.build(task, settings), Ema[nn.Module](task.model, settings.ema)
    step = choose_step(
        task,
        optimizer,
        ema,
        dtype,
        lambda _: None,
        record=record,
        micro=(asked, Draws(0, 0, batch)),
        count=1,
        say=print,
    )

    def run() -> None:
        nonlocal done
        step([(asked, Draws(0, done * batch, batch))], RATE, done + 1)
        done += 1

    return step, run


def batch_of(kind: Kind, batch: int, device: torch.device, seed: int = 0) -> Batch:
    """Random items in the host's memory, from where a step takes them."""
    generator = torch.Generator().manual_seed(seed)
    media = torch.randn(batch, *SHAPES[kind], generator=generator)
    labels = torch.randint(0, sizes(device).classes, (batch,), generator=generator)
    return Batch(media.pin_memory() if device.type == "cuda" else media, {} if kind == "unet" else {"label": labels})


def train_step(kind: Kind, batch: int, device: torch.device) -> Work:
    """The trainer's step on one batch."""
    denoiser, label = _denoiser(kind, device)
    task = task_of(kind, denoiser, label, device)
    step, run = steps_of(task, batch_of(kind, batch, device))
    return Work(run, batch, step.setup_seconds, task, f"bf16, {type(step).__name__}")


def sampling(kind: Kind, batch: int, device: torch.device, steps: int = 50) -> Work:
    """One batch from noise to data in `steps` evaluations by DDIM, weights in bfloat16."""
    if kind != "unet":
        raise ValueError(f"sampling is measured for the U-Net, not for {kind}")
    denoiser, _ = _denoiser(kind, device)
    denoiser = _recorded(denoiser.to(torch.bfloat16).eval())
    times = UniformGrid()(denoiser.process, steps)

    def run() -> Tensor:
        with torch.no_grad():
            return sample(denoiser, DDIM(), torch.randn(batch, *SHAPES[kind], device=device), times)

    return Work(run, batch, 0.0, denoiser, "bf16 weights, recorded")


def _recorded(denoiser: NetDenoiser) -> NetDenoiser:
    """As a `Pipeline` has it on a GPU with compile=True."""
    network = Captured(denoiser.network, compiled=True)
    return NetDenoiser(
        network, denoiser.process, denoiser.parameterization, learned_variance=denoiser.learned_variance
    ).eval()


def forward(kind: Kind, batch: int, device: torch.device) -> Work:
    """One guided estimate: what was asked and "any class" in one pass of twice the batch, weights in bfloat16."""
    denoiser, label = _denoiser(kind, device)
    if label is None:
        raise ValueError(f"a guided forward is measured for the DiT, not for {kind}")
    model = nn.ModuleList([denoiser, label]).to(torch.bfloat16).eval()
    x_t = torch.randn(batch, *SHAPES[kind], device=device)
    t = torch.full((batch,), 0.5, dtype=torch.float64)
    numbers = torch.randint(0, sizes(device).classes, (batch,), device=device)
    with torch.no_grad():
        cond, null = label({"label": numbers}), label.null(batch)
    guided = ClassifierFree(GUIDANCE).wrap(_recorded(denoiser), null)

    def run() -> Tensor:
        with torch.no_grad():
            return guided(x_t, t, cond)

    return Work(run, batch, 0.0, model, "bf16 weights, compiled blocks, recorded")
