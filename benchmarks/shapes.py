"""Prompt accuracy of the recipe `shapes` on captions whose combinations were held out, read back from the pixels.

    python -m benchmarks.shapes [--run runs/shapes] [--n 500] [--write]

Run it after `sfumato train shapes minutes=15`. Prints the scores at several guidance scales with the real pictures' own
score beside them; `--write` keeps them in benchmarks/results/shapes.json and a sheet of samples in docs/pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks._table import RESULTS, machine, versions
from sfumato import media
from sfumato.data import Shapes, matches_many
from sfumato.evaluate import caption_scores
from sfumato.pipeline import Pipeline

SHEET = Path(__file__).parents[1] / "docs" / "pictures" / "shapes.png"
GUIDANCE = (1.0, 3.0, 5.0)


def sheet(pipeline: Pipeline, captions: list[str], guidance: float) -> None:
    """Samples of held-out captions, the caption below each."""
    made = pipeline(captions, guidance_scale=guidance, seed=0)
    pictures = [media.to_image(item) for item in made.media]
    SHEET.parent.mkdir(parents=True, exist_ok=True)
    media.save_png(media.grid(pictures, 4, captions, scale=4), SHEET, {"guidance": str(guidance)})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shapes", description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/shapes"))
    parser.add_argument("--n", type=int, default=500, help="held-out captions, one sample each")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    pipeline, data = Pipeline.from_pretrained(options.run), Shapes()
    rows: list[dict[str, Any]] = []
    for guidance in GUIDANCE:
        scores = caption_scores(pipeline, data, matches_many, n=options.n, guidance=guidance)
        rows.append({"case": "shapes.prompt_accuracy", "guidance": guidance, **scores.to_dict()["metrics"]})
        for name, score in scores.metrics.items():
            print(f"guidance {guidance:g}  {name:22} {score.value:8.3f}  real {score.real}  {score.note}", flush=True)
    if not options.write:
        return
    best = max(rows, key=lambda row: float(row["prompt_accuracy"]["value"]))
    held_out = data.split("held_out")
    sheet(pipeline, list(map(str, held_out.columns(range(0, 160, 10))["caption"])), best["guidance"])
    state = json.loads((options.run / "state.json").read_text(encoding="utf-8"))
    found = {
        "rows": rows,
        "n": options.n,
        "machine": machine(threads=torch.get_num_threads()),
        "versions": versions("sfumato", "numpy"),
        "trained": state,
    }
    (RESULTS / "shapes.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
