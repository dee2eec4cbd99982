"""How long a training stands still for a checkpoint: written while it waits, against written behind its back.

    python -m benchmarks.saving [--device cuda] [--millions 20] [--repeats 5] [--threads 2] [--folder PLACE] [--write]

The state is that of a training with AdamW and one average: weights, average and two moments, float32, 16 bytes a parameter. A
step is a product of two matrices, as long as a step of a small model. Rows, in seconds:

`stall`: the step that saves (`Saver.start`: copy the state to the host, begin to write) against the same with a save that
is waited for (`Saver.save`: write, hash, flush to the disk, publish). The median of the repeats after the first, which also
finds memory for the copy.
`all steps until it is written`: the stall, and by how much the steps that are made while the thread writes are longer than
others, added up. On a CPU the thread needs a core and the memory's bandwidth, and takes them from the training where there is
none to spare; beside a GPU it does not.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks._table import RESULTS, Row, machine, show, versions, write
from sfumato.tensorfile import Slice
from sfumato.train import Checkpoints
from sfumato.train.parallel import Parallel
from sfumato.train.saving import Saver


def state(millions: float, device: str) -> dict[str, dict[str, Slice]]:
    """Tensors of 2^20 elements, as layers have them."""
    n = max(1, round(millions * 1e6 / 2**20))

    def group(kinds: int) -> dict[str, Slice]:
        return {f"{i}": Slice.whole(torch.randn(1024, 1024, device=device)) for i in range(kinds * n)}

    return {"weights": group(1), "ema": group(1), "optimizer": group(2)}


def steps(device: str) -> Callable[[], float]:
    """Makes a step and says how long it took."""
    x = torch.randn(512, 1024, device=device)
    w = torch.randn(1024, 1024, device=device)

    def step() -> float:
        begun = time.perf_counter()
        for _ in range(8):
            torch.tanh_(x @ w)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    return step


def measure(
    saver: Saver, tensors: dict[str, dict[str, Slice]], step: Callable[[], float], number: int
) -> dict[str, float]:
    """One save of each kind."""
    usual = statistics.median(step() for _ in range(20))
    begun = time.perf_counter()
    saver.save(number, tensors, {})
    waited = time.perf_counter() - begun
    begun = time.perf_counter()
    if not saver.start(number + 1, tensors, {}, lambda folder: None):
        raise SystemExit("there is no memory for a copy of the state")
    stall = time.perf_counter() - begun
    longer, made = 0.0, 0
    while not saver.poll() and saver.busy:
        longer += step() - usual
        made += 1
    return {"sync": waited, "async": stall, "longer": longer, "steps": made, "usual": usual}


def main() -> None:
    """Measure, show, and with --write keep."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--device", default="cpu")
    asked.add_argument("--millions", type=float, default=20)
    asked.add_argument("--repeats", type=int, default=5)
    asked.add_argument("--folder", type=Path)
    asked.add_argument("--threads", type=int, default=torch.get_num_threads(), help="as a training: all cores")
    asked.add_argument("--write", action="store_true")
    words = asked.parse_args()
    torch.set_num_threads(words.threads)
    tensors, step = state(words.millions, words.device), steps(words.device)
    with tempfile.TemporaryDirectory(dir=words.folder) as folder:
        saver = Saver(Checkpoints(Path(folder) / "checkpoints", keep=1), Parallel())
        found = [measure(saver, tensors, step, 2 * i + 1) for i in range(words.repeats + 1)][1:]
    middle = {name: statistics.median(one[name] for one in found) for name in found[0]}
    settings = {"million_parameters": words.millions, "device": words.device, "threads": words.threads, **middle}
    facts = (None, machine(), versions("torch"), settings)
    rows = [
        Row("stall", middle["async"], middle["sync"], "s", *facts),
        Row("all steps until it is written", middle["async"] + middle["longer"], middle["sync"], "s", *facts),
    ]
    show(rows)
    if words.write:
        write(rows, RESULTS / f"saving_{words.device}.json")


if __name__ == "__main__":
    main()
