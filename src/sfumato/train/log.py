"""What a run writes down of itself: lines of metrics.jsonl, the averages they hold, and trackers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np
import torch
from torch import Tensor

from sfumato.core import Loss, Process
from sfumato.errors import UserError
from sfumato.files import disk_errors, write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

LEVELS = 20  # bins of the noise level u = sigma / (alpha + sigma) for the loss by noise level


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that was cut off by a crash is left out."""
    if not file.is_file():
        return []
    lines = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            lines.append(entry)
    return lines


@final
class MetricsLog:
    """Appends lines to metrics.jsonl. What a full disk refuses is kept and written later."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._waiting: list[str] = []

    def truncate(self, step: int) -> None:
        """Drop lines after `step`: the steps that a resumed run makes again."""
        if not self.file.exists():
            return
        kept = [entry for entry in read_metrics(self.file) if entry.get("step", 0) <= step]
        write_atomic(self.file, "".join(map(_line, kept)))

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one line and flush it. Raises DiskFullError after keeping the line for later."""
        self._waiting.append(_line(entry))
        with disk_errors(self.file), self.file.open("ab") as stream:
            before = stream.tell()
            try:
                stream.write("".join(self._waiting).encode())
                stream.flush()
            except OSError:
                stream.truncate(before)
                raise
        self._waiting.clear()


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(_finite(entry), ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


@dataclass(frozen=True)
class _Step:
    loss: Tensor
    norm: Tensor
    bad: Tensor
    parts: list[Loss]


@final
class Meter:
    """Averages between two lines of the log, and the loss by noise level since the last evaluation.

    Steps are kept as they are, on the device, and read together when somebody asks: no step waits for the device. Sums are
    taken step by step, so they are the same whenever they are read, which exact resuming needs.
    """

    def __init__(self, process: Process | None) -> None:
        self._process = process
        self._pending: list[_Step] = []
        self.skipped = 0  # steps left out for a loss or gradient that was not finite, since the start of the run
        self.streak = 0  # how many of them in a row, up to now
        self.worst = 0  # the longest such row since this was last looked at
        self._sums = np.zeros(3)  # loss, gradient norm, steps
        self._levels = np.zeros((2, LEVELS))  # loss, count

    def add(self, loss: Tensor, norm: Tensor, bad: Tensor, parts: list[Loss]) -> None:
        """Take in a step: its loss (), gradient norm (), 1 if it was left out, and the losses of its parts."""
        self._pending.append(_Step(loss, norm, bad, parts))

    def read(self) -> None:
        """Bring pending steps into the sums. Waits for the device."""
        if not self._pending:
            return
        scalars = torch.stack([torch.stack([s.loss.float(), s.norm.float(), s.bad]) for s in self._pending])
        parts: list[Loss] = []
        for (loss, norm, bad), step in zip(scalars.double().cpu().numpy(), self._pending):
            if bad:
                self.skipped += 1
                self.streak += 1
                self.worst = max(self.worst, self.streak)
                continue
            self.streak = 0
            self._sums += (loss, norm, 1)
            parts += [
                part for part in step.parts if part.t.ndim == 1
            ]  # with a time for every token there is no one level
        self._pending.clear()
        if self._process is not None and parts:
            u = self._process.level(torch.cat([part.t for part in parts])).numpy()
            per_sample = torch.cat([part.per_sample for part in parts]).double().cpu().numpy()
            where = np.minimum((u * LEVELS).astype(np.int64), LEVELS - 1)
            np.add.at(
                self._levels[0], where, per_sample
            )  # one by one, so the sum is the same however steps are grouped
            np.add.at(self._levels[1], where, 1)

    def take(self) -> dict[str, float]:
        """Mean loss and gradient norm since the last call; NaN if every step was left out."""
        self.read()
        loss, norm, count = self._sums
        self._sums[:] = 0
        return {
            "loss": float(loss / count) if count else math.nan,
            "grad_norm": float(norm / count) if count else math.nan,
        }

    def take_levels(self) -> list[float | None]:
        """Mean unweighted loss in each of the LEVELS bins of the noise level since the last call; None in empty bins."""
        self.read()
        total, count = self._levels
        means = [float(a / n) if n else None for a, n in zip(total, count)]
        self._levels[:] = 0
        return means

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        self.read()
        return {
            "skipped": self.skipped,
            "streak": self.streak,
            "sums": self._sums.tolist(),
            "levels": self._levels.tolist(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self.skipped, self.streak = int(state["skipped"]), int(state["streak"])
        self._sums[:] = state["sums"]
        self._levels[:] = state["levels"]


class Tracker(Protocol):
    """Somewhere else to send metrics and pictures: TensorBoard, a service, a test."""

    def log(self, metrics: Mapping[str, float], samples: int) -> None:
        """Numbers at a position of the run."""
        ...

    def image(self, name: str, picture: Image, samples: int) -> None:
        """A picture at a position of the run."""
        ...

    def close(self) -> None:
        """The run has ended."""
        ...


@final
class TensorBoard:
    """Writes event files for TensorBoard to a folder; needs the extra `track`."""

    def __init__(self, folder: Path, start: int = 0) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise UserError('trackers=tensorboard needs TensorBoard; pip install "sfumato[track]"') from None
        self._writer = SummaryWriter(str(folder), purge_step=start or None)

    def log(self, metrics: Mapping[str, float], samples: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, samples)

    def image(self, name: str, picture: Image, samples: int) -> None:
        self._writer.add_image(name, np.asarray(picture.convert("RGB")), samples, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


def make_trackers(names: tuple[str, ...], folder: Path, start: int) -> list[Tracker]:
    """The trackers named in the settings."""
    return [TensorBoard(folder / name, start) for name in names if name == "tensorboard"]
