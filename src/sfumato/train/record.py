"""What the main process of a run writes down of it: metrics.jsonl, copies for trackers, the facts of its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, final

from sfumato.data import Data
from sfumato.files import DiskFullError
from sfumato.progress import Display
from sfumato.train.log import MetricsLog
from sfumato.train.run import Run, State
from sfumato.train.schedule import Pace
from sfumato.train.trackers import Guarded, Tracker, make_trackers


@final
class Record:
    """The run's log and trackers. Does nothing unless `main`. A full disk is a warning.

    trackers: besides those of the settings.
    """

    def __init__(self, run: Run, display: Display, trackers: Sequence[Tracker] = (), main: bool = True) -> None:
        self.run, self._display, self._main = run, display, main
        self.log = MetricsLog(run.metrics)
        self._trackers: list[Tracker] = [Guarded(one, type(one).__name__, display.say) for one in trackers]

    def open(
        self, data: Data, pace: Pace, trackers: Sequence[str], config: Mapping[str, Any], lines: int | None = None
    ) -> None:
        """The run begins, or goes on from `pace`; its log has at most so many `lines`."""
        if not self._main:
            return
        self.run.open()
        self.log.truncate(pace.step, lines)
        self.attempt(lambda: self.run.write("data.json", describe_data(data)))
        self._trackers += make_trackers(trackers, self.run.folder, pace.samples, config=config, say=self._display.say)

    def line(self, pace: Pace, entry: Mapping[str, Any]) -> None:
        """A line of the log at a position of the run; the trackers get its numbers."""
        if not self._main:
            return
        self.attempt(lambda: self.log.append({"step": pace.step, "samples": pace.samples, **entry}))
        numbers = {k: v for k, v in entry.items() if isinstance(v, int | float)}
        for tracker in self._trackers:
            tracker.log(numbers, pace.samples)

    def found(self, pace: Pace, found: Mapping[str, Any]) -> None:
        """What a hook gave back: pictures for the trackers, all else for the log too."""
        plain = {k: v for k, v in found.items() if not hasattr(v, "save")}
        if plain:
            self.line(pace, plain)
        for name in found.keys() - plain.keys():
            for tracker in self._trackers:
                tracker.image(name, found[name], pace.samples)

    def state(self, state: State, pace: Pace, loss: float | None) -> None:
        """state.json: what `sfumato runs list` shows."""
        if not self._main:
            return
        numbers = {"step": pace.step, "samples": pace.samples, "seconds": round(pace.seconds, 1)}
        with suppress(DiskFullError):
            self.run.set_state(state, **numbers, progress=round(pace.progress, 4), loss=loss)

    def attempt(self, write: Callable[[], object]) -> None:
        """Write something that the run can do without."""
        try:
            write()
        except DiskFullError as error:
            self._display.say(f"warning: {error}")

    def close(self) -> None:
        """The run has ended."""
        self._display.close()
        for tracker in self._trackers:
            tracker.close()


def describe_data(data: Data) -> dict[str, Any]:
    """What a data set is, for data.json and the report."""
    return {
        "kind": data.kind,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(data.info).items()},
        "train": len(data.split("train")),
        "held_out": len(data.split("held_out")),
        "fingerprint": data.fingerprint(),
        "problems": list(data.problems),
    }
