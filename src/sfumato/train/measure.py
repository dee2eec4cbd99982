"""How well a device is used: the operations of a training step, what the device could do, and the memory it takes.

    MFU = (floating-point operations of a step's mathematics) / (seconds of the step * the device's dense bfloat16 ceiling)

Chowdhery et al., "PaLM", 2022, appendix B (model FLOPs utilization): what is computed twice to save memory counts once.
https://arxiv.org/abs/2204.02311
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sfumato.core import Batch, Draws
from sfumato.nn.recompute import blocks_of
from sfumato.train.memory import GIB, network_of, several
from sfumato.train.settings import Training
from sfumato.train.simulate import on_meta
from sfumato.train.task import Task

# Dense bfloat16 matrix products a second, summed in float32, from the makers' data sheets and architecture papers: half of
# what is printed there where that is with sparsity. The first pattern that is found in a device's name counts.
_CEILINGS = (
    (r"\bGB200\b", 2500e12),
    (r"\bB200\b", 2250e12),
    (r"\bH100 PCIe\b", 756e12),
    (r"\b(H100|H200) NVL\b", 835e12),
    (r"\b(H100|H200|H800|GH200)\b", 989e12),  # SXM
    (r"\bH20\b", 148e12),
    (r"\b(A100|A800)\b", 312e12),
    (r"\bA40\b", 149.7e12),
    (r"\bA30\b", 165e12),
    (r"\bA10\b", 125e12),
    (r"\bL40S\b", 362e12),
    (r"\bL40\b", 181e12),
    (r"\bL4\b", 121e12),
    (r"\bRTX 6000 Ada\b", 364.2e12),
    (r"\bRTX A6000\b", 154.8e12),
    (r"\bRTX 5090\b", 209.5e12),
    (r"\bRTX 4090\b", 165.2e12),
    (r"\bRTX 4080\b(?! SUPER)", 97.5e12),
    (r"\bRTX 3090\b(?! Ti)", 71e12),
    (r"\b(MI300X|MI325X)\b", 1307.4e12),
    (r"\bMI250X\b", 383e12),
)
_OTHERS = re.compile(r"Laptop|Max-Q|\bMIG\b|\bD\b")  # a part, or a slower kind, of the device that has the name


def ceiling(name: str) -> float | None:
    """Dense bfloat16 operations a second of a device of this name (`torch.cuda.get_device_name`); None if it is not known."""
    if _OTHERS.search(name):
        return None
    return next((value for pattern, value in _CEILINGS if re.search(pattern, name)), None)


def step_flops(task: Task, batch: Batch, settings: Training) -> int | None:
    """Floating-point operations of the matrix products and convolutions of a step of `settings.batch` samples.

    A product of (m, k) and (k, n) has 2 m k n. Forward and backward pass of all parts of the batch; what is recomputed counts
    once, and so does attention, whichever kernel runs it. Norms, the optimizer and averages are left out: a few in a
    thousand. Counted on tensors without numbers, so nothing is computed and no device is needed.

    batch: any real items. None for a task whose loss does not run without numbers. Counted before the parameters are
    divided among devices.
    """
    thin = on_meta(task).train()
    network = network_of(thin)
    for block in () if network is None else blocks_of(network):
        block.__dict__.pop("forward", None)  # that of a block that is recomputed
    micro = settings.batch // settings.accumulate
    counted = _Count()
    try:
        with counted:
            thin.loss(several(batch, micro), Draws(0, 0, micro)).value.backward()  # type: ignore[no-untyped-call]
    except Exception:  # whatever an operator of somebody's own can't do: a figure for the log ends no training
        return None
    return counted.total * settings.accumulate


@final
class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of everything that torch's table of formulas knows."""

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # imports Triton, a fifth of a second of every command

        super().__init__()  # type: ignore[no-untyped-call]
        self.formulas, self.total = flop_registry, 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the mode imports torch's compiler, some seconds

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = self.formulas.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


@final
@dataclass(frozen=True)
class Use:
    """What a step costs and what the devices could do, to be put beside a throughput.

    flops: of a step. batch: samples of a step. ceiling: operations a second of all devices together.
    """

    flops: int | None
    batch: int
    ceiling: float | None

    @classmethod
    def of(cls, task: Task, batch: Batch, settings: Training, device: torch.device, devices: int = 1) -> Use:
        """Of steps on so many devices like this one. Counting takes a second or two, so it is done for a GPU only."""
        if device.type != "cuda":
            return cls(None, settings.batch, None)
        most = ceiling(torch.cuda.get_device_name(device))
        return cls(step_flops(task, batch, settings), settings.batch, None if most is None else most * devices)

    def entry(self, rate: float | None) -> dict[str, float]:
        """For a line of the log, at `rate` samples a second: `tflops`, 10^12 operations a second, and `mfu`, a share.

        What is not known is not there.
        """
        if rate is None or self.flops is None:
            return {}
        done = self.flops / self.batch * rate
        found = {"tflops": _digits(done / 1e12)}
        return found if self.ceiling is None else {**found, "mfu": _digits(done / self.ceiling)}


def device_memory(device: torch.device) -> dict[str, float]:
    """For a line of the log, in GiB: `memory`, allocated now; `memory_peak`, the most so far; `memory_reserved`, the most
    that was taken from the device. Empty where the device does not say; none of it waits for the device."""
    if device.type == "cuda":
        return {
            "memory": round(torch.cuda.memory_allocated(device) / GIB, 3),
            "memory_peak": round(torch.cuda.max_memory_allocated(device) / GIB, 3),
            "memory_reserved": round(torch.cuda.max_memory_reserved(device) / GIB, 3),
        }
    if device.type == "mps":
        return {
            "memory": round(torch.mps.current_allocated_memory() / GIB, 3),
            "memory_reserved": round(torch.mps.driver_allocated_memory() / GIB, 3),
        }
    return {}


def _digits(value: float) -> float:
    """Four digits that count."""
    return float(f"{value:.4g}")
