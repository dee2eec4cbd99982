"""Bits a dimension of a trained model, by the probability-flow ODE and by the variational bound, with error bars.

    python -m benchmarks.likelihood --run runs/x [--data PATH] [--n 359] [--cases ode,bound] [--batch 64] [--device cuda]

RUN is a run folder, or a model folder with --data. Scores the held-out part, each item under its own condition, prints a
line a case as it is done and, with --out FILE, writes all as JSON. `--cases all` adds the exact divergence: one backward
pass for every number of an item, for small items only.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks._table import machine, versions
from sfumato.data import Data, open_data
from sfumato.device import choose_device, wait
from sfumato.evaluate import OdeLikelihood, VariationalBound, nll
from sfumato.pipeline import Pipeline
from sfumato.recipes import load_recipe
from sfumato.spec import Spec

CASES: dict[str, OdeLikelihood | VariationalBound] = {
    "ode": OdeLikelihood(),
    "ode-tight": OdeLikelihood(rtol=1e-5, atol=1e-5),
    "ode-100": OdeLikelihood(evaluations=100),
    "ode-2x2": OdeLikelihood(draws=2, probes=2),
    "bound": VariationalBound(),
    "bound-13": VariationalBound(logsnr_max=13.0),
    "chain-1000": VariationalBound(steps=1000),
    "chain-1000-large": VariationalBound(steps=1000, variance="large"),
    "ode-exact": OdeLikelihood(divergence="exact"),
}
USUAL = ("ode", "ode-100", "ode-2x2", "bound", "bound-13", "chain-1000", "chain-1000-large")


def measure(pipeline: Pipeline, data: Data, n: int | None, batch: int, name: str) -> dict[str, Any]:
    """One case: the score in `unit`, its interval, standard errors, cost and settings."""
    method, began, shown = CASES[name], time.perf_counter(), [time.perf_counter()]

    def on_batch(done: int, total: int) -> None:
        now = time.perf_counter()
        if now - shown[0] > 10:
            shown[0] = now
            print(f"  {name}: {done} of {total}, {(now - began) * (total - done) / done:.0f} s left", flush=True)

    found = nll(pipeline, data, n, method, batch=batch, on_batch=on_batch)
    wait(pipeline.model.device)
    return {
        "case": name,
        "value": found.value,
        "interval": found.score.interval,
        "unit": found.unit,
        "standard_errors": found.errors,
        "n": len(found.nats),
        "evaluations": found.evaluations,
        "seconds": round(time.perf_counter() - began, 1),
        "terms": dict(found.terms),
        "settings": asdict(method),
        "about": found.about,
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table in docs/likelihood.md."""
    errors = ", ".join(f"{name} {error:.4f}" for name, error in row["standard_errors"].items())
    cells = (
        row["case"],
        f"{row['value']:.3f}",
        errors,
        f"{row['evaluations']:.0f}",
        f"{row['seconds']:.0f} s",
        row["n"],
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.likelihood", description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="a run folder, or a model folder")
    parser.add_argument("--data", help="the data, if not as the run's recipe says")
    parser.add_argument("--n", type=int, help="held-out items, evenly spread; all by default")
    parser.add_argument("--cases", default=",".join(USUAL), help=f"of {', '.join(CASES)}, or all")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", help="bf16 or fp16 for the network; fp32 by default")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    names = list(CASES) if options.cases == "all" else options.cases.split(",")
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"there is no case {unknown[0]}; known: {', '.join(CASES)}")
    if options.data is None and not (options.run / "recipe.yaml").is_file():
        parser.error("a model folder does not say what it was trained on; give --data")
    spec: Spec[Data] = load_recipe(options.run).data if options.data is None else open_data(options.data)
    device = choose_device(options.device)
    pipeline = Pipeline.from_pretrained(options.run).to(device, options.dtype)
    data = spec.build().split("held_out")
    rows: list[dict[str, Any]] = []
    for name in names:
        rows.append(measure(pipeline, data, options.n, options.batch, name))
        print(line(rows[-1]), flush=True)
        if options.out is not None:  # after every case: a long run that is cut short keeps what it has
            gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
            found = {
                "rows": rows,
                "model": {k: v for k, v in pipeline.trained.items() if k != "environment"},
                "data": spec.to_dict(),
                "machine": machine(threads=torch.get_num_threads(), gpu=gpu),
                "versions": versions("sfumato", "numpy"),
            }
            options.out.write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
