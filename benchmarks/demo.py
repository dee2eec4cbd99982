"""The demo's training and sampling on a CPU, now and at an earlier state of this repository, in turn on one machine.

    git worktree add ../before 2835c2e
    python -m benchmarks.demo --before ../before [--rounds 3] [--samples 12000] [--json FILE] [--write]

Every round runs both: recipe `digits` for so many samples, as `make demo` trains it, and a hundred pictures of it by the
command line. The whole commands are timed, the start of the process included; the best round of each counts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._table import RESULTS, Row, machine, show, versions, write

HERE = Path(__file__).resolve().parents[1]


def seconds(checkout: Path, folder: str, *words: str) -> float:
    """Of one command of a checkout's own sfumato."""
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # modules are compiled once, as on a user's machine
    run = [sys.executable, "-m", "sfumato", *words]
    subprocess.run(run, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def once(checkout: Path, samples: int) -> tuple[float, float]:
    """Seconds of the training and of a hundred samples."""
    with tempfile.TemporaryDirectory() as folder:
        trained = seconds(checkout, folder, "train", "digits", f"samples={samples}", "name=demo")
        return trained, seconds(checkout, folder, "sample", "runs/demo", "a handwritten seven", "n=100", "-o", "out")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--before", type=Path, required=True, help="a checkout of an earlier state")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=12_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true", help="write the rows to results/demo.json")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"now": [], "before": []}
    for _ in range(options.rounds):
        for name, checkout in (("now", HERE), ("before", options.before.resolve())):
            found[name].append(once(checkout, options.samples))
            print(f"{name}: {found[name][-1][0]:.1f} s of training, {found[name][-1][1]:.1f} s of sampling", flush=True)
    (train, draw), (train_before, draw_before) = ([min(column) for column in zip(*found[k])] for k in ("now", "before"))
    settings = {"samples": options.samples, "rounds": found, "before": _commit(options.before)}
    about = (None, machine(), versions("sfumato"), settings)
    rows = [
        Row("demo.train", options.samples / train, options.samples / train_before, "samples/s", *about),
        Row("demo.sample", draw, draw_before, "s", *about),
    ]
    show(rows)
    for file in (options.json, RESULTS / "demo.json" if options.write else None):
        if file is not None:
            write(rows, file)


def _commit(checkout: Path) -> str:
    said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    return said.stdout.strip()


if __name__ == "__main__":
    main()
