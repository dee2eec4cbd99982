"""What `test_parallel.py` starts under torchrun: one training of a tiny task, its weights written down."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from sfumato.errors import Interrupted
from sfumato.train.checkpoint import weights
from tests.train.tiny import make_task, make_trainer


class Stop:
    """A hook that asks the last process to stop after some samples, as a cluster's scheduler does."""

    name, times = "stop", 1000

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, moment: Any) -> None:
        if moment.samples >= self.after:
            os.kill(os.getpid(), signal.SIGTERM)

    def end(self, run: Any) -> None:
        return


def main() -> int:
    folder, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    after = asked.pop("stop", None)
    hooks = [] if after is None else [Stop(after)]
    trainer = make_trainer(folder, task=make_task(**asked.pop("task", {})), hooks=hooks, **asked)
    code = 0
    try:
        trainer.fit()
    except Interrupted:
        code = 75
    whole = trainer.parallel.whole(weights(trainer.task))
    if trainer.parallel.main:
        torch.save({"weights": whole, "samples": trainer.pace.samples}, folder / "out.pt")
    trainer.parallel.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
