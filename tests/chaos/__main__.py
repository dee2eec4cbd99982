"""Faults in full: `python -m tests.chaos [row ...]`. A line a row at the end, the same as JSON in runs/chaos.json.

Exit code 1 if a row failed. `--short` runs the forms of `make test`; `--keep` leaves the runs on the disk.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from sfumato.files import write_atomic
from tests.chaos.rings import row4, row7, row9
from tests.chaos.row import Row
from tests.chaos.saves import row1, row2, row3
from tests.chaos.steps import row5, row6, row8

ROWS: Mapping[int, Callable[[Path, bool], Row]] = {
    1: row1, 2: row2, 3: row3, 4: row4, 5: row5, 6: row6, 7: row7, 8: row8, 9: row9,
}  # fmt: skip
OUT = Path("runs/chaos.json")


def run(number: int, folder: Path, full: bool) -> Row:
    """One row; a mistake in it is a failure of the row."""
    begun = time.monotonic()
    folder.mkdir(parents=True)
    try:
        row = ROWS[number](folder, full)
    except Exception as error:
        traceback.print_exc()
        row = Row(number, (ROWS[number].__doc__ or "").strip(), "fail", f"{type(error).__name__}: {error}")
    row.facts["seconds"] = round(time.monotonic() - begun, 1)
    return row


def main(words: list[str]) -> int:
    """Run the rows that are named, or all."""
    torch.set_num_threads(1)
    full = "--short" not in words
    asked = [int(word) for word in words if word.isdigit()] or list(ROWS)
    rows = []
    place = Path(tempfile.mkdtemp(prefix="sfumato-chaos-"))
    try:
        for number in asked:
            rows.append(run(number, place / f"row{number}", full))
            print(f"{rows[-1]} [{rows[-1].facts['seconds']} s]", flush=True)
    finally:
        if "--keep" not in words:
            shutil.rmtree(place, ignore_errors=True)
    OUT.parent.mkdir(exist_ok=True)
    machine = {"cores": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()}
    found = {"full": full, "machine": machine, "rows": [row.to_dict() for row in rows]}
    write_atomic(OUT, json.dumps(found, indent=1) + "\n")
    print()
    for row in rows:
        print(row)
    return int(any(row.verdict == "fail" for row in rows))


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is forked trains on the CPU, and can't where autograd sees a GPU
    sys.exit(main(sys.argv[1:]))
