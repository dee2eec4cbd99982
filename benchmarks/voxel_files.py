"""Files of the voxel model opened by trimesh, and pictures of what it makes.

    python -m benchmarks.voxel_files --data voxels32.npz [--model voxels] [--n 109] [--picture voxels.png] [--turn turned.png]
                                     [--page report.html] [--json FILE]

A sample of each of the first n held-out captions is written as GLB, OBJ, PLY and STL with each of the three surfaces, and
opened again (but for empty ones, which are no mesh): how many open, and how many are watertight as they are loaded (`cubes`
as GLB after its corners are merged). The picture has twelve of the captions: the held-out model above, two samples below.
--turn has prompts of our own, turned. --page has the first eight samples as a run's report shows them, and says how many of
them a headless Chromium has drawn.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.voxels import PROMPTS
from sfumato.data import Voxels
from sfumato.kinds import kind_of
from sfumato.pipeline import Pipeline
from sfumato.solid import mesh
from sfumato.solid.render import turntable
from sfumato.train import Run
from sfumato.train.report import VIEW, render_report

SHOWN = 12
VIEWED = 8
BROWSER = ("--headless", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


def opened(media: Tensor, pipeline: Pipeline) -> dict[str, dict[str, int]]:
    """By surface and suffix: files that trimesh opens, and those that are watertight."""
    import trimesh

    kind, info = kind_of(pipeline.model.info), pipeline.model.info
    found = {}
    for surface in mesh.SURFACES:
        for suffix in mesh.SUFFIXES:
            there = {"files": len(media), "open": 0, "watertight": 0}
            for item in media:
                raw = kind.encode(item, info, suffix, options={"surface": surface})
                loaded: Any = trimesh.load(io.BytesIO(raw), file_type=suffix[1:], force="mesh")
                if surface == "cubes" and suffix == ".glb":
                    loaded.merge_vertices(merge_tex=True, merge_norm=True)
                there["open"] += len(loaded.faces) > 0
                there["watertight"] += bool(loaded.is_watertight)
            found[f"{surface} {suffix[1:]}"] = there
            print(surface, suffix, there, flush=True)
    return found


def viewed(media: Tensor, captions: list[str], pipeline: Pipeline, file: Path) -> dict[str, int] | None:
    """Writes a report with models to turn about; how many of them a browser draws, None without a browser."""
    info = pipeline.model.info
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        html = kind_of(info).viewer(list(media), info, captions)
        run.write(VIEW, {"kind": info.kind, "html": html})
        file.write_text(render_report(run), encoding="utf-8")
    program = shutil.which("chromium")
    if program is None:
        return None
    command = [program, *BROWSER, "--virtual-time-budget=5000", "--dump-dom", file.resolve().as_uri()]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return {"models": len(media), "drawn": page.count('data-state="drawn"')}


def turned(pipeline: Pipeline) -> Image.Image:
    """A turntable a prompt, two columns of them."""
    made = pipeline(list(PROMPTS), seed=3, output_type="pt").media
    strips = [turntable(item.numpy()) for item in made]
    wide, high = strips[0].size
    sheet = Image.new("RGB", (2 * wide, high * -(-len(strips) // 2)), "white")
    for i, strip in enumerate(strips):
        sheet.paste(strip, (i % 2 * wide, i // 2 * high))
    return sheet


def beside(pipeline: Pipeline, real: Tensor, captions: list[str]) -> Image.Image:
    """Twelve of the held-out models, six a line, and below each two samples of its caption."""
    chosen = np.arange(SHOWN) * len(real) // SHOWN
    asked_for = [captions[i] for i in chosen]
    made = pipeline(asked_for, n=2, seed=7, output_type="pt").media
    items, words = [], []
    for line in (slice(0, SHOWN // 2), slice(SHOWN // 2, SHOWN)):
        items += [*real[chosen[line]], *made[::2][line], *made[1::2][line]]
        words += [*asked_for[line], *[""] * SHOWN]
    return kind_of(pipeline.model.info).sheet(items, pipeline.model.info, SHOWN // 2, words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="voxels")
    parser.add_argument("--n", type=int, default=109)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--turn", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    pipeline, held_out = Pipeline.load(asked.model), Voxels(path=asked.data).split("held_out")
    count = min(asked.n, len(held_out))
    real = held_out.fetch(np.arange(count))
    captions = [str(text) for text in real.conditions["caption"]]
    if asked.turn is not None:
        turned(pipeline).quantize(128).save(asked.turn, optimize=True)
    if asked.picture is not None:
        beside(pipeline, real.media, captions).quantize(128).save(asked.picture, optimize=True)
    if asked.n:
        samples = pipeline(captions, seed=0, batch_size=4, output_type="pt").media
        full = (samples[:, 3] > 127).flatten(1).any(1)
        found: dict[str, Any] = {"empty": int((~full).sum()), "files": opened(samples[full], pipeline)}
        if asked.page is not None:
            found["browser"] = viewed(samples[:VIEWED], captions, pipeline, asked.page)
            print("browser", found["browser"])
        if asked.json is not None:
            asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
