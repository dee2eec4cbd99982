"""A judge of words: pictures and captions as vectors of one space, near each other where they belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.conditioners import Text
from sfumato.core import DataInfo
from sfumato.errors import UserError, did_you_mean
from sfumato.evaluate.architectures import Residual, conv, initialise, scaled
from sfumato.evaluate.colours import Palette
from sfumato.evaluate.judge import Judge

_BETWEEN = ": "  # "style: noto" is the value noto of the attribute style
_BATCH = 256
_FIRST = 2.659  # log of 1 / 0.07, the temperature that CLIP starts from
_MOST = 4.605  # log of 100
_LEAST = 1e-4  # added to a variance before its root is taken


@final
class ContrastiveJudge(Judge, name="contrastive"):
    """A residual network for pictures and the byte-level encoder `Text` for captions, each with a projection to one space.

        s(picture, caption) = <f(picture), g(caption)>,   |f| = |g| = 1

    Trained by `sfumato.recipes.contrastive` so that a picture is nearer to its caption than to others' (Radford et al.,
    "CLIP", 2021, figure 3). Its classes are attributes that pictures have besides, written "style: noto", "style: twemoji",
    "skin tone: dark": each attribute is a classifier of its own. Labels without a colon are one nameless attribute; there may
    be none. Attributes are read off by a second, small network that begins at full resolution, and by how much
    there is of each colour: what tells designs apart (outlines, gradients, a palette) is lost in what makes names known
    under any design.

        logits = A [mean, maximum, deviation over positions](fine(x)) + 5 P histogram(x)

    width: channels of the first stage, of four; features are the 8 `width` channels of the last. fine: channels that the
    second network begins with, of three stages. colours: bins of the histogram for each of red, green and blue. embedding:
    of the common space. text_width, depth, buckets, length: of the text encoder.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: tuple[str, ...],
        *,
        width: int = 24,
        fine: int = 16,
        colours: int = 16,
        embedding: int = 128,
        text_width: int = 96,
        depth: int = 1,
        buckets: int = 4096,
        length: int = 128,
        trained: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(shape, classes, trained, drop=0.2)
        self.width, self.fine_width, self.colours = width, fine, colours
        self.embedding, self.depth, self.buckets = embedding, depth, buckets
        self.stem = conv(shape[0], width, stride=2)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        blocks = []
        for stage, (before, after) in enumerate(pairwise(widths)):
            blocks += [Residual(before, after, 2 if stage else 1), *([Residual(after, after, 1)] if stage < 3 else [])]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.fine = nn.Sequential(
            conv(shape[0], fine),
            *(Residual(fine * 2**k, fine * 2 ** (k + 1), 2) for k in range(3)),
            nn.BatchNorm2d(8 * fine),
        )
        self.head = nn.Linear(24 * fine, max(1, len(classes)))
        self.palette = Palette(shape[0], colours, max(1, len(classes)))
        self.project = nn.Linear(widths[-1], embedding)
        info = DataInfo(tuple(shape), "image", captions=True)
        self.words = Text(info, width=text_width, depth=depth, length=length, buckets=buckets)
        self.project_words = nn.Linear(text_width, embedding)
        self.log_scale = nn.Parameter(torch.tensor(_FIRST))
        initialise(self)
        nn.init.zeros_(self.palette.weight)

    @property
    def name(self) -> str:
        return f"contrastive{self.width}"

    @property
    def settings(self) -> dict[str, int]:
        return {
            "width": self.width,
            "fine": self.fine_width,
            "colours": self.colours,
            "embedding": self.embedding,
            "text_width": self.words.width,
            "depth": self.depth,
            "buckets": self.buckets,
            "length": self.words.length,
        }

    @property
    def scale(self) -> Tensor:
        """The inverse temperature that similarities are multiplied by in the loss, 100 at most."""
        return self.log_scale.clamp(max=_MOST).exp()

    def see(self, media: Tensor) -> Tensor:
        return F.relu(self.norm(self.blocks(self.stem(scaled(media))))).mean((2, 3))

    def forward(self, media: Tensor) -> Tensor:
        """media (B, C, H, W) of 0 ... 255 to the logits of all attributes (B, classes)."""
        media = self._checked(media)
        seen = F.relu(self.fine(scaled(media)))
        spread = (seen.var((2, 3), correction=0) + _LEAST).sqrt()
        logits: Tensor = self.head(self.drop(torch.cat([seen.mean((2, 3)), seen.amax((2, 3)), spread], 1)))
        palette: Tensor = self.palette(media)
        return logits + palette

    def place(self, media: Tensor) -> Tensor:
        """Pictures (B, C, H, W) of 0 ... 255 to unit vectors (B, embedding)."""
        return F.normalize(self.project(self.drop(self._features(media))), dim=1)

    def read(self, captions: Sequence[str]) -> Tensor:
        """Captions to unit vectors (B, embedding)."""
        prepared = {k: v.to(self.device) for k, v in self.words.prepare({"caption": list(captions)}).items()}
        vector = self.words(prepared).vector
        assert vector is not None
        return F.normalize(self.project_words(vector), dim=1)

    @torch.no_grad()
    def embed(self, media: Tensor) -> Tensor:
        """Pictures (N, C, H, W) uint8 to unit vectors (N, embedding), on the device."""
        return torch.cat([self.place(part) for part in torch.split(media, _BATCH)])

    @torch.no_grad()
    def embed_words(self, captions: Sequence[str]) -> Tensor:
        """N captions to unit vectors (N, embedding), on the device."""
        return torch.cat([self.read(captions[i : i + _BATCH]) for i in range(0, len(captions), _BATCH)])

    @property
    def attributes(self) -> dict[str, tuple[str, ...]]:
        """Values by attribute, in the order of the classes."""
        found: dict[str, tuple[str, ...]] = {}
        for name in self.classes:
            attribute, between, value = name.partition(_BETWEEN)
            key, said = (attribute, value) if between else ("", name)
            found[key] = (*found.get(key, ()), said)
        return found

    def logits_of(self, logits: Tensor, attribute: str) -> Tensor:
        """The columns of an attribute, of the logits (B, classes) of all."""
        known = self.attributes
        if attribute not in known:
            raise UserError(f"this judge knows no attribute '{attribute}'; {did_you_mean(attribute, known)}")
        start = 0
        for name, values in known.items():
            if name == attribute:
                return logits[:, start : start + len(values)]
            start += len(values)
        raise AssertionError(attribute)

    @torch.no_grad()
    def values(self, media: Tensor, attribute: str) -> list[str]:
        """What the judge takes each picture for: values of an attribute."""
        found = [self.logits_of(self(part), attribute).argmax(1) for part in torch.split(media, _BATCH)]
        return [self.attributes[attribute][k] for k in torch.cat(found).tolist()]


def classes_of(attributes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Attributes with their values as the classes of a judge."""
    return tuple(
        f"{name}{_BETWEEN}{value}" if name else value for name, values in attributes.items() for value in values
    )
