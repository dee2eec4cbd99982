"""Saving the state of a run with all its processes, at once or behind its back; and finding the newest that is intact.

Every process writes what it holds, one file for each group of tensors. Only when all have written theirs does the main
process give the checkpoint its manifest and its name, so there is no moment at which half of it could be taken for a whole.

Behind the training's back (`Saver.start`): the state is copied to the host's memory, which is all that the step waits for,
and a thread writes the copies. One save is under way at most. While it is, processes ask one another at every step whether
all have written (one word); nothing is sent by the thread, so it can't get between the messages of the training. A failure
is raised at the next step after it, on all processes alike.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from sfumato.device import free_memory
from sfumato.errors import NoCheckpointError, SfumatoError, UserError
from sfumato.files import CorruptError, DiskFullError, UnwritableError
from sfumato.tensorfile import Slice, Written
from sfumato.train.checkpoint import Checkpoints, Groups, Loaded, describe, size_of
from sfumato.train.parallel import Words

_KINDS: tuple[type[SfumatoError], ...] = (DiskFullError, UnwritableError, NoCheckpointError, UserError, SfumatoError)


class Together(Protocol):
    """What is asked of the processes of a run (`Parallel`)."""

    @property
    def rank(self) -> int:
        """Of this process."""

    @property
    def size(self) -> int:
        """How many there are."""

    def agree(self, words: Words) -> Words:
        """The words of all processes together."""

    def everyone(self, value: Any) -> list[Any]:
        """What each process has, in the order of their ranks."""


@final
@dataclass(frozen=True)
class _Outcome:
    """What a process came to: a value, or a failure that can be sent to the others."""

    value: Any = None
    failure: tuple[int, str] | None = None

    @classmethod
    def of(cls, work: Callable[[], Any]) -> _Outcome:
        try:
            return cls(work())
        except SfumatoError as error:
            kind = next(i for i, known in enumerate(_KINDS) if isinstance(error, known))
            return cls(failure=(kind, str(error)))
        except OSError as error:
            return cls(failure=(_KINDS.index(UnwritableError), f"a checkpoint could not be written: {error}"))


@dataclass
class _Job:
    """A save that is under way: the thread that works for it and what came of that."""

    inside: Path
    step: int
    text: str
    also: Callable[[Path], None]
    publishing: bool = False
    thread: threading.Thread | None = None
    outcome: _Outcome = _Outcome()
    broken: BaseException | None = None

    def run(self, work: Callable[[], Any]) -> None:
        def body() -> None:
            try:
                self.outcome = _Outcome.of(work)
            except BaseException as error:  # a mistake of ours: raised where somebody sees it
                self.broken = error

        self.thread = threading.Thread(target=body, name="checkpoint", daemon=True)
        self.thread.start()

    @property
    def working(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def result(self) -> _Outcome:
        if self.thread is not None:
            self.thread.join()
        if self.broken is not None:
            raise self.broken
        return self.outcome


@final
class Saver:
    """Writes and reads the checkpoints of a run, all its processes together. Every process must call each method.

    failed: saves that were not made, since the process began.
    """

    def __init__(self, checkpoints: Checkpoints, parallel: Together) -> None:
        self.checkpoints, self.parallel = checkpoints, parallel
        self.failed = 0
        self._job: _Job | None = None
        self._copies: dict[str, dict[str, Tensor]] = {}  # in the host's memory, used again for every save

    @property
    def main(self) -> bool:
        """Whether this process publishes."""
        return self.parallel.rank == 0

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._job is not None

    # ------------------------------------------------------------ writing

    def save(self, step: int, groups: Groups, info: Mapping[str, Any]) -> None:
        """Write a checkpoint now. Raises DiskFullError, UserError or SfumatoError, on all processes alike."""
        self.wait()
        job = self._begin(step, groups, info, lambda folder: None)
        try:
            files = self._all(_Outcome.of(lambda: self._write(job, groups)))
            self._all(_Outcome.of(lambda: self._publish(job, files)))
        except BaseException:
            self._discard(job)
            raise

    def start(self, step: int, groups: Groups, info: Mapping[str, Any], also: Callable[[Path], None]) -> bool:
        """Copy the state and write it behind the training's back; `poll` says what became of it.

        also: called with the published folder, in the thread of the main process, where it changes nothing of the training.
        Returns False, with nothing done, if a host has no memory left for the copy. Raises as `save` does.
        """
        self.wait()
        if not all(self.parallel.everyone(self._has_room(groups))):
            return False
        job = self._begin(step, groups, info, also)
        copies = self._snapshot(groups)
        if self.parallel.size == 1:
            job.publishing = True
            job.run(lambda: self._publish(job, [self._write(job, copies)]))
        else:
            job.run(lambda: self._write(job, copies))
        self._job = job
        return True

    def poll(self) -> bool:
        """To be called at every step: whether a save that was under way is now done. Raises what it failed with."""
        job = self._job
        if job is None:
            return False
        if self.parallel.agree(Words(0.0, asked=job.working)).asked:
            return False
        try:
            files = self._all(job.result())
            if not job.publishing:
                job.publishing = True
                job.outcome, job.thread = _Outcome(), None
                if self.main:
                    job.run(lambda: self._publish(job, files))
                return False
        except BaseException:
            self._job = None
            self._discard(job)
            raise
        self._job = None
        return True

    def wait(self) -> None:
        """Until no save is under way. Raises what it failed with."""
        while self._job is not None:
            self._job.result()
            self.poll()

    def close(self) -> None:
        """Leave. What this process alone has under way is finished; of several processes the others may be gone."""
        if self._job is not None and self._job.thread is not None:
            self._job.thread.join()
        self._job = None

    def _begin(self, step: int, groups: Groups, info: Mapping[str, Any], also: Callable[[Path], None]) -> _Job:
        bytes_ = sum(self.parallel.everyone(size_of(groups)))
        begun = _Outcome.of(lambda: self.checkpoints.begin(step, bytes_) if self.main else None)
        try:
            inside = self._all(begun)[0]
        except SfumatoError:
            self.failed += 1
            raise
        return _Job(inside, step, describe(info, self.parallel.size), also)

    def _write(self, job: _Job, groups: Groups) -> dict[str, Written]:
        return self.checkpoints.write(job.inside, groups, self.parallel.rank, self.parallel.size)

    def _publish(self, job: _Job, files: list[dict[str, Written]]) -> None:
        if self.main:
            together = {name: file for part in files for name, file in part.items()}
            job.also(self.checkpoints.publish(job.inside, job.step, job.text, together))

    def _discard(self, job: _Job) -> None:
        self.failed += 1
        if self.main:
            self.checkpoints.discard(job.inside)

    def _all(self, own: _Outcome) -> list[Any]:
        """What all processes came to; raises on all of them what one failed with."""
        found: list[_Outcome] = self.parallel.everyone(own)
        for outcome in found:
            if outcome.failure is not None:
                kind, text = outcome.failure
                raise _KINDS[kind](text)
        return [outcome.value for outcome in found]

    def _snapshot(self, groups: Groups) -> dict[str, dict[str, Slice]]:
        """Copies in the host's memory, pinned where a GPU writes them: into the places of the last ones."""
        on_gpu = False
        copied: dict[str, dict[str, Slice]] = {}
        for group, tensors in groups.items():
            places = self._copies.setdefault(group, {})
            copied[group] = {}
            for name, piece in tensors.items():
                source, place = piece.tensor.detach(), places.get(name)
                if place is None or place.shape != source.shape or place.dtype != source.dtype:
                    place = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
                places[name] = place.copy_(source, non_blocking=source.is_cuda)
                on_gpu |= source.is_cuda
                copied[group][name] = Slice(place, piece.shape, piece.start)
        if on_gpu:
            torch.cuda.synchronize()
        return copied

    def _has_room(self, groups: Groups) -> bool:
        if self._copies:
            return True
        free = free_memory()
        return free is None or free > 2 * size_of(groups) * self.parallel.size  # all may be on this host

    # ------------------------------------------------------------ reading

    def load(self, warn: Callable[[str], None]) -> Loaded | None:
        """The newest checkpoint that verifies, the same on all processes; None if there never was one.

        Files are checked by all processes together, each its share. A damaged checkpoint is named to `warn` of the main
        process and set aside. Raises NoCheckpointError when all are damaged.
        """
        names: list[str] = self.parallel.everyone(self.checkpoints.candidates() if self.main else None)[0]
        for name in names:
            loaded, own = None, ""
            try:
                self.checkpoints.verify(name, self.parallel.rank, self.parallel.size)
                loaded = self.checkpoints.read(name, verify=False)
            except CorruptError as error:
                own = str(error)
            found = [reason for reason in self.parallel.everyone(own) if reason]
            if not found:
                return loaded
            if self.main:
                warn(self.checkpoints.set_aside(name, found[0]))
        self._all(_Outcome.of(lambda: self.checkpoints.require_none() if self.main else None))
        return None


@torch.no_grad()
def fill(model: nn.Module, loaded: Loaded) -> nn.Module:
    """Give a model of that kind the first averaged weights of a checkpoint, and the buffers that it had."""
    averages, weights = loaded.groups["ema"], loaded.groups["weights"]
    for name, p in model.named_parameters():
        if f"0.{name}" in averages:
            p.copy_(averages[f"0.{name}"])
    for name, buffer in model.named_buffers():
        if f"model.{name}" in weights and weights.shape(f"model.{name}") == tuple(buffer.shape):
            buffer.copy_(weights[f"model.{name}"])
    return model
