"""What `test_together.py` starts as two processes: trainings in which one of them meets something the other does not."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.distributed as dist

from sfumato.core import Batch, Draws, Loss
from sfumato.data import Data
from sfumato.errors import SfumatoError
from sfumato.train import Hook, Moment, Task
from sfumato.train.checkpoint import weights
from sfumato.train.parallel import begin
from tests.train.tiny import TinyData, make_task, make_trainer

RANK = int(os.environ.get("RANK", "0"))
BATCH = 16
KEPT: list[Any] = []  # as sharded modules keep their group, whose threads then outlive it


@final
class Broken(Data, name="broken-for-tests"):
    """TinyData of which some items can't be read, or of which batches can't be had on one process."""

    def __init__(self, every: int = 0, fails: tuple[int, int] | None = None) -> None:
        self.data, self.every, self.fails = TinyData(), every, fails

    @property
    def info(self) -> Any:
        return self.data.info

    @property
    def broken_share(self) -> float:
        return 0.05

    def __len__(self) -> int:
        return len(self.data)

    def fetch(self, indices: Any, draws: Any = None) -> Batch:
        if self.fails is not None and draws is not None and self.fails[0] == RANK:
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls > self.fails[1]:
                raise OSError("the disk is gone")
        return self.data.fetch(indices)

    def unreadable(self, indices: Any = None) -> dict[int, str]:
        asked = range(len(self)) if indices is None else np.asarray(indices).tolist()
        return {i: f"item {i}" for i in sorted(set(asked)) if self.every and i % self.every == 0}

    def held_out_mask(self) -> Any:
        return self.data.held_out_mask()

    def fingerprint(self) -> str:
        return self.data.fingerprint()


class Spoiled(Task):
    """The tiny task; something is not finite in the second half of the batch of some steps, so on the last process only."""

    def __init__(self, steps: range | tuple[int, ...], how: str = "loss", twice: bool = False) -> None:
        super().__init__()
        self.inner = make_task()
        self.model = self.inner.model
        self.steps, self.how = steps, how
        if twice:
            self.again = self.inner.model.denoiser.network  # the same module by a second name

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        here = draws.start // BATCH in self.steps and (draws.start + len(batch)) % BATCH == 0
        if here and self.how == "exit":
            raise ValueError("something that only this process has met")
        loss = self.inner.loss(batch, draws)
        if not here:
            return loss
        if self.how == "loss":
            return loss._replace(value=loss.value * torch.nan)
        w = next(self.parameters())
        return loss._replace(value=loss.value + (w.flatten()[0] * 0).sqrt() * 0)


class Failing(Hook):
    times = 10

    def __call__(self, moment: Moment) -> Mapping[str, Any] | None:
        if moment.step >= 8:
            raise OSError("no picture can be drawn")
        return None


class Slow(Hook):
    """Longer than anybody who asks a run to stop would wait."""

    times = 10

    def __call__(self, moment: Moment) -> Mapping[str, Any] | None:
        if moment.step > 30:
            (moment.run.folder / "slow").touch()
            time.sleep(60)
        return {"slow": moment.step}


def scenario(name: str, folder: Path, **more: Any) -> dict[str, Any]:
    """One training, and what this process saw of it."""
    ways: dict[str, dict[str, Any]] = {
        "replaced": {"data": Broken(every=40)},
        "too many": {"data": Broken(every=10)},
        "loader": {"data": Broken(fails=(1, 12))},
        "hook": {"hooks": [Failing()]},
        "skip loss": {"task": Spoiled((3, 4, 11))},
        "plain": {},
        "skip gradient": {"task": Spoiled((3, 4, 11), "gradient")},
        "rollback": {"task": Spoiled(range(20, 40), twice=True), "samples": BATCH * 60, "checkpoint_minutes": 1e-9},
        "exit": {"task": Spoiled((5,), "exit")},
        "slow": {"hooks": [Slow()], "samples": BATCH * 100, "decay": 0.3},
    }
    settings = {"samples": BATCH * 40, "warmup": 0.0, "decay": 0.0, "log_every": 5, **ways[name], **more}
    trainer = make_trainer(folder, **settings)
    found: dict[str, Any] = {"error": None, "code": 0}
    begun = time.monotonic()
    try:
        trainer.fit()
    except SfumatoError as error:
        found = {"error": str(error), "code": error.exit_code}
    except OSError as error:
        found = {"error": f"OSError: {error}", "code": 1}
    found |= {"seconds": time.monotonic() - begun, "step": trainer.pace.step, "skipped": trainer.meter.skipped}
    found["replaced"] = trainer.tally.total.state()
    whole = trainer.parallel.whole(weights(trainer.task))
    if trainer.parallel.main:
        torch.save({k: v.clone() for k, v in whole.items()}, folder / "weights.pt")
    return found


def leave_early() -> None:
    """End while a thread of the group's, done with a tensor, waits for the interpreter in order to let go of it."""
    begin("ddp", "cpu")
    KEPT.append(dist.group.WORLD)
    sys.setswitchinterval(100)
    work = dist.all_reduce(torch.ones(1000), async_op=True)
    if RANK == 1:
        work.wait()
    del work
    until = time.perf_counter() + 1  # without letting the interpreter go
    while time.perf_counter() < until and RANK == 0:
        pass


def main() -> int:
    """Arguments: a folder, and JSON of [[name, folder's name, settings], ...]. The exit code is the last one's."""
    torch.set_num_threads(1)
    root, code = Path(sys.argv[1]), 0
    for name, where, settings in json.loads(sys.argv[2]):
        if name == "leaving":
            leave_early()
            break
        (root / where).mkdir(exist_ok=True)
        found = scenario(name, root / where, **settings)
        (root / where / f"seen-{RANK}.json").write_text(json.dumps(found), encoding="utf-8")
        code = found["code"]
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    sys.exit(main())
