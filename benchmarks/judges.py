"""The two judges of CIFAR-10 in whose features models are compared: trained on the training part alone, and kept.

    python -m benchmarks.judges --data PATH/cifar10 --out runs/judges [--only wrn] [--device cuda] [--epochs 40] [--json FILE]

Writes OUT/wrn16-4 and OUT/vgg64, folders for `sfumato eval RUN metrics=features extractor=OUT/wrn16-4,OUT/vgg64`, and prints
accuracy on the held-out part (the test part) with its interval, and the seconds it took. Meant for a GPU; a CPU needs hours.
A judge that is there is not trained again unless --fresh is given.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks._table import machine, versions
from sfumato.data import Data, open_data
from sfumato.device import choose_device
from sfumato.evaluate import Judge
from sfumato.recipes.judges_pictures import USUAL, train_picture_judge

FOLDERS = {"wrn": "wrn16-4", "vgg": "vgg64"}


def train(data: Data, architecture: str, device: torch.device, epochs: int | None) -> Judge:
    """One judge, a line an epoch on standard error."""
    usual = USUAL[architecture]
    schooling = usual if epochs is None else replace(usual, epochs=epochs)

    def on_epoch(done: int, of: int, loss: float) -> None:
        print(f"  {FOLDERS[architecture]}: epoch {done} of {of}, loss {loss:.3f}", file=sys.stderr, flush=True)

    return train_picture_judge(data, architecture, schooling=schooling, device=device, on_epoch=on_epoch)


def row(judge: Judge, folder: Path) -> dict[str, Any]:
    """What is known of a judge."""
    kept = ("accuracy", "interval", "judged", "items", "seconds", "settings", "fingerprint")
    count = sum(p.numel() for p in judge.parameters())
    about = {"folder": str(folder), "sha256": judge.weights_sha256, "parameters": count}
    return {"name": judge.name, **{key: judge.trained[key] for key in kept}, **about}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judges", description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="the folder of CIFAR-10, or other small labelled pictures")
    parser.add_argument("--out", type=Path, required=True, help="where the folders of the judges are put")
    parser.add_argument("--only", choices=sorted(FOLDERS), help="one of the two")
    parser.add_argument("--epochs", type=int, help="instead of the usual number")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--fresh", action="store_true", help="train again what is there")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    options = parser.parse_args()
    device, data = choose_device(options.device), open_data(options.data).build()
    rows = []
    for architecture, name in FOLDERS.items():
        if options.only not in (None, architecture):
            continue
        folder = options.out / name
        if (folder / "judge.json").is_file() and not options.fresh:
            judge = Judge.load(folder)
        else:
            judge = train(data, architecture, device, options.epochs)
            judge.save(folder)
        rows.append(row(judge, folder))
        low, high = rows[-1]["interval"]
        print(
            f"{name}: {rows[-1]['accuracy']:.2%} ({low:.2%} ... {high:.2%}) of {rows[-1]['judged']:,} held-out pictures, "
            f"{rows[-1]['seconds']:.0f} s, {rows[-1]['parameters']:,} parameters, in {folder}",
            flush=True,
        )
    if options.json is not None:
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        found = {
            "rows": rows,
            "machine": machine(threads=torch.get_num_threads(), gpu=gpu),
            "versions": versions("numpy"),
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
