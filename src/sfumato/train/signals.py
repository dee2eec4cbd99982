"""Asking a run to stop: the first signal is a request, a second Ctrl-C quits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self, final

ASKING = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Cut(BaseException):
    """What was going on has been left off, for the run was asked to stop."""


@final
class StopSignals:
    """While entered, SIGINT (Ctrl-C), SIGTERM and SIGUSR1 set `asked`; a second SIGINT raises KeyboardInterrupt at once.

    The others may come as often as they like: a scheduler sends them to every process of a job, and a launcher among these
    passes them on. Signals can be caught in the main thread only; elsewhere this does nothing.
    """

    def __init__(self, on_ask: Callable[[], None]) -> None:
        self.asked = False
        self._on_ask = on_ask
        self._cutting = False
        self._before: dict[signal.Signals, object] = {}

    @contextmanager
    def cutting(self, wanted: bool = True) -> Iterator[None]:
        """Around what need not be finished: `Cut` is raised in it as soon as the run is asked to stop, if `wanted`."""
        try:
            self._cutting = wanted
            if wanted and self.asked:
                raise Cut
            yield
        finally:
            self._cutting = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in ASKING:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.asked = True
        self._on_ask()
        if self._cutting:
            self._cutting = False
            raise Cut
