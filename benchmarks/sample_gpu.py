"""Sampling on one GPU: ours against diffusers' U-Net with its DDIM, and a guided forward of DiT-XL/2, both in one run.

    python -m benchmarks.sample_gpu [--only CASE ...] [--peer eager|compiled|both] [--autotune] [--no-peer]
                                    [--quick] [--json FILE] [--write] [--device cuda|cpu]

* sample.unet.b256, sample.unet.b1: one batch from noise to data by 50 evaluations of DDIM; images a second, and
  seconds an image.
* dit.forward.b1, dit.forward.b32: what was asked and "no class" in one pass of twice the batch, and the two put
  together; milliseconds.

Weights are in bfloat16 on both sides. The peer is run eager and with `torch.compile`, its U-Net in channels-last memory,
and with CUDA graphs (`mode="reduce-overhead"`); the fastest is the one we are compared with. `--autotune` adds
`mode="max-autotune"`, which takes minutes to compile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import _ours
from benchmarks._gpu import GUIDANCE, SHAPES, Case, Kind, Plan, Unit, Variant, Way, Work, command, sizes
from benchmarks._peer_networks import PaperDiT, peer_one_image, peer_unet
from benchmarks._table import RESULTS

EVALUATIONS = 50
GRAPHS = ("reduce-overhead", "max-autotune")  # the modes of torch.compile that capture graphs


def _compiled(network: nn.Module, mode: str | None) -> Callable[..., Any]:
    """mode: of torch.compile, "" for its default, None for eager."""
    if mode is None:
        return network
    made: Callable[..., Any] = torch.compile(network, mode=mode or None, dynamic=False)
    return made


def _note(mode: str | None) -> str:
    return ("eager" if mode is None else f"compiled {mode}".rstrip()) + ", bf16 weights"


def _begin(mode: str | None) -> None:
    """The last output may be written over."""
    if mode in GRAPHS:
        torch.compiler.cudagraph_mark_step_begin()


class Ddim:
    """diffusers' DDIM on a network of eps. The network gets its timesteps from the device: nothing waits for a copy.

    Each timestep is a tensor of its own, because a graph is captured for one alignment of its inputs.
    """

    def __init__(self, device: torch.device, evaluations: int = EVALUATIONS, spacing: str = "leading") -> None:
        from diffusers import DDIMScheduler

        scheduler: Any = DDIMScheduler
        self.scheduler = scheduler(1000, timestep_spacing=spacing)
        self.scheduler.set_timesteps(evaluations)
        self.timesteps = [k.to(device).clone() for k in self.scheduler.timesteps]

    @torch.no_grad()
    def __call__(self, forward: Callable[..., Any], x: Tensor, begin: Callable[[], None]) -> Tensor:
        """x0 from noise x; `begin` is called before every evaluation."""
        for k, on_device in zip(self.scheduler.timesteps, self.timesteps):
            begin()
            eps = forward(x, on_device, return_dict=False)[0]
            x = self.scheduler.step(eps, k, x, return_dict=False)[0]
        return x


def unet_work(mode: str | None, batch: int, device: torch.device) -> Work:
    network = peer_unet(sizes(device)).to(device, torch.bfloat16).eval()
    layout = torch.contiguous_format if mode is None else torch.channels_last
    network.to(memory_format=layout)  # type: ignore[call-overload]
    forward, ddim = _compiled(network, mode), Ddim(device)

    def run() -> Tensor:
        x = torch.randn(batch, *SHAPES["unet"], device=device, dtype=torch.bfloat16).to(memory_format=layout)
        return ddim(forward, x, lambda: _begin(mode))

    return Work(run, batch, 0.0, network, _note(mode) + (", channels last" if mode is not None else ""))


def dit_work(mode: str | None, batch: int, device: torch.device) -> Work:
    size = sizes(device)
    network = PaperDiT(size).to(device, torch.bfloat16).eval()
    forward = _compiled(network, mode)
    x = torch.randn(batch, *SHAPES["dit"], device=device, dtype=torch.bfloat16)
    k = torch.full((2 * batch,), 500, device=device)
    labels = torch.randint(0, size.classes, (batch,), device=device)
    both = torch.cat([labels, torch.full_like(labels, size.classes)])

    @torch.no_grad()
    def run() -> Tensor:
        _begin(mode)
        asked, nothing = forward(torch.cat([x, x]), k, both)[:, : x.shape[1]].chunk(2)
        return torch.lerp(nothing, asked, GUIDANCE)

    return Work(run, batch, 0.0, network, _note(mode))


def variants(kind: Kind, batch: int, device: torch.device) -> list[Variant]:
    """The ways in which a peer is run."""
    work = unet_work if kind == "unet" else dit_work
    modes: dict[str, tuple[Way, str | None]] = {"peer, eager": ("eager", None)}
    if device.type == "cuda":
        graphs = batch == 1
        modes["peer, CUDA graphs" if graphs else "peer, compiled"] = ("compiled", "reduce-overhead" if graphs else "")
        modes["peer, autotuned"] = ("autotuned", "max-autotune")
    return [Variant(name, way, partial(work, mode, batch, device)) for name, (way, mode) in modes.items()]


def case(name: str, kind: Kind, batch: int, unit: Unit, plan: Plan) -> Case:
    def cut(device: torch.device) -> int:
        return batch if device.type == "cuda" else min(batch, 2)

    def ours(device: torch.device) -> Work:
        if kind == "unet":
            return _ours.sampling("unet", cut(device), device, EVALUATIONS)
        return _ours.forward("dit", cut(device), device)

    return Case(
        name,
        kind,
        unit,
        training=False,
        forwards=EVALUATIONS if kind == "unet" else 2,
        plan=plan,
        one_images=(_ours.one_image, peer_one_image),
        ours=ours,
        peers=lambda device: variants(kind, cut(device), device),
    )


CASES = [
    case("sample.unet.b256", "unet", 256, "images/s", Plan(rounds=5, steps=1, warmup=2)),  # a step is 50 evaluations
    case("sample.unet.b1", "unet", 1, "s", Plan(rounds=5, steps=3, warmup=2)),
    case("dit.forward.b1", "dit", 1, "ms", Plan()),
    case("dit.forward.b32", "dit", 32, "ms", Plan()),
]

if __name__ == "__main__":
    command("python -m benchmarks.sample_gpu", (__doc__ or "").split("\n")[0], CASES, RESULTS / "sample_gpu.json")
