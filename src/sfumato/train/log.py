"""What a run writes down of itself: lines of metrics.jsonl, and the averages they hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sfumato.core import Loss, Process
from sfumato.files import disk_errors, write_atomic
from sfumato.train.rollback import Recovery

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
        self.lines = 0  # so far, those that wait included

    def truncate(self, step: int, lines: int | None = None) -> None:
        """Drop lines after `step`: the steps that a resumed run makes again, and with them a rollback to it.

        lines: how many there were at most when the checkpoint was written, where that matters.
        """
        if not self.file.exists():
            return
        found = read_metrics(self.file)
        kept = [entry for entry in found if entry.get("step", 0) < step + ("rollback" not in entry)][:lines]
        write_atomic(self.file, "".join(map(_line, kept)))
        self.lines = len(kept)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one line and flush it. Raises DiskFullError after keeping the line for later."""
        self._waiting.append(_line(entry))
        self.lines += 1
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
    number: int
    numbers: tuple[int, int]


@final
class Meter:
    """Averages between two lines of the log, and the loss by noise level since the last evaluation.

    Steps are kept as they are, on the device, and read together when somebody asks: no step waits for the device. Sums are
    taken step by step, so they are the same whenever they are read, which exact resuming needs.
    """

    def __init__(self, process: Process | None) -> None:
        self._process = process
        self._pending: list[_Step] = []
        self.recovery = Recovery()  # what became of steps that were not finite
        self._sums = np.zeros(3)  # loss, gradient norm, steps
        self._levels = np.zeros((2, LEVELS))  # loss, count

    @property
    def skipped(self) -> int:
        """Steps left out for a loss or gradient that was not finite, since the start of the run."""
        return self.recovery.skipped

    def add(
        self,
        loss: Tensor,
        norm: Tensor,
        bad: Tensor,
        parts: list[Loss],
        number: int = 0,
        numbers: tuple[int, int] = (0, 0),
    ) -> None:
        """Take in a step: its loss (), gradient norm (), 1 if it was left out, and the losses of its parts.

        number: of the step, 1, 2, ... numbers: of its first and last sample.
        """
        self._pending.append(_Step(loss, norm, bad, parts, number, numbers))

    def read(self) -> None:
        """Bring pending steps into the sums. Waits for the device."""
        if not self._pending:
            return
        scalars = torch.stack([torch.stack([s.loss.float(), s.norm.float(), s.bad]) for s in self._pending])
        parts: list[Loss] = []
        for (loss, norm, bad), step in zip(scalars.double().cpu().numpy(), self._pending):
            self.recovery.see(step.number, *step.numbers, bool(bad))
            if bad:
                continue
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
            "recovery": self.recovery.state(),
            "sums": self._sums.tolist(),
            "levels": self._levels.tolist(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self.back(state)
        self.recovery = Recovery.of(state.get("recovery", state))

    def back(self, state: Mapping[str, Any]) -> None:
        """The same after a rollback: means are as they were then, and what led to it is still known."""
        self._pending.clear()
        self._sums[:] = state["sums"]
        self._levels[:] = state["levels"]
