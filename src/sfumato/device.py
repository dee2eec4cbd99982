"""Where and in which precision a run is computed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import torch

from sfumato.errors import UserError


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is the first of CUDA, MPS and CPU that is there; otherwise the named device, checked."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(
            f"device={name}: this machine or this build of torch has no such device; use auto or cpu"
        ) from None
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware and is quicker for it."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def choose_precision(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> torch.dtype:
    """The type of matrix products: bfloat16 or float32. Weights, averages and optimizer are float32 either way."""
    if precision == "bf16" and device.type == "cuda" and not has_bf16(device):
        raise UserError(
            f"train.precision = bf16: {torch.cuda.get_device_name(device)} has no bfloat16; use precision=fp32 or auto"
        )
    use = precision == "bf16" or (precision == "auto" and has_bf16(device))
    return torch.bfloat16 if use else torch.float32


def wait(device: torch.device) -> None:
    """Wait for the work given to the device, so that a clock read next is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def free_memory() -> int | None:
    """Bytes of the host's memory that could be had now; None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return None if found is None else 1024 * int(found[1])
