"""Notices that a run hangs: says where it stands, then ends the process so that what started it can start it again.

A process that waits forever, for a device, another process or a disk, uses its machine up and says nothing. The watchdog is
told of every step (`beat`). When none came for some time it writes the stacks of all threads to `hang-TIME.txt` in the run's
folder; when none came for as long again, the process ends with exit code 1, at once and without cleaning up, because what
hangs can't be asked to. Under an elastic launcher (torchrun) that restarts the run from its newest checkpoint.

What it can't notice: a hang that holds Python's global lock, for then this thread does not run either. Libraries let go of
it while they wait; NCCL's own timeout covers collectives beside this.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, final

LEAST = 600.0  # seconds without a step that are never a hang
TIMES = 20.0  # of the slowest step so far
_LONGEST_NAP = 60.0
_DEBUGGERS = {"pdb.py", "bdb.py", "pydevd.py"}


def _exit() -> None:
    os._exit(1)


@final
class Watchdog:
    """Watches from `__enter__` to `__exit__`, from a thread that sleeps.

    folder: of the run. seconds: without a step, after which the stacks are written, and after as many again the process ends;
    None for max(600, 20 times the slowest step so far); 0 for never. rank: of this process, for the file's name where there
    are several. say: for a sentence to the user. abort: ends the process.

    Cost: a beat sets three attributes (under a microsecond), and the thread wakes up once a minute, or once in `seconds`.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float | None = None,
        *,
        rank: int | None = None,
        say: Callable[[str], object] = lambda text: None,
        abort: Callable[[], object] = _exit,
    ) -> None:
        self._folder, self._seconds, self._rank = folder, seconds, rank
        self._say, self._abort = say, abort
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._last = time.monotonic()  # when the last beat came, or the last pause ended
        self._beats, self._slowest = 0, 0.0
        self._facts: Mapping[str, Any] = {}
        self._pauses: tuple[tuple[str, float | None], ...] = ()  # (what, longest); never changed in place

    @property
    def limit(self) -> float:
        """Seconds without a step that are taken for a hang now; infinite for never."""
        pauses = self._pauses
        if pauses:
            longest = pauses[-1][1]
            return float("inf") if longest is None else longest
        return self._usual

    @property
    def _usual(self) -> float:
        """The limit where nothing is paused."""
        if self._seconds == 0:
            return float("inf")
        return max(LEAST, TIMES * self._slowest) if self._seconds is None else self._seconds

    def beat(self, facts: Mapping[str, Any] | None = None) -> None:
        """A step is done. facts: what the report will say of it; kept as they are, so nothing should wait for a device."""
        now = time.monotonic()
        if now - self._last > self._slowest and self._beats:
            self._slowest = now - self._last
        self._last = now
        self._beats += 1
        if facts is not None:
            self._facts = facts

    @contextmanager
    def paused(self, what: str, longest: float | None = None) -> Iterator[None]:
        """While something goes on that is known to be long: no step is due. longest: seconds it may take, None for any."""
        before, self._pauses = self._pauses, (*self._pauses, (what, longest))
        self._last = time.monotonic()
        try:
            yield
        finally:
            self._last = time.monotonic()
            self._pauses = before

    def __enter__(self) -> Self:
        self._last = time.monotonic()
        self._ended.clear()
        if self._seconds != 0:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(1.0)  # a report that hangs itself is not waited for
            self._thread = None

    # ------------------------------------------------------------ its thread

    def _watch(self) -> None:
        written: tuple[float, float] | None = None  # when a hang was written down, and of which beat
        while True:
            limit = self.limit  # before the beat: a pause that ends in between has set that first
            last = self._last
            if written is not None and written[1] != last:
                written = None
                self._aside(partial(self._say, "the run goes on after all"), limit)
            since = last if written is None else written[0]
            left = since + limit - time.monotonic()
            if left > 0 or _in_a_debugger():
                nap = left if left > 0 else limit
                if self._ended.wait(min(nap, self._usual, _LONGEST_NAP)):  # a pause may begin or end meanwhile
                    return
            elif written is None:
                seconds = time.monotonic() - last
                self._aside(partial(self._report, seconds, limit), limit)
                written = (time.monotonic(), last)
            else:
                _shout("no step came after that either; this process ends with exit code 1\n")
                self._abort()
                return

    def _aside(self, call: Callable[[], object], longest: float) -> None:
        """Call in a thread of its own: the disk or the terminal may be what hangs."""
        thread = threading.Thread(target=call, name="watchdog-report", daemon=True)
        thread.start()
        thread.join(min(longest, _LONGEST_NAP))

    def _report(self, seconds: float, limit: float) -> None:
        now = datetime.now().strftime("%Y%m%d-%H%M%S")
        file = self._folder / f"hang-{now}{'' if self._rank is None else f'-rank{self._rank}'}.txt"
        where = str(file)
        try:
            file.write_text(self._text(seconds, limit), encoding="utf-8")
        except OSError as error:
            where = f"standard error, as {file} can't be written ({error.strerror})"
            _shout(self._text(seconds, limit))
        self._say(
            f"warning: no step came for {seconds:.0f} s; the stacks of all threads are in {where}, "
            f"and in {limit:.0f} s more the process ends"
        )

    def _text(self, seconds: float, limit: float) -> str:
        pauses = self._pauses
        what = f" in '{pauses[-1][0]}'" if pauses else ""
        lines = [
            f"no step for {seconds:.1f} s{what}; {limit:.1f} s are taken for a hang",
            f"slowest step: {self._slowest:.1f} s",
            f"steps made by this process: {self._beats}, process {os.getpid()}",
            *(f"{name}: {value}" for name, value in self._facts.items()),
        ]
        return "\n".join(lines) + "\n\n" + stacks()


def stacks() -> str:
    """The Python stacks of all threads, the main one first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != main)
    return "\n".join(
        f"thread {names.get(ident, '?')} ({ident}), most recent call last:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in frames
    )


def _in_a_debugger() -> bool:
    """Whether the main thread stands in a debugger: somebody looks at it, it does not hang."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if Path(frame.f_code.co_filename).name in _DEBUGGERS:
            return True
        frame = frame.f_back
    return False


def _shout(text: str) -> None:
    """Write to standard error past every lock that a thread may hold."""
    with suppress(OSError):
        os.write(2, text.encode())
