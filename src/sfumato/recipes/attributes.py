"""What pictures of a set have to do with captions, and a judge that learns the attributes which they have besides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.random import keys
from sfumato.data import Data, Emoji, Loader
from sfumato.data.emoji import TONES
from sfumato.data.emoji_words import style_words
from sfumato.errors import UserError
from sfumato.evaluate.contrastive import ContrastiveJudge
from sfumato.recipes.cosine import rising_cosine

OnStep = Callable[[int, int, float], None]  # (steps done, steps in all, loss)
NO_TONE = "none"
_PLACES = 5  # along a side, between which a tint changes smoothly
_TOLD = 100  # steps between two reports


@final
@dataclass(frozen=True)
class Meaning:
    """What pictures of a set have to do with captions: who belongs together, who is alike, and their attributes.

    attributes: values by name; labels: (N,) index of the value by name.
    """

    data: Data
    attributes: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, NDArray[np.int64]]

    @staticmethod
    def of(data: Data) -> Meaning:
        """Of emoji: design and skin tone; of other data: the class, if there are several."""
        if isinstance(data, Emoji):
            styles, tones = tuple(map(style_words, data.styles)), (NO_TONE, *TONES)
            style = np.asarray([styles.index(style_words(row.style)) for row in data.rows], np.int64)
            tone = np.asarray([tones.index(row.tone or NO_TONE) for row in data.rows], np.int64)
            return Meaning(data, {"style": styles, "skin tone": tones}, {"style": style, "skin tone": tone})
        if len(data.info.labels) > 1:
            found = data.columns(np.arange(len(data)))["label"]
            return Meaning(data, {"": data.info.labels}, {"": np.asarray(found, np.int64)})
        return Meaning(data, {}, {})

    def matches(self, index: NDArray[np.int64], captions: Sequence[str]) -> NDArray[np.bool_]:
        """(B, B): whether picture i shows what caption j says. Captions of emoji without a design fit all designs."""
        if not isinstance(self.data, Emoji):
            words = np.unique(np.asarray(captions), return_inverse=True)[1]
            return np.asarray(words[:, None] == words[None])
        rows = [self.data.rows[i] for i in index.tolist()]
        subject = np.unique([f"{row.name}|{row.tone}" for row in rows], return_inverse=True)[1]
        style = self.labels["style"][index]
        free = np.asarray([f"{style_words(r.style)} emoji" not in said for r, said in zip(rows, captions)])
        return np.asarray((subject[:, None] == subject[None]) & ((style[:, None] == style[None]) | free[None]))


@final
@dataclass(frozen=True)
class Looks:
    """How attributes are learned from looks: AdamW, up in a straight line and down along a cosine.

    rate: the highest. decay: of all weights. smoothing: of labels. shift: pixels in each direction that a batch is moved
    round the edges, so that nothing is blurred; half of the pictures are mirrored. tint: levels of 256 by which the colours
    of a picture are off at most, and again from place to place; noise: each value by itself. Without them a judge learns
    palettes to the level, and colours that nobody sees to be off mislead it.
    """

    epochs: int = 36
    batch: int = 128
    rate: float = 2e-3
    warmup: float = 0.05
    decay: float = 0.05
    smoothing: float = 0.05
    shift: int = 3
    tint: float = 10.0
    noise: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 2:
            raise UserError(f"epochs = {self.epochs}, batch = {self.batch}: at least 1 epoch, of batches of at least 2")


def train_attributes(judge: ContrastiveJudge, data: Data, how: Looks, *, on_step: OnStep | None = None) -> None:
    """Teach a judge, where it lies, the attributes of the training part of `data`: its second network and nothing else.

    On the CPU a function of its arguments; dropout draws from torch's generators.
    """
    meaning, device = Meaning.of(data), judge.device
    train = data.split("train")
    batch = min(how.batch, len(train))
    steps = how.epochs * (len(train) // batch)
    parts = [judge.fine, judge.head, judge.palette]
    parameters = [p for part in parts for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=how.rate, weight_decay=how.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rising_cosine(step, steps, how.warmup))
    order = train.order(how.seed)
    generator = torch.Generator(device).manual_seed(int(keys(how.seed, "looks", [0])[0]) >> 1)
    judge.train()
    with Loader(train, batch, how.seed, threads=1, prefetch=4) as loader:
        for step in range(1, steps + 1):
            numbers, items = next(loader)
            index = train.indices[order(numbers)]
            media = shifted(items.media.to(device).float(), how.shift, generator)
            logits = judge(tinted(media, how.tint, how.noise, generator)).float()
            loss = torch.zeros((), device=device)
            for name, values in meaning.labels.items():
                right = torch.from_numpy(values[index]).to(device)
                of_one = judge.logits_of(logits, name)
                loss = loss + F.cross_entropy(of_one, right, label_smoothing=how.smoothing)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if on_step is not None and (step % _TOLD == 0 or step == steps):
                on_step(step, steps, float(loss.detach()))


def shifted(media: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Pictures (B, C, H, W), half of them mirrored, all moved by the same few pixels round the edges: nothing is blurred."""
    device = media.device
    flip = torch.rand(len(media), 1, 1, 1, generator=generator, device=device) < 0.5
    rows, columns = (
        (torch.arange(n, device=device) + torch.randint(-most, most + 1, (1,), generator=generator, device=device)) % n
        for n in media.shape[2:]
    )
    moved = media[:, :, rows][:, :, :, columns]
    return torch.where(flip, moved.flip(3), moved)


def tinted(media: Tensor, tint: float, noise: float, generator: torch.Generator) -> Tensor:
    """Pictures (B, C, H, W) or solids (B, C, X, Y, Z) of 0 ... 255, colours off by so many levels: as a whole, from place
    to place, by noise."""

    def off(*sides: int) -> Tensor:
        return torch.rand(*media.shape[:2], *sides, generator=generator, device=media.device) * 2 - 1

    sides = media.shape[2:]
    mode = "bilinear" if len(sides) == 2 else "trilinear"
    places = F.interpolate(off(*[_PLACES] * len(sides)), size=sides, mode=mode)
    return (media + tint * (off(*[1] * len(sides)) + places) + noise * off(*sides)).clamp(0, 255)
