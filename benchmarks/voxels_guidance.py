"""What guidance does to the voxel model, on captions of its training part.

    python -m benchmarks.voxels_guidance --data voxels32.npz [--model voxels] [--n 109] [--each 1] [--scales 2 3 4 5]
        [--steps 20] [--part train] [--device auto]

So many captions are drawn at each scale, with the same seeds; printed are the shares that the model's judge takes for the
category asked for and that are in one piece, beside those of the models that the captions belong to. Held-out captions, by
which the model is scored, are looked at with --part held_out alone. Two seconds a model on two cores.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from sfumato import modelfolder
from sfumato.core.random import keys
from sfumato.data import Voxels
from sfumato.device import choose_device
from sfumato.evaluate.accuracy import accuracy
from sfumato.evaluate.judge import Judge
from sfumato.pipeline import Pipeline
from sfumato.solid.grid import in_one_piece

SEED = 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="voxels")
    parser.add_argument("--n", type=int, default=109)
    parser.add_argument("--each", type=int, default=1, help="models a caption")
    parser.add_argument("--scales", type=float, nargs="+", default=[2.0, 3.0, 4.0, 5.0])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--part", choices=["train", "held_out"], default="train")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    device = choose_device(asked.device)
    pipeline = Pipeline.load(asked.model).to(device)
    judge = Judge.load(modelfolder.find_folder(asked.model) / "judge").to(device)
    data = Voxels(path=asked.data).split(asked.part)
    order = np.argsort(keys(0, "choice", np.arange(len(data))), kind="stable")[: asked.n]
    real = data.fetch(np.sort(order))
    captions, labels = [str(text) for text in real.conditions["caption"]], torch.as_tensor(real.conditions["label"])
    right, whole = accuracy(judge.predict(real.media), labels), np.mean(in_one_piece(real.media[:, 3] > 127))
    print(f"{asked.part}, {len(captions)} real models: category {right.value:.3f}, one piece {whole:.3f}", flush=True)
    batch = 32 if device.type == "cpu" else 128
    for scale in asked.scales:
        how = {"guidance_scale": scale, "num_inference_steps": asked.steps, "batch_size": batch}
        made = pipeline(captions, n=asked.each, seed=SEED, output_type="pt", **how).media
        right = accuracy(judge.predict(made), labels.repeat_interleave(asked.each))
        low, high = right.interval
        whole = np.mean(in_one_piece(made[:, 3] > 127))
        share = f"category {right.value:.3f} ({low:.3f} to {high:.3f}), one piece {whole:.3f}"
        print(f"guidance {scale:g}: {share}", flush=True)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
