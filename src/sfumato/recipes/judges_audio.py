"""Judges of sounds: who speaks, which word, which instrument."""

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
from sfumato.device import choose_device
from sfumato.errors import UserError
from sfumato.evaluate.accuracy import accuracy
from sfumato.evaluate.audio import Target, target
from sfumato.evaluate.audio_judge import FLOOR, SoundJudge
from sfumato.evaluate.judge import Judge

_BATCH = 64
_RATE = 2e-3
_DECAY = 0.05
_SMOOTHING = 0.05
_SHIFT = 0.1  # of the length, to either side
_GAIN = 6.0  # dB
_HIDDEN = (6, 12)  # bands and frames that are hidden at most


def train_sound_judge(
    data: Data, column: str, *, epochs: int = 30, width: int = 24, seed: int = 0, device: str = "auto"
) -> SoundJudge:
    """A classifier of a column of sounds (`label`, or another one of `Clips`), trained on the training part, scored on
    the other.

    Sounds are shifted in time by up to a tenth of their length and made louder or softer by up to 6 dB; a few bands and
    frames are hidden (Park et al., "SpecAugment", 2019). AdamW, one cycle. Spoken digits: 4 minutes on one core,
    seconds on a GPU.
    """
    began = time.perf_counter()
    wanted, info, where = target(data, column), data.info, choose_device(device)
    held = torch.from_numpy(data.held_out_mask())
    media = data.fetch(np.arange(len(data))).media
    with torch.random.fork_rng():
        torch.manual_seed(int(keys(seed, f"judge {column}", [0])[0]) >> 1)
        judge = SoundJudge(info.shape, wanted.classes, rate=info.rate, width=width).to(where)
        _fit(judge.train(), media[~held].to(where), wanted.values[~held].to(where), epochs, seed)
    judge.eval()
    score = accuracy(judge.predict(media[held]).cpu(), wanted.values[held])
    judge.trained.update(
        settings={"epochs": epochs, "width": width, "seed": seed},
        data=data.kind,
        column=column,
        fingerprint=data.fingerprint(),
        items=int((~held).sum()),
        accuracy=score.value,
        interval=list(score.interval),
        judged=score.n,
        seconds=round(time.perf_counter() - began, 2),
    )
    return judge


def sound_judge_of(data: Data, column: str, folder: Path, **settings: Any) -> Judge:
    """The judge in `folder`, trained first if there is none of this data, column and settings yet."""
    if (folder / "judge.json").is_file():
        judge = Judge.load(folder)
        asked = {"epochs": 30, "width": 24, "seed": 0, **{k: v for k, v in settings.items() if k != "device"}}
        alike = judge.trained.get("fingerprint") == data.fingerprint() and judge.trained.get("column") == column
        if alike and judge.trained.get("settings") == asked and judge.shape == data.info.shape:
            return judge
    judge = train_sound_judge(data, column, **settings)
    judge.save(folder)
    return judge


def targets_of(data: Data) -> dict[str, Target]:
    """What the sounds can be judged by: their label, and other columns of names of few classes."""
    found = {}
    for column in ("label", *getattr(data, "judged", ())):
        try:
            found[column] = target(data, column)
        except UserError:
            if column != "label":
                raise
    return found


def _fit(judge: SoundJudge, media: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    steps = max(1, epochs * len(media) // _BATCH)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    order = Order(len(media), seed)
    for step in range(steps):
        here = torch.from_numpy(order(np.arange(step * _BATCH, (step + 1) * _BATCH, dtype=np.int64))).to(media.device)
        bands = _hidden(judge.mel(_moved(media[here])))
        logits = judge.head(judge.drop(judge.see_bands(bands)))
        loss = F.cross_entropy(logits, labels[here], label_smoothing=_SMOOTHING)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()


def _moved(media: Tensor) -> Tensor:
    """Each sound later or earlier, and louder or softer."""
    n, _, length = media.shape
    most = int(_SHIFT * length)
    later = torch.randint(-most, most + 1, (n, 1), device=media.device)
    at = torch.arange(length, device=media.device)[None] - later
    inside = (at >= 0) & (at < length)
    moved = media.gather(2, at.clamp(0, length - 1)[:, None].expand(-1, media.shape[1], -1)) * inside[:, None]
    gain = 10 ** (_GAIN / 20 * (2 * torch.rand(n, 1, 1, device=media.device) - 1))
    return (moved * gain).clamp(-1, 1)


def _hidden(bands: Tensor) -> Tensor:
    """Some rows and some columns of each, at the level of silence."""
    out = bands
    for axis, most in zip((1, 2), _HIDDEN):
        size = bands.shape[axis]
        wide = torch.randint(0, min(most, size) + 1, (len(bands), 1), device=bands.device)
        first = (torch.rand(len(bands), 1, device=bands.device) * (size - wide + 1)).long()
        at = torch.arange(size, device=bands.device)[None]
        gone = (at >= first) & (at < first + wide)
        out = torch.where(gone[:, :, None] if axis == 1 else gone[:, None, :], torch.full_like(out, FLOOR).log(), out)
    return out
