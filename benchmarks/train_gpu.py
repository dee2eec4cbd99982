"""Images learnt a second on one GPU: ours against diffusers' U-Net and a DiT-XL/2, both in one run.

    python -m benchmarks.train_gpu [--only CASE ...] [--peer eager|compiled|both] [--autotune] [--no-peer]
                                   [--quick] [--json FILE] [--write] [--device cuda|cpu]

A step is a whole one: noise, loss, backward pass, clipping, AdamW, the average of the weights, on random data that
lies on the device. Both sides compute in bfloat16 by autocast and keep weights in float32. The peer is run in several
ways, and the fastest of them is the one we are compared with:

* eager: as its training script does it, with `EMAModel` and AdamW as they come;
* compiled: the same with `torch.compile`, and once more with fused AdamW and an average by foreach;
* CUDA graphs (`mode="reduce-overhead"`) where a step is short enough to be bound by launches.

The DiT's step has no clipping, as its paper has none; its loss has the variational term that trains the variance.
Compilation takes 30 to 60 s a variant and is not in the figures; `--autotune` adds a variant that takes minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import _ours
from benchmarks._gpu import SHAPES, Case, Kind, Plan, Variant, Way, Work, command, sizes
from benchmarks._peer_networks import PaperDiT, peer_one_image, peer_unet
from benchmarks._table import RESULTS

STEPS = 1000  # of the peers' chains


@dataclass(frozen=True)
class How:
    """How a peer is run. mode: of torch.compile, "" for its default, None for eager. fused: AdamW fused, EMA by foreach."""

    mode: str | None = None
    fused: bool = False

    @property
    def note(self) -> str:
        words = ["eager" if self.mode is None else f"compiled {self.mode}".rstrip(), "bf16 autocast"]
        return ", ".join([*words, "fused AdamW, foreach EMA"] if self.fused else words)

    def compiled(self, network: nn.Module) -> Callable[..., Any]:
        if self.mode is None:
            return network
        made: Callable[..., Any] = torch.compile(network, mode=self.mode or None, dynamic=False)
        return made


def begin_step(how: How) -> None:
    """Outputs of the last step may be written over: what CUDA graphs of torch.compile ask to be told."""
    if how.mode == "reduce-overhead":
        torch.compiler.cudagraph_mark_step_begin()


# ---------------------------------------------------------------- the U-Net


@final
class UNetTraining:
    """The step of diffusers' unconditional training script, on given pictures, at a constant rate (1e-4 in the script)."""

    def __init__(self, network: nn.Module, device: torch.device, how: How, rate: float = 1e-4) -> None:
        from diffusers import DDPMScheduler
        from diffusers.training_utils import EMAModel

        self.network, self.device, self.how = network.to(device).train(), device, how
        self.forward = how.compiled(self.network)
        self.noise: Any = DDPMScheduler(STEPS)
        self.parameters = list(network.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, rate, (0.95, 0.999), weight_decay=1e-6, fused=True if how.fused else None
        )
        self.ema = EMAModel(
            self.parameters, decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=how.fused
        )

    def loss(self, x0: Tensor) -> Tensor:
        """Mean squared error of the noise, x0 (B, C, H, W) in [-1, 1]."""
        eps = torch.randn_like(x0)
        k = torch.randint(0, STEPS, (len(x0),), device=self.device)
        noisy = self.noise.add_noise(x0, eps, k)
        begin_step(self.how)
        with torch.autocast(self.device.type, torch.bfloat16):
            out = self.forward(noisy, k, return_dict=False)[0]
        return F.mse_loss(out.float(), eps)

    def step(self, x0: Tensor) -> Tensor:
        """One optimizer step; its loss."""
        loss = self.loss(x0)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.parameters)
        return loss.detach()


def unet_work(how: How, batch: int, device: torch.device) -> Work:
    training = UNetTraining(peer_unet(sizes(device)), device, how)
    x0 = torch.randn(batch, *SHAPES["unet"], device=device)
    return Work(lambda: training.step(x0), batch, 0.0, training.network, how.note)


# ---------------------------------------------------------------- the DiT


