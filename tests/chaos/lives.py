"""Lives of a training: processes that are started, killed and started again, and what they leave.

A life is forked from this process, which has imported everything: a tenth of a second instead of four. Several processes of
one training find one another as under torchrun (RANK, WORLD_SIZE, MASTER_PORT; gloo on the CPU).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.device_mesh
import torch.distributed.fsdp
import torch.distributed.tensor  # what each life would import

from sfumato.errors import SfumatoError
from sfumato.tensorfile import StoredTensors, groups_of
from sfumato.train.checkpoint import Checkpoints
from tests.chaos.child import Speaker
from tests.train.tiny import make_task, make_trainer

BATCH = 16
TIMES = ("seconds", "samples_per_second", "data_wait")  # of a line of the log: what is not a function of the settings
KINDS: Mapping[str, Mapping[str, Any]] = {
    "1 process": {"processes": 1},
    "2 ranks, DDP": {"processes": 2, "parallel": "ddp"},
    "2 ranks, FSDP2": {"processes": 2, "parallel": "fsdp"},
}
forks = pytest.mark.skipif(
    not hasattr(os, "fork") or torch.cuda.is_available(),
    reason="lives of a run are forked, which autograd does not outlive where it sees a GPU: CUDA_VISIBLE_DEVICES= runs it",
)


@dataclass(frozen=True)
class Life:
    """How processes of a training ended: exit codes by rank, negative for a signal."""

    codes: tuple[int, ...]
    seconds: float

    @property
    def code(self) -> int:
        """Of the process that ended worst."""
        return next((code for code in self.codes if code), 0)


Prepare = Callable[[Any, int], None]  # what is done to a trainer and a rank before it begins


def settings(steps: int, **more: Any) -> dict[str, Any]:
    """Of a run that is a function of its settings, dropout and two averages included, and saves about every 30 ms."""
    return {"samples": BATCH * steps, "dropout": 0.2, "checkpoint_minutes": 5e-4, "log_every": 5, **more}


def live(
    folder: Path,
    asked: Mapping[str, Any],
    prepare: Prepare = lambda trainer, rank: None,
    *,
    seconds: float = 60.0,
    make: Callable[..., Any] = make_trainer,
) -> Life:
    """One life: until all processes ended, or one of them did badly, as a launcher has it: then the others are killed."""
    asked = dict(asked)
    size, port = asked.pop("processes", 1), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    pids = [_fork(lambda rank=rank: _train(folder, asked, prepare, rank, size, port, make)) for rank in range(size)]
    codes: dict[int, int] = {}
    while len(codes) < size:
        for pid in set(pids) - codes.keys():
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
        late = time.monotonic() - begun > seconds
        if late or any(code not in (0, 75) for code in codes.values()):
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return Life(tuple(codes[pid] for pid in pids), time.monotonic() - begun)


def _fork(work: Callable[[], int]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        code = work()
    except SfumatoError as error:
        print(error)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _train(
    folder: Path, asked: dict[str, Any], prepare: Prepare, rank: int, size: int, port: int, make: Callable[..., Any]
) -> int:
    with (folder / f"said-{rank}.txt").open("ab", buffering=0) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = os.fdopen(
        1, "w", buffering=1, closefd=False
    )  # and not what pytest has put in their place
    for name in ("PYTEST_CURRENT_TEST", "TORCHELASTIC_RUN_ID"):
        os.environ.pop(name, None)
    if size > 1:
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in where.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    trainer = make(folder, display=Speaker(), **asked)
    prepare(trainer, rank)
    trainer.fit()
    trainer.parallel.close()
    return 0


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# ---------------------------------------------------------------- faults


def kill_after(step: int, delay: float, victim: int = 0) -> Prepare:
    """SIGKILL to a rank, `delay` seconds after a step: wherever it is then, in a step or in a save."""

    def prepare(trainer: Any, rank: int) -> None:
        def watch() -> None:
            while trainer.pace.step < step:
                time.sleep(2e-4)
            time.sleep(delay)
            os.kill(os.getpid(), signal.SIGKILL)

        if rank == victim:
            threading.Thread(target=watch, daemon=True).start()

    return prepare


def at(point: str, save: int, act: Callable[[], None], victim: int = 0) -> Prepare:
    """`act` where the `save`-th save of a rank's life comes to a point."""

    def prepare(trainer: Any, rank: int) -> None:
        saves = 0

        def reached(here: str) -> None:
            nonlocal saves
            saves += here == "begin"
            if here == point and saves == save:
                act()

        def write(*arguments: Any) -> Any:
            reached("begin")  # which the main process alone comes to
            return real(*arguments)

        if rank == victim:
            trainer.checkpoints.reached = reached
            real = trainer.checkpoints.write
            if rank > 0:
                trainer.checkpoints.write = write

    return prepare


def kill_now() -> None:
    """SIGKILL to this process."""
    os.kill(os.getpid(), signal.SIGKILL)


# ---------------------------------------------------------------- what is left


def digests(folder: Path) -> dict[str, str]:
    """sha256 of each group of tensors of the newest checkpoint, put together, and of the logged metrics without times."""
    newest = Checkpoints(folder / "checkpoints").all()[-1]
    found = {}
    for group in groups_of(newest):
        digest = hashlib.sha256()
        stored = StoredTensors(newest, group)
        for name in sorted(stored):
            digest.update(f"{name} {stored[name].dtype} {stored.shape(name)}".encode())
            digest.update(stored[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        found[group] = digest.hexdigest()
    text = json.dumps(metrics(folder), sort_keys=True)
    return {**found, "metrics": hashlib.sha256(text.encode()).hexdigest()}


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of the log without what is a matter of time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def intact(folder: Path) -> list[int]:
    """Steps of the checkpoints that verify."""
    checkpoints = Checkpoints(folder / "checkpoints")
    found = []
    for path in checkpoints.all():
        try:
            checkpoints.verify(path.name)
        except SfumatoError:
            continue
        found.append(int(path.name[5:]))
    return found


def kill_points(n: int, steps: int, processes: int, seed: int) -> Sequence[tuple[int, float, int]]:
    """n random (step, seconds after it, rank), by step."""
    rng = random.Random(seed)
    points = [(rng.randrange(1, steps - 15), rng.random() * 0.02, rng.randrange(processes)) for _ in range(n)]
    return sorted(points)


__all__ = [
    "KINDS",
    "Life",
    "at",
    "digests",
    "forks",
    "intact",
    "kill_after",
    "kill_now",
    "kill_points",
    "live",
    "make_task",
]
