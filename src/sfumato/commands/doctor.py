"""`sfumato doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from sfumato import __version__
from sfumato.commands.say import facts, say, say_json, size

_PACKAGES = ("torch", "numpy", "safetensors", "pydantic", "pyyaml", "typer", "rich", "pillow")
_EXTRAS = {
    "parquet": ("pyarrow", "parquet files as data"),
    "track": ("tensorboard", "curves in TensorBoard"),
    "bench": ("diffusers", "benchmarks against diffusers"),
    "mesh": ("trimesh", "meshes as data and as output"),
}
_LITTLE = 2 << 30  # bytes of free disk below which a run may not end well


def doctor(*, as_json: bool) -> None:
    """Print the state of everything that training and sampling need."""
    found = examine()
    if as_json:
        say_json(found)
        return
    versions = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    say(f"sfumato {found['sfumato']}, Python {found['python']} on {found['system']}")
    say(
        facts(
            {
                "packages": versions,
                "threads": f"{found['threads']} of {found['cores']} cores are used by torch",
                "device": _device_line(found),
                "disk": f"{size(found['disk_free'])} free here" + (" (little)" if found["disk_free"] < _LITTLE else ""),
                **{f"extra {name}": _extra_line(name, installed) for name, installed in found["extras"].items()},
            }
        )
    )
    problems = found["problems"]
    say("\n".join(f"problem: {problem}" for problem in problems) if problems else "everything that is needed is here")


def examine() -> dict[str, Any]:
    """The same as plain data."""
    import torch

    from sfumato.device import choose_device, has_bf16

    device = choose_device("auto")
    gpu = None
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        gpu = {"name": torch.cuda.get_device_name(device), "memory": memory, "count": torch.cuda.device_count()}
    threads, cores = torch.get_num_threads(), _cores()
    free = shutil.disk_usage(Path.cwd()).free
    problems = []
    if threads < cores and device.type == "cpu":
        problems.append(f"torch uses {threads} of {cores} cores; unset OMP_NUM_THREADS to use all")
    if threads > cores:
        problems.append(f"torch uses {threads} threads on {cores} cores, which is slow; set OMP_NUM_THREADS={cores}")
    if free < _LITTLE:
        problems.append(f"only {size(free)} of disk are free; make room before a long run")
    if not os.access(Path.cwd(), os.W_OK):
        problems.append(f"the folder {Path.cwd()} can't be written to; runs need another one")
    return {
        "sfumato": __version__,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cores": cores,
        "threads": threads,
        "device": str(device),
        "gpu": gpu,
        "bf16": has_bf16(device),
        "disk_free": free,
        "extras": {name: importlib.util.find_spec(module) is not None for name, (module, _) in _EXTRAS.items()},
        "problems": problems,
    }


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device_line(found: dict[str, Any]) -> str:
    gpu = found["gpu"]
    if gpu is None:
        return f"{found['device']}, float32" + ("" if found["device"] != "cpu" else " (no GPU found)")
    precision = "bfloat16" if found["bf16"] else "float32 (no bfloat16 in hardware)"
    return f"{found['device']}, {gpu['count']} x {gpu['name']}, {size(gpu['memory'])}, {precision}"


def _extra_line(name: str, installed: bool) -> str:
    purpose = _EXTRAS[name][1]
    return f"installed: {purpose}" if installed else f'not installed: {purpose}; pip install "sfumato[{name}]"'
