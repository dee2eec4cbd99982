"""One process of several has failed: the others are told, wherever they are, and end too.

Most failures are agreed on at the end of a step (`Clock.lap`). What can't wait for that, an error in the middle of a
collective, is told through the key-value store that the processes met by. The one that fails writes it there and leaves. The
others notice in one of two ways: their collective fails, because the other end of the line is gone (gloo); or it does not
(NCCL), and a thread that looks into the store once a second ends the process. All exit with the code of the first failure, so
what started them (torchrun) need not kill anybody.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self, final

import torch
import torch.distributed as dist

from sfumato.errors import Interrupted, SfumatoError

_LOOK = 1.0  # seconds between two looks into the store
_GRACE = 10.0  # seconds that a process has to end by itself


@final
@dataclass(frozen=True)
class Failure:
    """What a process has failed with. code: its exit code."""

    rank: int
    said: str
    code: int

    @classmethod
    def of(cls, error: BaseException, rank: int) -> Failure:
        """Of an error."""
        said = " ".join(str(error).split())[:2000]
        said = said if isinstance(error, SfumatoError) else f"{type(error).__name__}: {said}"
        return cls(rank, said, getattr(error, "exit_code", 1))

    def error(self, size: int) -> SfumatoError:
        """For the other processes, of `size` in all."""
        found = SfumatoError(f"process {self.rank} of {size} has failed: {self.said}")
        found.exit_code = self.code
        return found


@final
class Alarm:
    """While entered, an error that leaves it is told to all others. name: the same on all processes, of this run alone.

    An error that came because another process had left is raised as a SfumatoError that names that one's.
    """

    def __init__(self, rank: int, size: int, name: str) -> None:
        self._rank, self._size = rank, size
        # torch has no public name for the store that it made of torchrun's settings
        self._store: Any = dist.distributed_c10d.PrefixStore(
            f"sfumato/{name}", dist.distributed_c10d._get_default_store()
        )
        self._ended, self._agreed = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="alarm", daemon=True)

    def agreed(self) -> None:
        """All processes know of the failure already."""
        self._agreed = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        known = error is None or self._agreed or isinstance(error, Interrupted)
        first = None if error is None or known else self._tell(error)
        self._ended.set()
        self._thread.join(_GRACE)  # one that asks the store while the interpreter ends would abort the process
        if first is not None and first.rank != self._rank and _of_a_collective(error):
            raise first.error(self._size) from error

    def _tell(self, error: BaseException) -> Failure | None:
        """The first failure of all: this one, if none was told before."""
        mine = json.dumps(asdict(Failure.of(error, self._rank)))
        with suppress(RuntimeError):  # the store is gone, and so is whoever kept it
            return Failure(**json.loads(self._store.compare_set("failed", "", mine)))
        return None

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK):
            try:
                if not self._store.check(["failed"]):
                    continue
                first = Failure(**json.loads(self._store.get("failed")))
            except RuntimeError:
                first = Failure(0, "it can't be reached", 1)
            if not self._ended.wait(_GRACE):
                _leave(first, self._size)
            return


def _of_a_collective(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)


def _leave(first: Failure, size: int) -> None:
    """End this process, which waits for another one that is no longer there."""
    with suppress(OSError):
        os.write(2, f"{first.error(size)}; this process ends too\n".encode())
    os._exit(first.code)
