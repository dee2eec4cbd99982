"""One process of a training that torchrun starts (rows 4, 7 and 9): `python -m tests.chaos.child FOLDER SETTINGS`.

Writes what it does beside the run, one JSON object a line, so that it can be compared when the process is gone:
folder/steps-RANK-PID.jsonl: {"time", "world", "start": first sample number, "n", "sha": of the samples}, at its end {"exit"}.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from sfumato.errors import SfumatoError
from tests.train.tiny import make_task, make_trainer


def main() -> int:
    """Train; the exit code of the command line."""
    folder, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    rank, world = os.environ["RANK"], int(os.environ["WORLD_SIZE"])
    slow = asked.pop("slow", 0.0)
    code = 70
    with (folder / f"steps-{rank}-{os.getpid()}.jsonl").open("a", buffering=1) as stream:
        write(stream, pid=os.getpid(), world=world, restart=os.environ.get("TORCHELASTIC_RESTART_COUNT"))
        try:
            trainer = make_trainer(folder, task=make_task(dropout=asked.pop("dropout")), display=Speaker(), **asked)
            note(trainer, stream, world, slow, folder / "slow")
            trainer.fit()
            trainer.parallel.close()
            code = 0
        except SfumatoError as error:
            print(error, flush=True)
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
        write(stream, exit=code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the others may be gone: no goodbye


def note(trainer: Any, stream: Any, world: int, slow: float, while_there: Path) -> None:
    """Write down the samples of every step. slow: seconds that a step takes longer while a file is there."""
    task, real = trainer.task, trainer.task.loss

    def loss(batch: Any, draws: Any) -> Any:
        time.sleep(slow * while_there.exists())
        shas = [hashlib.sha256(item.numpy().tobytes()).hexdigest()[:12] for item in batch.media]
        write(stream, world=world, start=draws.start, n=len(shas), sha=shas)
        return real(batch, draws)

    task.loss = loss


def write(stream: Any, **entry: Any) -> None:
    """One line."""
    stream.write(json.dumps({"time": time.time(), **entry}) + "\n")


class Speaker:
    """A display that prints what is said."""

    def update(self, *_: Any) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Print it."""
        print(text, flush=True)

    def close(self) -> None:
        """Nothing."""


if __name__ == "__main__":
    sys.exit(main())
