"""Judges: classifiers trained on real training data alone, to score what a model makes of its prompts."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.media import DataInfo
from sfumato.core.random import keys
from sfumato.data import Data, Digits
from sfumato.data.order import Order
from sfumato.errors import UserError
from sfumato.evaluate.accuracy import Share, accuracy
from sfumato.evaluate.architectures import ConvJudge
from sfumato.evaluate.judge import Judge

_BATCH = 64
_PEAK_RATE = 6e-3
_WEIGHT_DECAY = 0.02
_SMOOTHING = 0.05


def train_judge(data: Data, *, epochs: int = 30, width: int = 16, seed: int = 0) -> Judge:
    """A classifier of the labels of uint8 pictures, trained on `data.split("train")`, scored on the held-out part.

    Cross-entropy with smoothed labels on pictures that are shifted, turned, scaled and sheared a little; AdamW, one
    cosine cycle. Runs on the CPU and is a function of (data, settings, seed): on the digits about 5 s on one core, 99% of
    the held-out digits right. The global random state is left as it was.
    """
    info = check_pictures(data)
    began = time.perf_counter()
    media, labels = everything(data.split("train"))
    settings = {"epochs": epochs, "width": width, "seed": seed}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(keys(seed, "judge", [0])[0]) >> 1)
        judge = ConvJudge((info.shape[0], info.shape[1], info.shape[2]), info.labels, width=width)
        _fit(judge.train(), media, labels, epochs, seed)
    judge.eval()
    score = judge_accuracy(judge, data.split("held_out"))
    judge.trained.update(
        settings=settings,
        data=data.kind,
        fingerprint=data.fingerprint(),
        items=len(media),
        accuracy=score.value,
        interval=list(score.interval),
        judged=score.n,
        seconds=round(time.perf_counter() - began, 2),
    )
    return judge


def judge_of(data: Data, folder: Path, **settings: Any) -> Judge:
    """The judge in `folder`, trained first if there is none of this data and these settings yet."""
    if (folder / "judge.json").is_file():
        judge = Judge.load(folder)
        asked = {"epochs": 30, "width": 16, "seed": 0, **settings}
        if judge.trained.get("fingerprint") == data.fingerprint() and judge.trained.get("settings") == asked:
            return judge
    judge = train_judge(data, **settings)
    judge.save(folder)
    return judge


def digits_judge(runs: Path) -> Judge:
    """The judge of the real digits, kept in `runs/judges/digits`."""
    return judge_of(Digits(), runs / "judges" / "digits")


def judge_accuracy(judge: Judge, data: Data) -> Share:
    """How often a judge is right on real items."""
    media, labels = everything(data)
    return accuracy(judge.predict(media), labels)


def check_pictures(data: Data) -> DataInfo:
    """What the items look like; raises UserError unless they are pictures with labels."""
    info = data.info
    if info.kind != "image" or len(info.shape) != 3 or len(info.labels) < 2:
        raise UserError(
            f"a judge needs pictures with labels of at least 2 classes, not {info.kind} data of {info.shape}"
        )
    return info


def everything(data: Data) -> tuple[Tensor, Tensor]:
    """All pictures (N, C, H, W) and labels (N,) of a labelled set."""
    batch = data.fetch(np.arange(len(data)))
    labels = batch.conditions.get("label")
    if not isinstance(labels, Tensor):
        raise UserError("this data has no labels; a judge learns from labels")
    return batch.media, labels


def _fit(judge: ConvJudge, media: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    steps = max(1, epochs * len(media) // _BATCH)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=_PEAK_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_RATE, total_steps=steps)
    order = Order(len(media), seed)
    for step in range(steps):
        here = torch.from_numpy(order(np.arange(step * _BATCH, (step + 1) * _BATCH, dtype=np.int64)))
        logits = judge(_moved(media[here].float()))
        loss = F.cross_entropy(logits, labels[here], label_smoothing=_SMOOTHING)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()


def _moved(media: Tensor) -> Tensor:
    """Each picture under a small random affine map: 12 degrees, 12% scale, 15% shear, 7.5% of the side in shift."""
    n = len(media)
    angle, scale_x, scale_y, shear, right, down = (2 * torch.rand(6, n) - 1).unbind()
    angle = angle * 12 * math.pi / 180
    map_ = torch.zeros(n, 2, 3)
    map_[:, 0, 0] = (1 + 0.12 * scale_x) * angle.cos()
    map_[:, 0, 1] = 0.15 * shear - angle.sin()
    map_[:, 1, 0] = angle.sin()
    map_[:, 1, 1] = (1 + 0.12 * scale_y) * angle.cos()
    map_[:, 0, 2], map_[:, 1, 2] = 0.15 * right, 0.15 * down
    lattice = F.affine_grid(map_, list(media.shape), align_corners=False)
    return F.grid_sample(media, lattice, padding_mode="border", align_corners=False)
