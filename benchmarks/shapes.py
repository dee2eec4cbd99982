"""Prompt accuracy of the recipe `shapes` on captions whose combinations were held out, read back from the pixels.

    python -m benchmarks.shapes [--run runs/shapes] [--n 500] [--pairs 200] [--write [NAME]]

Run it after `sfumato train shapes minutes=15` (two CPU cores) or `sfumato train shapes size=m minutes=5` (a GPU). Prints the
scores at several guidance scales with the real pictures' own score beside them, and at the best of them the share of
pairs of held-out prompts, different by one word and alike in their seed, whose pictures differ by it. `--write` keeps them in
benchmarks/results/NAME.json and a sheet of samples in docs/pictures/NAME.png, NAME being `shapes`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks._table import RESULTS, machine, versions
from sfumato import media
from sfumato.data import Shapes, matches_many
from sfumato.evaluate import caption_scores
from sfumato.evaluate.attributes import attribute_scores
from sfumato.pipeline import Pipeline

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
GUIDANCE = (1.0, 3.0, 5.0)


def sheet(pipeline: Pipeline, captions: list[str], guidance: float, file: Path) -> None:
    """Samples of held-out captions, the caption below each."""
    made = pipeline(captions, guidance_scale=guidance, seed=0)
    pictures = [media.to_image(item) for item in made.media]
    file.parent.mkdir(parents=True, exist_ok=True)
    media.save_png(media.grid(pictures, 4, captions, scale=4), file, {"guidance": str(guidance)})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shapes", description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/shapes"))
    parser.add_argument("--n", type=int, default=500, help="held-out captions, one sample each")
    parser.add_argument("--pairs", type=int, default=200, help="pairs of prompts for each attribute; 0 for none")
    parser.add_argument("--write", nargs="?", const="shapes", metavar="NAME")
    options = parser.parse_args()
    pipeline, data = Pipeline.from_pretrained(options.run), Shapes()
    if torch.cuda.is_available():
        pipeline.to("cuda")
    rows: list[dict[str, Any]] = []
    for guidance in GUIDANCE:
        scores = caption_scores(pipeline, data, matches_many, n=options.n, guidance=guidance)
        rows.append({"case": "shapes.prompt_accuracy", "guidance": guidance, **scores.to_dict()["metrics"]})
        for name, score in scores.metrics.items():
            print(f"guidance {guidance:g}  {name:22} {score.value:8.3f}  real {score.real}  {score.note}", flush=True)
    best = max(rows, key=lambda row: float(row["prompt_accuracy"]["value"]))
    if options.pairs:
        found = attribute_scores(pipeline, data, n=options.pairs, guidance=best["guidance"])
        rows.append(
            {"case": "shapes.attributes", "guidance": best["guidance"], **{k: asdict(v) for k, v in found.items()}}
        )
        for name, score in found.items():
            low, high = score.interval or (score.value, score.value)
            print(f"pairs that differ by {name:16} {score.value:6.3f}  [{low:.3f}, {high:.3f}]", flush=True)
    if not options.write:
        return
    held_out = data.split("held_out")
    sheet(
        pipeline,
        list(map(str, held_out.columns(range(0, 160, 10))["caption"])),
        best["guidance"],
        PICTURES / f"{options.write}.png",
    )
    state = json.loads((options.run / "state.json").read_text(encoding="utf-8"))
    written = {
        "rows": rows,
        "n": options.n,
        "machine": machine(threads=torch.get_num_threads()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions("sfumato", "numpy"),
        "trained": state,
    }
    (RESULTS / f"{options.write}.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
