"""One row of a benchmark, and how rows are shown and kept."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """A case measured for us and for a peer. ratio = ours / peer in `unit`: below 1 is better for seconds.

    share_of_ceiling: operations a second of ours over the machine's measured best (`machine['ceiling_gflops']`).
    """

    case: str
    ours: float
    peer: float
    unit: str
    share_of_ceiling: float | None
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self.ours / self.peer

    def to_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        return {k: plain[k] if k != "ratio" else self.ratio for k in _ORDER}


_ORDER = ("case", "ours", "peer", "ratio", "unit", "share_of_ceiling", "machine", "versions", "settings")


def machine(**more: Any) -> dict[str, Any]:
    """What the figures were measured on."""
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "system": platform.system(), **more}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, torch and the named packages; a package that is not installed is left out."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def show(rows: list[Row]) -> None:
    """Print rows as plain lines."""
    print(f"{'case':<24}{'ours':>10}{'peer':>10}{'ratio':>8}  unit  share of ceiling")
    for row in rows:
        share = "" if row.share_of_ceiling is None else f"{row.share_of_ceiling:.0%}"
        print(f"{row.case:<24}{row.ours:>10.4g}{row.peer:>10.4g}{row.ratio:>8.3f}  {row.unit:<4}  {share}")


def write(rows: list[Row], file: Path) -> None:
    """Write rows as a JSON list, in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(file.name + ".part")
    half.write_text(json.dumps([row.to_dict() for row in rows], indent=1) + "\n", encoding="utf-8")
    half.replace(file)
