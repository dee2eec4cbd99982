"""Judges of small photographs such as CIFAR-10's: networks that need a GPU for minutes, for the features of distances."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.random import keys
from sfumato.data import Data
from sfumato.data.order import Order
from sfumato.device import choose_device, has_bf16, wait
from sfumato.errors import UserError
from sfumato.evaluate.judge import Judge
from sfumato.recipes.cosine import rising_cosine
from sfumato.recipes.judges import check_pictures, everything, judge_accuracy
from sfumato.registry import find

OnEpoch = Callable[[int, int, float], None]  # (epochs done, epochs in all, loss of the last step)


@final
@dataclass(frozen=True)
class Schooling:
    """How a judge of pictures is trained: one cycle of SGD with Nesterov's momentum, on pictures moved and cut a little.

    rate: the highest learning rate, reached after a quarter of the steps. decay: of weights, not of biases and norms.
    smoothing: of labels. shift: pixels in each direction at most, mirrored at the edge. flip: left to right, half of them.
    cut: side of a grey square put anywhere (DeVries & Taylor, "Cutout", 2017), 0 for none.
    """

    epochs: int = 40
    batch: int = 512
    rate: float = 0.4
    momentum: float = 0.9
    decay: float = 5e-4
    smoothing: float = 0.1
    shift: int = 4
    flip: bool = True
    cut: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 2:
            raise UserError(f"epochs = {self.epochs}, batch = {self.batch}: at least 1 epoch, of batches of at least 2")


USUAL = {"wrn": Schooling(), "vgg": Schooling(rate=0.2)}  # architecture -> how it is trained


def train_picture_judge(
    data: Data,
    architecture: str = "wrn",
    *,
    schooling: Schooling | None = None,
    device: str | torch.device = "auto",
    on_epoch: OnEpoch | None = None,
    **settings: Any,
) -> Judge:
    """A judge of `architecture` for uint8 pictures, trained on `data.split("train")`, scored on the held-out part.

    All pictures are held on the device and moved there; bfloat16 and channels last on CUDA. settings: those of the
    architecture (`depth=16, widen=4`). On the CPU a function of (data, settings, seed); on CUDA up to the order in which
    its kernels add. The judge comes back on the CPU, in evaluation mode. The global random state is left as it was.
    """
    info = check_pictures(data)
    how = schooling or USUAL.get(architecture, Schooling())
    if how.shift >= min(info.shape[1:]):
        raise UserError(f"shift = {how.shift}: must be below the pictures' side, {min(info.shape[1:])}")
    place = choose_device(device) if isinstance(device, str) else device
    began = time.perf_counter()
    media, labels = everything(data.split("train"))
    made: Any = find("judge", architecture)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), _tuned(place):
        torch.manual_seed(int(keys(how.seed, "judge", [0])[0]) >> 1)
        judge: Judge = made((info.shape[0], info.shape[1], info.shape[2]), info.labels, **settings)
        _laid_out(judge.to(place), torch.channels_last)
        _fit(judge.train(), media.to(place), labels.to(place), how, on_epoch)
    judge.eval()
    score = judge_accuracy(judge, data.split("held_out"))
    wait(place)
    judge.trained.update(
        settings={"architecture": architecture, **judge.settings, **asdict(how)},
        data=data.kind,
        fingerprint=data.fingerprint(),
        items=len(media),
        accuracy=score.value,
        interval=list(score.interval),
        judged=score.n,
        seconds=round(time.perf_counter() - began, 2),
    )
    _laid_out(judge.to("cpu"), torch.contiguous_format)
    return judge


def _fit(judge: Judge, media: Tensor, labels: Tensor, how: Schooling, on_epoch: OnEpoch | None) -> None:
    device, n = media.device, len(media)
    batch = min(how.batch, n)
    in_epoch = n // batch
    steps = how.epochs * in_epoch
    optimizer = torch.optim.SGD(_groups(judge, how.decay), how.rate, how.momentum, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rising_cosine, steps=steps, rising=0.25))
    order = Order(n, how.seed)
    generator = torch.Generator(device).manual_seed(int(keys(how.seed, "moves", [0])[0]) >> 1)
    stored = media.permute(0, 2, 3, 1).contiguous()
    loss = torch.zeros((), device=device)
    for step in range(steps):
        here = torch.from_numpy(order(np.arange(step * batch, (step + 1) * batch, dtype=np.int64))).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device)):
            logits = judge(moved(stored, here, how, generator))
        loss = F.cross_entropy(logits.float(), labels[here], label_smoothing=how.smoothing)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if on_epoch is not None and (step + 1) % in_epoch == 0:
            on_epoch((step + 1) // in_epoch, how.epochs, float(loss.detach()))


def _laid_out(judge: nn.Module, layout: torch.memory_format) -> None:
    for parameter in judge.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def _groups(judge: nn.Module, decay: float) -> list[dict[str, Any]]:
    parameters = list(judge.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def moved(stored: Tensor, here: Tensor, how: Schooling, generator: torch.Generator) -> Tensor:
    """Pictures `here` (B,) of `stored` (N, H, W, C), each shifted, flipped and cut at random: (B, C, H, W), channels last."""
    (height, width), device, b = stored.shape[1:3], stored.device, len(here)

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (b, 1), generator=generator, device=device)

    rows = _mirrored(torch.arange(height, device=device) + whole(-how.shift, how.shift + 1), height)
    columns = _mirrored(torch.arange(width, device=device) + whole(-how.shift, how.shift + 1), width)
    if how.flip:
        columns = torch.where(whole(0, 2) == 1, columns.flip(1), columns)
    found = stored[here[:, None, None], rows[:, :, None], columns[:, None, :]]
    if how.cut:
        down = (torch.arange(height, device=device) - whole(0, height) + how.cut // 2).unsqueeze(2)
        right = (torch.arange(width, device=device) - whole(0, width) + how.cut // 2).unsqueeze(1)
        inside = (down >= 0) & (down < how.cut) & (right >= 0) & (right < how.cut)
        found = found.masked_fill(inside.unsqueeze(3), 127)
    return found.permute(0, 3, 1, 2)


def _mirrored(index: Tensor, size: int) -> Tensor:
    """Positions beyond either edge, by less than `size`, reflected about the edge's pixel."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


@contextmanager
def _tuned(device: torch.device) -> Iterator[None]:
    """The quickest convolutions of the device, found by trying; features later are computed in full float32."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
        yield
