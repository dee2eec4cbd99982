"""What a run of an autoencoder does besides training: held-out scores, reconstructions to look at, the codec's folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sfumato import media
from sfumato.codecs import Codec, Latent, save_autoencoder
from sfumato.core import DataInfo
from sfumato.data import Data
from sfumato.evaluate.reconstruction import decibels, psnr, ssim
from sfumato.kinds import kind_of
from sfumato.spec import Spec
from sfumato.train.hook import Hook, Moment
from sfumato.train.hooks import Report
from sfumato.train.settings import Training

_BATCH = 16
_SHOWN = 8
_LEAST_SSIM = 11


def autoencoder_hooks(data: Data, settings: Training, spec: Spec[Codec]) -> list[Hook]:
    """All of them, as often as the settings say."""
    held_out = data.split("held_out")
    shown = held_out if len(held_out) else data.split("train")
    hooks: list[Hook] = [Scores(held_out, settings.evaluations)] if len(held_out) else []
    return [*hooks, Reconstructions(shown, settings.pictures), AutoencoderFolder(spec, data.info), Report(settings)]


@torch.no_grad()
def reconstructed(codec: Latent, media_: Tensor) -> Tensor:
    """media through the latent and back."""
    device = codec.whitening.mean.device
    h = codec.encode(media_.to(device))
    return codec.media(codec.net.decode(h)).cpu()


@torch.no_grad()
def scores(codec: Latent, data: Data, n: int) -> dict[str, float]:
    """Means over n items: `psnr` and `ssim` of pictures in grey levels, `snr` in dB of everything else.

    `error` is the mean absolute one of the field that the network sees.
    """
    found: dict[str, list[Tensor]] = {}
    error = power = 0.0
    for batch in _some(data, n):
        made = reconstructed(codec, batch)
        device = codec.whitening.mean.device
        apart = codec.field(made.to(device)) - codec.field(batch.to(device))
        found.setdefault("error", []).append(apart.abs().flatten(1).mean(1).double().cpu())
        if codec.bytes:
            found.setdefault("psnr", []).append(psnr(made, batch).clamp(max=100.0))
            if batch.ndim == 4 and min(batch.shape[2:]) >= _LEAST_SSIM:
                found.setdefault("ssim", []).append(ssim(made, batch))
        else:
            error += float((made - batch).double().square().sum())
            power += float(batch.double().square().sum())
    means = {name: float(torch.cat(values).mean()) for name, values in found.items()}
    return means if codec.bytes else means | {"snr": decibels(error / power) if power else 0.0}


def _some(data: Data, n: int) -> Iterator[Tensor]:
    """Up to n items from all over the set."""
    count = min(len(data), n)
    chosen = np.arange(count) * len(data) // max(count, 1)
    for first in range(0, count, _BATCH):
        yield data.fetch(chosen[first : first + _BATCH]).media


@final
class Scores(Hook):
    """Held-out error, PSNR and SSIM (or the signal-to-noise ratio) of the averaged weights, always of the same items.

    The error is the run's held-out loss: `held_out` of metrics.jsonl.
    """

    def __init__(self, data: Data, times: int, n: int = 64) -> None:
        self.data, self.times, self.n = data, times, n

    def __call__(self, moment: Moment) -> Mapping[str, Any]:
        assert isinstance(moment.model, Latent)
        found = scores(moment.model, self.data, self.n)
        return {
            "held_out": found.pop("error"),
            **{f"held_out_{name}": round(value, 4) for name, value in found.items()},
        }


@final
class Reconstructions(Hook):
    """Held-out items above and what becomes of them below: samples/step-00001200.png."""

    def __init__(self, data: Data, times: int) -> None:
        self.data, self.times = data, times

    def __call__(self, moment: Moment) -> Mapping[str, Any]:
        assert isinstance(moment.model, Latent)
        real = next(_some(self.data, _SHOWN))
        made = reconstructed(moment.model, real)
        kind, info = kind_of(self.data.info), self.data.info
        words = [*["held out"] * len(real), *["reconstructed"] * len(real)]
        sheet = kind.sheet([*real, *made], info, len(real), words)
        text = {"step": str(moment.step), "samples": str(moment.samples)}
        media.save_png(sheet, moment.run.samples / f"step-{moment.step:08d}.png", text)
        return {"pictures": sheet}


@final
class AutoencoderFolder(Hook):
    """Writes `model/` with every checkpoint: the averaged autoencoder, ready for codec=RUN."""

    times = None

    def __init__(self, spec: Spec[Codec], info: DataInfo) -> None:
        self.spec, self.info = spec, info

    def __call__(self, moment: Moment) -> None:
        assert isinstance(moment.model, Latent)
        trained = {
            "run": moment.run.name,
            "step": moment.step,
            "samples": moment.samples,
            "seconds": round(moment.seconds, 1),
            "data": moment.run.read("data.json"),
            "environment": moment.run.read("env.json"),
        }
        save_autoencoder(moment.run.model, moment.model, self.spec, self.info, trained)
