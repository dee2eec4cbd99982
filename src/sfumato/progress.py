"""How a run looks while it goes on: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Protocol, final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

_LINE_SECONDS = 10.0
_BAR_SECONDS = 0.25


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class Display(Protocol):
    """Something that shows where a run stands."""

    def update(self, done: float, samples: int, left: float | None, loss: float | None, rate: float | None) -> None:
        """done: share of the run. left: seconds to go. rate: samples a second. Called after every step: must be cheap."""
        ...

    def say(self, text: str) -> None:
        """A sentence for the user."""
        ...

    def close(self) -> None:
        """The run has ended or stopped."""
        ...


@final
class Silent:
    """Shows nothing but warnings' text to nobody: for tests and for use inside other programs."""

    def update(self, done: float, samples: int, left: float | None, loss: float | None, rate: float | None) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


@final
class Terminal:
    """A bar with the time left where `console` is a terminal; otherwise a plain line about every ten seconds."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console if console is not None else Console(stderr=True)
        self._bar: Progress | None = None
        self._next = 0.0
        self._last = ""
        if self._console.is_terminal:
            columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*columns, console=self._console, auto_refresh=False)
            self._task = self._bar.add_task("", total=1.0, text="starting")
            self._bar.start()

    def update(self, done: float, samples: int, left: float | None, loss: float | None, rate: float | None) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        text = f"{samples:,} samples"
        text += f", loss {loss:.4f}" if loss is not None else ""
        text += f", {rate:,.0f} samples/s" if rate else ""
        text += f", {duration(left)} left" if left is not None else ""
        if self._bar is not None:
            self._next = now + _BAR_SECONDS
            self._bar.update(self._task, completed=done, text=text)
            self._bar.refresh()
        elif self._next == 0.0:
            self._next = now + min(1.0, _LINE_SECONDS)
        else:
            self._next = now + _LINE_SECONDS
            self._print(f"{done:4.0%}  {text}")

    def say(self, text: str) -> None:
        self._print(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()
            self._bar = None

    def _print(self, text: str) -> None:
        self._console.print(escape(text), highlight=False, soft_wrap=True)
