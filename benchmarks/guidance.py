"""Every guidance on the digits model: accuracy against variety, from the same seeds.

    sfumato train digits samples=40000 name=digits
    sfumato train digits samples=10000 width=16 name=digits-worse
    python -m benchmarks.guidance [--run runs/digits] [--worse runs/digits-worse] [--each 100] [--json] [--write]

Prints a table (with --json a list of rows to standard output); `--write` keeps the rows in benchmarks/results/guidance.json.
Scores are those of `sfumato.evaluate.class_scores`; those of real held-out digits are in the first row.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks._table import RESULTS, machine, versions
from sfumato.data import Digits
from sfumato.evaluate import class_scores
from sfumato.guidance import (
    Autoguidance,
    Chain,
    ClassifierFree,
    Dynamic,
    Guidance,
    PerturbedAttention,
    PlusPlus,
    Projected,
    Static,
    Threshold,
    ZeroStar,
)
from sfumato.pipeline import Pipeline
from sfumato.recipes.judges import digits_judge
from sfumato.samplers import DDIM, Solver

SHOWN = ("prompt_accuracy", "deviation", "coverage_pixels", "coverage_features", "fd", "near_copies")


@dataclass(frozen=True)
class Case:
    """One way to sample. solver: instead of the model's own."""

    name: str
    guidance: Guidance | None
    threshold: Threshold | None = None
    solver: Solver | None = None


def cases(worse: str) -> list[Case]:
    """What is compared; guidance by another model only where there is one."""
    found = [Case("none", None), Case("none, ddim", None, solver=DDIM())]
    found += [Case(f"cfg {w:g}", ClassifierFree(w)) for w in (1.25, 2.0, 4.0, 8.0)]
    found += [Case("cfg 4, rescale 0.7", ClassifierFree(4.0, rescale=0.7))]
    found += [Case("cfg 4, interval -3 to 3", ClassifierFree(4.0, interval=(-3.0, 3.0)))]
    found += [
        Case("cfg 8, static", ClassifierFree(8.0), Static()),
        Case("cfg 8, dynamic", ClassifierFree(8.0), Dynamic()),
    ]
    found += [Case(f"apg {w:g}", Projected(w)) for w in (2.0, 4.0, 8.0)]
    found += [Case(f"cfg-zero {w:g}", ZeroStar(w)) for w in (1.25, 2.0, 4.0)]
    found += [Case("cfg-zero 2, zero_init 0.04, ddim", ZeroStar(2.0, zero_init=0.04), solver=DDIM())]
    found += [Case("cfg 2, ddim", ClassifierFree(2.0), solver=DDIM())]
    found += [Case(f"cfg++ {w:g}, ddim", PlusPlus(w), solver=DDIM()) for w in (0.3, 0.6, 1.0)]
    found += [Case(f"pag {w:g}", PerturbedAttention(w)) for w in (0.5, 1.0, 2.0)]
    if worse:
        found += [Case(f"auto {w:g}", Autoguidance(worse, w)) for w in (1.5, 2.0, 3.0)]
        found += [Case("cfg 1.25, auto 1.5", Chain(ClassifierFree(1.25), Autoguidance(worse, 1.5)))]
    return found


def row(pipeline: Pipeline, case: Case, each: int, data: Digits, judge: Any) -> dict[str, Any]:
    """The scores of one case."""
    own = pipeline.sampling
    sampling = replace(own, guidance=case.guidance, threshold=case.threshold, solver=case.solver or own.solver)
    scores = class_scores(Pipeline(pipeline.model, pipeline.spec, sampling), data, judge, each=each)
    found = {name: {"value": score.value, "real": score.real} for name, score in scores.metrics.items()}
    settings = {k: scores.settings.get(k) for k in ("guidance", "threshold", "solver", "grid", "num_inference_steps")}
    return {"case": case.name, "n": scores.n, **{name: found[name] for name in SHOWN}, "settings": settings}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guidance", description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/digits"))
    parser.add_argument("--worse", type=Path, default=Path("runs/digits-worse"), help="left out if it is not there")
    parser.add_argument("--each", type=int, default=100, help="samples of each digit")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    pipeline, data, judge = Pipeline.from_pretrained(options.run), Digits(), digits_judge(Path("runs"))
    rows: list[dict[str, Any]] = []
    for case in cases(str(options.worse) if options.worse.exists() else ""):
        rows.append(row(pipeline, case, options.each, data, judge))
        if not options.json:
            if len(rows) == 1:
                print(f"{'':34}" + "".join(f"{name:>19}" for name in SHOWN))
                print(f"{'real':34}" + "".join(f"{rows[0][name]['real']:19.3f}" for name in SHOWN))
            print(f"{case.name:34}" + "".join(f"{rows[-1][name]['value']:19.3f}" for name in SHOWN), flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))
    if options.write:
        about = {"machine": machine(threads=torch.get_num_threads()), "versions": versions("sfumato", "numpy")}
        text = json.dumps({"rows": rows, "trained": pipeline.trained, **about}, indent=1, default=str)
        (RESULTS / "guidance.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
