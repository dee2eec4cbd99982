"""Judges of voxel models: 3-D classifiers of their categories, trained on real training models alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.random import keys
from sfumato.data import Data
from sfumato.data.order import Order
from sfumato.device import choose_device, has_bf16, wait
from sfumato.errors import UserError
from sfumato.evaluate.judge import Judge
from sfumato.evaluate.voxel_judge import VoxelJudge
from sfumato.recipes.attributes import tinted
from sfumato.recipes.judges import everything, judge_accuracy
from sfumato.solid.grid import SYMMETRIES, symmetry

_BATCH = 64
_RATE = 3e-3
_DECAY = 0.05
_SMOOTHING = 0.1
_SHIFT = 2
_COLOURS = 16  # bins a channel of its histogram
_TINT, _NOISE = 6.0, 6.0  # levels of 256
_USUAL = {"epochs": 30, "width": 16, "seed": 0}


def train_voxel_judge(data: Data, *, epochs: int = 30, width: int = 16, seed: int = 0, device: str = "auto") -> Judge:
    """A classifier of the labels of voxel models, trained on `data.split("train")`, scored on the held-out part.

    Cross-entropy with smoothed labels and AdamW on one cosine cycle; models are turned and mirrored (the 8 symmetries), moved
    by up to 2 cells, and their colours off by some levels, lest the judge know palettes to the level and be misled by
    colours that nobody sees to be off. On the CPU a function of (data, settings, seed). 2,436 models of 32^3: about 20 s on
    one H100, an hour on two cores. The global random state is left as it was.
    """
    info = data.info
    if info.kind != "voxels" or len(info.labels) < 2:
        raise UserError(
            f"a judge of voxel models needs labels of at least 2 classes, not {info.kind} data of {info.shape}"
        )
    place = choose_device(device)
    began = time.perf_counter()
    media, labels = everything(data.split("train"))
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(int(keys(seed, "judge", [0])[0]) >> 1)
        judge = VoxelJudge(info.shape, info.labels, width=width, colours=_COLOURS).to(place)
        _fit(judge.train(), media.to(place), labels.to(place), epochs, seed)
    judge.eval()
    score = judge_accuracy(judge, data.split("held_out"))
    wait(place)
    judge.trained.update(
        settings={"epochs": epochs, "width": width, "seed": seed},
        data=data.kind,
        fingerprint=data.fingerprint(),
        items=len(media),
        accuracy=score.value,
        interval=list(score.interval),
        judged=score.n,
        seconds=round(time.perf_counter() - began, 2),
    )
    return judge.to("cpu")


def voxel_judge_of(data: Data, folder: Path, *, device: str = "auto", **settings: Any) -> Judge:
    """The judge in `folder`, trained first if there is none of this data and these settings yet."""
    if (folder / "judge.json").is_file():
        judge = Judge.load(folder)
        same = judge.trained.get("settings") == {**_USUAL, **settings}
        if same and judge.trained.get("fingerprint") == data.fingerprint():
            return judge
    judge = train_voxel_judge(data, device=device, **settings)
    judge.save(folder)
    return judge


def _fit(judge: VoxelJudge, media: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    batch = min(_BATCH, max(8, len(media) // 8))
    steps = max(1, epochs * len(media) // batch)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.2)
    order = Order(len(media), seed)
    generator = torch.Generator(media.device).manual_seed(int(keys(seed, "moves", [0])[0]) >> 1)
    for step in range(steps):
        here = torch.from_numpy(order(np.arange(step * batch, (step + 1) * batch, dtype=np.int64))).to(media.device)
        with torch.autocast(media.device.type, torch.bfloat16, enabled=has_bf16(media.device)):
            logits = judge(_moved(media[here], generator))
        loss = F.cross_entropy(logits.float(), labels[here], label_smoothing=_SMOOTHING)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()


def _moved(media: Tensor, generator: torch.Generator) -> Tensor:
    """Models (B, 4, X, Y, Z), in eight parts of a batch under one symmetry each, moved and coloured a little."""
    parts = []
    for number, part in enumerate(media.chunk(SYMMETRIES)):
        turned = symmetry(part, number) if media.shape[2] == media.shape[3] else part
        shift = torch.randint(-_SHIFT, _SHIFT + 1, (2,), generator=generator, device=generator.device).tolist()
        parts.append(_shifted(turned, shift))
    moved = torch.cat(parts).float()
    return torch.cat([tinted(moved[:, :3], _TINT, _NOISE, generator), moved[:, 3:]], 1)


def _shifted(x: Tensor, shift: list[int]) -> Tensor:
    """(B, C, X, Y, Z) moved along x and y; what leaves the grid is cut off."""
    made = torch.zeros_like(x)
    at = [(slice(max(s, 0), n + min(s, 0)), slice(max(-s, 0), n + min(-s, 0))) for s, n in zip(shift, x.shape[2:4])]
    made[:, :, at[0][0], at[1][0]] = x[:, :, at[0][1], at[1][1]]
    return made
