"""Training a judge of words: pictures and captions brought together, on real training data alone."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sfumato.conditioners import Text
from sfumato.core.media import Batch
from sfumato.core.random import keys
from sfumato.data import Data, Loader, Subset
from sfumato.device import choose_device, has_bf16, wait
from sfumato.errors import UserError
from sfumato.evaluate.contrastive import ContrastiveJudge, classes_of
from sfumato.recipes.attributes import Looks, Meaning, OnStep, train_attributes
from sfumato.recipes.cosine import rising_cosine

LOOKS = Looks()  # the usual


@final
@dataclass(frozen=True)
class Lessons:
    """How a judge of words is trained: AdamW, up in a straight line and down along a cosine.

    rate: the highest. decay: of matrices and kernels. turn: degrees, scale: share, shift: share of the side, cut: side of a
    grey square as a share of the picture's: how far pictures are changed at random.
    """

    steps: int = 3000
    batch: int = 512
    rate: float = 2e-3
    warmup: float = 0.05
    decay: float = 0.1
    turn: float = 10.0
    scale: float = 0.12
    shift: float = 0.08
    cut: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 2:
            raise UserError(f"steps = {self.steps}, batch = {self.batch}: at least 1 step, of batches of at least 2")


def train_contrastive(
    data: Data,
    *,
    lessons: Lessons | None = None,
    looks: Looks | None = LOOKS,
    device: str | torch.device = "auto",
    on_step: OnStep | None = None,
    **settings: Any,
) -> ContrastiveJudge:
    """A judge of words for captioned uint8 pictures, trained on `data.split("train")`; comes back on the CPU, ready.

    Loss: cross-entropy of pictures over the captions of a batch and of captions over its pictures, all pairs that belong
    together being right in equal parts; the same once more among pictures of one design (emoji), so that the design alone
    does not answer. Attributes are learned after that, by the second network (`train_attributes`), unless `looks` is
    None. On the CPU a function of its arguments. The global random state is left as it was. settings: those of
    `ContrastiveJudge`.
    """
    info = data.info
    if info.kind != "image" or len(info.shape) != 3 or not info.captions:
        raise UserError(f"a judge of words needs pictures with captions, not {info.kind} data of {info.shape}")
    how = lessons or Lessons()
    place = choose_device(device) if isinstance(device, str) else device
    began = time.perf_counter()
    meaning = Meaning.of(data)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(int(keys(how.seed, "judge", [0])[0]) >> 1)
        shape = (info.shape[0], info.shape[1], info.shape[2])
        judge = ContrastiveJudge(shape, classes_of(meaning.attributes), **settings)
        with torch.backends.cudnn.flags(enabled=True, benchmark=place.type == "cuda", allow_tf32=True):
            _fit(judge.to(place).train(), data.split("train"), meaning, how, on_step)
            if meaning.labels and looks is not None:
                train_attributes(judge, data, looks, on_step=on_step)
    judge.eval()
    wait(place)
    judge.trained.update(
        settings={**judge.settings, **asdict(how), "looks": looks and asdict(looks)},
        data=data.kind,
        fingerprint=data.fingerprint(),
        items=len(data.split("train")),
        seconds=round(time.perf_counter() - began, 2),
    )
    return judge.to("cpu")


def _fit(judge: ContrastiveJudge, train: Subset, meaning: Meaning, how: Lessons, on_step: OnStep | None) -> None:
    device = judge.device
    rest = [p for n, p in judge.named_parameters() if p.ndim < 2 or "table" in n or "hashed" in n]
    spared = set(map(id, rest))
    groups = [
        {"params": [p for p in judge.parameters() if id(p) not in spared], "weight_decay": how.decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=how.rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rising_cosine(step, how.steps, how.warmup))
    batch = min(how.batch, len(train))
    order = train.order(how.seed)
    generator = torch.Generator(device).manual_seed(int(keys(how.seed, "moves", [0])[0]) >> 1)
    with Loader(train, batch, how.seed, threads=2, prefetch=8) as loader:
        for step in range(how.steps):
            numbers, items = next(loader)
            index = train.indices[order(numbers)]
            loss = _loss(judge, items, index, meaning, how, generator)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if on_step is not None and ((step + 1) % 100 == 0 or step + 1 == how.steps):
                on_step(step + 1, how.steps, float(loss.detach()))


def _loss(
    judge: ContrastiveJudge,
    items: Batch,
    index: NDArray[np.int64],
    meaning: Meaning,
    how: Lessons,
    generator: torch.Generator,
) -> Tensor:
    device = judge.device
    said = [str(caption) for caption in items.conditions["caption"]]
    moved = changed(items.media.to(device, non_blocking=True).float(), how, generator)
    with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device)):
        pictures, words = judge.place(moved), judge.read(said)
    match = torch.from_numpy(meaning.matches(index, said)).to(device)
    similar = judge.scale * pictures.float() @ words.float().T
    loss = paired(similar, match)
    if "style" in meaning.labels:
        style = torch.from_numpy(meaning.labels["style"][index]).to(device)
        apart = style[:, None] != style[None]
        loss = (loss + paired(similar.masked_fill(apart, -1e4), match & ~apart)) / 2
    return loss


def paired(similar: Tensor, match: Tensor) -> Tensor:
    """The symmetric contrastive loss of logits (B, B), pictures by captions, where `match` (B, B) says who belongs together.

        ( mean_i CE(softmax_j s_ij, m_ij / sum_j m_ij) + mean_j CE(softmax_i s_ij, m_ij / sum_i m_ij) ) / 2

    With one match a row that is CLIP's (Radford et al. 2021, figure 3); with several, Khosla et al., "Supervised
    Contrastive Learning", 2020, eq. 2.
    """
    right = match.float()
    rows = F.cross_entropy(similar, right / right.sum(1, keepdim=True).clamp(min=1))
    columns = F.cross_entropy(similar.T, right.T / right.T.sum(1, keepdim=True).clamp(min=1))
    return (rows + columns) / 2


def teach_words(
    conditioner: Text, data: Data, *, lessons: Lessons | None = None, device: str | torch.device = "auto"
) -> None:
    """Train a `text` conditioner on the training part of `data` by the contrastive loss, before a model is built on it.

    Words then mean something from the first step on: the loss of a denoiser hardly depends on them at most noise levels, so
    that a byte-level encoder learns names slowly from it alone. By default with a seed of its own: it is not a judge's.
    """
    settings: dict[str, Any] = {
        "text_width": conditioner.width,
        "depth": len(conditioner.layers),
        "length": conditioner.length,
        "buckets": conditioner.buckets,
    }
    if conditioner.head_dim * 4 != conditioner.width or conditioner.ngrams != 8:
        raise UserError("teach_words: a text encoder is taught with 4 heads and 8 n-grams; set heads=4 and ngrams=8")
    teacher = train_contrastive(data, lessons=lessons or Lessons(seed=1), looks=None, device=device, **settings)
    conditioner.load_state_dict(teacher.words.state_dict())


def changed(media: Tensor, how: Lessons, generator: torch.Generator) -> Tensor:
    """Pictures (B, C, H, W) of 0 ... 255, each turned, scaled, moved and cut a little at random."""
    n, device, (height, width) = len(media), media.device, media.shape[2:]
    angle, size, right, down, top, left = (2 * torch.rand(6, n, generator=generator, device=device) - 1).unbind()
    angle, size = angle * how.turn * math.pi / 180, 1 + how.scale * size
    map_ = torch.zeros(n, 2, 3, device=device)
    map_[:, 0, 0] = map_[:, 1, 1] = size * angle.cos()
    map_[:, 0, 1], map_[:, 1, 0] = -size * angle.sin(), size * angle.sin()
    map_[:, 0, 2], map_[:, 1, 2] = 2 * how.shift * right, 2 * how.shift * down
    lattice = F.affine_grid(map_, list(media.shape), align_corners=False)
    found = F.grid_sample(media, lattice, padding_mode="border", align_corners=False)
    rows = torch.linspace(-1, 1, height, device=device)[None, :] - top[:, None]
    columns = torch.linspace(-1, 1, width, device=device)[None, :] - left[:, None]
    hole = (rows.abs() < how.cut)[:, :, None] & (columns.abs() < how.cut)[:, None, :]
    return found.masked_fill(hole[:, None], 127.0)