@final
class Chain:
    """A discrete chain with linear betas, and the hybrid loss on it (Nichol & Dhariwal 2021, eq. 15-16)."""

    def __init__(self, device: torch.device) -> None:
        betas = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)
        bar = (1 - betas).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
        small = betas * (1 - before) / (1 - bar)
        small[0] = small[1]  # the last step has no variance, and its logarithm is asked for
        rows = [
            bar.sqrt(),
            (1 - bar).sqrt(),
            before.sqrt() * betas / (1 - bar),
            small.log(),
            betas.log(),
        ]
        self.table = torch.stack(rows, 1).float().to(device)

    def at(self, k: Tensor) -> list[Tensor]:
        """alpha, sigma, the posterior mean's weight of x0, and the logarithms of both variances, each (B, 1, 1, 1)."""
        return [column[:, None, None, None] for column in self.table[k].unbind(1)]

    def loss(self, x0: Tensor, k: Tensor, eps: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean squared error of eps, plus the divergence of the reverse step, which trains its variance alone.

        forward: of x_t, gives eps and v in [-1, 1]. The first step's own term, a decoder's, is left out.
        """
        alpha, sigma, weight, small, large = self.at(k)
        x_t = alpha * x0 + sigma * eps
        out, v = forward(x_t).float().chunk(2, 1)
        share = (v + 1) / 2
        log_variance = share * large + (1 - share) * small
        x0_hat = (x_t - sigma * out.detach()) / alpha
        gap = weight * (x0 - x0_hat)
        divergence = 0.5 * (
            log_variance - small - 1 + torch.exp(small - log_variance) + gap.square() * torch.exp(-log_variance)
        )
        return F.mse_loss(out, eps) + divergence.mean()


def dit_work(how: How, batch: int, device: torch.device) -> Work:
    """A step of DiT training: hybrid loss, a tenth of the labels dropped, AdamW at 1e-4, an average of 0.9999."""
    network = PaperDiT(sizes(device)).to(device)
    forward, chain = how.compiled(network), Chain(device)
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, 1e-4, weight_decay=0.0, fused=True if how.fused else None)
    averaged, live = [p.detach().clone() for p in parameters], [p.detach() for p in parameters]
    x0 = torch.randn(batch, *SHAPES["dit"], device=device)
    nothing = sizes(device).classes
    labels = torch.randint(0, nothing, (batch,), device=device)

    @torch.no_grad()
    def average() -> None:
        if how.fused:
            torch._foreach_lerp_(averaged, live, 1e-4)
            return
        for kept, now in zip(averaged, live):
            kept.mul_(0.9999).add_(now, alpha=1e-4)

    def run() -> None:
        eps, k = torch.randn_like(x0), torch.randint(0, STEPS, (batch,), device=device)
        shown = torch.where(torch.rand(batch, device=device) < 0.1, nothing, labels)
        begin_step(how)
        with torch.autocast(device.type, torch.bfloat16):
            loss = chain.loss(x0, k, eps, lambda x_t: forward(x_t, k, shown))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average()

    return Work(run, batch, 0.0, network, how.note)


# ---------------------------------------------------------------- cases


def variants(kind: Kind, batch: int, device: torch.device) -> list[Variant]:
    """The ways in which a peer is run."""
    work = unet_work if kind == "unet" else dit_work
    hows: dict[str, tuple[Way, How]] = {
        "peer, eager": ("eager", How()),
        "peer, compiled": ("compiled", How("")),
        "peer, compiled, fused": ("compiled", How("", fused=True)),
        "peer, autotuned, fused": ("autotuned", How("max-autotune-no-cudagraphs", fused=True)),
    }
    if kind == "unet" and batch <= 128:
        hows["peer, CUDA graphs, fused"] = ("compiled", How("reduce-overhead", fused=True))
    if device.type != "cuda":  # a C++ compiler may be missing, and it takes its time
        hows = {name: (way, how) for name, (way, how) in hows.items() if way == "eager"}
    return [Variant(name, way, partial(work, how, batch, device)) for name, (way, how) in hows.items()]


def case(name: str, kind: Kind, batch: int) -> Case:
    def cut(device: torch.device) -> int:
        return batch if device.type == "cuda" else 4

    return Case(
        name,
        kind,
        "images/s",
        training=True,
        forwards=1,
        plan=Plan(),
        one_images=(_ours.one_image, peer_one_image),
        ours=lambda device: _ours.train_step(kind, cut(device), device),
        peers=lambda device: variants(kind, cut(device), device),
    )


CASES = [case("train.unet.b128", "unet", 128), case("train.unet.b512", "unet", 512), case("dit.train", "dit", 128)]

if __name__ == "__main__":
    command("python -m benchmarks.train_gpu", (__doc__ or "").split("\n")[0], CASES, RESULTS / "train_gpu.json")
