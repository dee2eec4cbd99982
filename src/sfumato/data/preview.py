"""A look at a data set before training on it: a contact sheet and a summary in words."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from sfumato.core.random import keys
from sfumato.data.base import Data, Subset
from sfumato.errors import UserError
from sfumato.kinds import kind_of

_COUNTED = 100_000
_MEASURED = 256
_CLASSES_SHOWN = 12
_CAPTIONS_SHOWN = 4


def sample_indices(data: Data, n: int, seed: int = 0) -> list[int]:
    """`n` indices (all, if there are fewer) chosen by the seed, in rising order."""
    chosen = np.argsort(keys(seed, "preview", np.arange(len(data))), kind="stable")[:n]
    return sorted(int(i) for i in chosen)


def preview(data: Data, n: int = 32, seed: int = 0) -> Image.Image:
    """A contact sheet of `n` items, each with its label and caption under it, as training will see them (centre crop)."""
    if n < 1:
        raise UserError(f"n = {n}: must be at least 1 picture")
    batch = data.fetch(sample_indices(data, n, seed))
    labels, captions = batch.conditions.get("label"), batch.conditions.get("caption")
    under = []
    for i in range(len(batch)):
        parts = [data.info.labels[int(labels[i])]] if isinstance(labels, Tensor) else []
        parts += [str(captions[i])] if captions is not None else []
        under.append(": ".join(parts))
    return kind_of(data.info).sheet(list(batch.media), data.info, captions=under if any(under) else None)


def summary(data: Data, seed: int = 0) -> str:
    """Count, shape, split, value range, classes with counts, captions and problems, a line each."""
    info = data.info
    chosen = sample_indices(data, _MEASURED, seed)
    media = data.fetch(chosen).media.float()
    shape = " x ".join(map(str, info.shape))
    kind = kind_of(info)
    lines = [f"{len(data):,} items of {shape} ({kind.dtype} {kind.noun})"]
    if not isinstance(data, Subset):
        held_out = int(data.held_out_mask().sum())
        lines.append(f"split: {len(data) - held_out:,} to train on, {held_out:,} held out")
    spread = f"mean {media.mean():.4g}, deviation {media.std():.4g}"
    lines.append(f"values: {media.min():g} to {media.max():g}, {spread} (of {len(chosen)} items)")
    lines += _classes(data)
    if info.captions:
        shown = data.columns(chosen[:_CAPTIONS_SHOWN])["caption"]
        lines.append("captions: " + "; ".join(f'"{c}"' for c in shown))
    if info.numbers:
        lines.append("numbers: " + ", ".join(info.numbers))
    lines += [f"problem: {said}" for said in data.problems]
    return "\n".join(lines)


def _classes(data: Data) -> list[str]:
    names = data.info.labels
    if not names:
        return []
    whole = data.data if isinstance(data, Subset) else data
    most = _MEASURED if type(whole).columns is Data.columns else _COUNTED  # else every label costs a fetch
    counted = range(min(len(data), most))
    labels = data.columns(counted)["label"]
    counts = np.bincount(np.asarray(labels), minlength=len(names))
    shown = ", ".join(f"{name} {count:,}" for name, count in list(zip(names, counts))[:_CLASSES_SHOWN])
    more = f", and {len(names) - _CLASSES_SHOWN} more" if len(names) > _CLASSES_SHOWN else ""
    part = f" in the first {most:,}" if len(data) > most else ""
    return [f"{len(names)} classes{part}: {shown}{more}"]
