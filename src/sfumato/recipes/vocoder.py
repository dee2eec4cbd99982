"""Training of a vocoder: log-mel magnitudes of real sounds back to their samples, judged by spectra and by critics."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.codecs import Codec, Mel, Vocoder
from sfumato.codecs.audio_vocoder import CONFIG, Trained, read_config
from sfumato.core.random import keys, uniform
from sfumato.data import Sounds
from sfumato.data.order import Order
from sfumato.device import choose_device
from sfumato.errors import UserError
from sfumato.evaluate.audio import log_mel_distance, signal_to_noise, stft_distance
from sfumato.nn.discriminator import PatchCritic, hinge, unlearning
from sfumato.spec import Spec

OnStep = Callable[[float, float], None]  # (share of the run that is done, loss)
_WINDOWS = (64, 128, 256, 512, 1024)
_CRITICS = (128, 256, 512)  # windows of the spectra that critics look at
_CRITIC_POWER = 0.3  # spectra are compressed for them


@final
@dataclass(frozen=True)
class VocoderTraining:
    """minutes or steps: the budget, one of the two. batch: sounds a step. length: of the part of each that is looked
    at, in samples.

    adversary: weight of the critics' loss, 0 for none; they begin after `quiet` of the run.
    """

    minutes: float | None = None
    steps: int | None = None
    batch: int = 32
    length: int = 4096
    lr: float = 1e-3
    critic_lr: float = 3e-4
    adversary: float = 0.05
    critic_width: int = 24
    quiet: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise UserError("a vocoder's training has one budget; set minutes or steps")


@final
class SpectralCritics(nn.Module):
    """A `PatchCritic` for complex spectra at each of several resolutions, magnitudes to the power of 0.3.

    Jang et al., "UnivNet", 2021, section 2.2, with real and imaginary parts as in Zeghidour et al., "SoundStream",
    2021.
    """

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.critics = nn.ModuleList()
        for window in _CRITICS:
            shape = (2, window // 2 + 1, 1 + length // (window // 4))
            self.critics.append(PatchCritic(shape, width=width, layers=3))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T) to all patches' numbers side by side (B, n)."""
        seen = []
        for critic, window in zip(self.critics, _CRITICS):
            hann = torch.hann_window(window, device=x.device)
            spectrum = torch.stft(x, window, window // 4, window=hann, return_complex=True) * (4 / window)
            size = spectrum.abs().clamp_min(1e-5)
            pressed = torch.view_as_real(spectrum * size.pow(_CRITIC_POWER - 1)).movedim(-1, 1)
            seen.append(critic(pressed).flatten(1))
        return torch.cat(seen, 1)


def train_vocoder(
    data: Sounds,
    codec: Spec[Codec],
    *,
    training: VocoderTraining,
    device: str = "auto",
    on_step: OnStep | None = None,
) -> tuple[Mel, Trained]:
    """A vocoder for the mel bands of `codec` (a `Mel` with a vocoder), trained on the training part of the data.

        L = STFT distance + mel distance + adversary (hinge loss of the critics' patches)

    STFT distance: `evaluate.audio.stft_distance` of random parts of the sounds; mel distance: mean |ln B|S| - ln
    B|S'||. AdamW, warm-up and linear fall. Returns the codec, measured, with the trained vocoder in it, and what to
    save. With `steps` a function of its arguments. Scores on held-out sounds are in `trained`, beside those of
    Griffin-Lim.
    """
    if codec.cls is not Mel or codec.settings.get("vocoder") is None:
        raise UserError("a vocoder is trained for a codec of type mel that has one; set codec.vocoder=vocos")
    began, where = time.perf_counter(), choose_device(device)
    training_part = np.flatnonzero(~data.held_out_mask())
    media = data.fetch(training_part).media
    with torch.random.fork_rng():
        torch.manual_seed(int(keys(training.seed, "vocoder", [0])[0]) >> 1)
        made = codec.with_(weights=None).build(data.info)
        assert isinstance(made, Mel) and made.vocoder is not None
        white: Any = made.vocoder.white
        white.fit(_bands(made, part) for part in torch.split(media, 256))
        made.whitening.fit(made.encode(part) for part in torch.split(media, 256))
        made.to(where)
        steps = _Steps(made, training, data.info.shape[1], where)
        count = _run(steps, media.to(where), training, began, on_step)
    made.eval().requires_grad_(False).cpu()
    trained = {
        "fingerprint": data.fingerprint(),
        "items": len(media),
        "steps": count,
        "seconds": round(time.perf_counter() - began, 1),
        **reconstruction(made, data),
    }
    spec: Spec[Vocoder] = codec.settings["vocoder"]
    return made, Trained(made.vocoder, spec, made.described, trained)


def vocoder_of(data: Sounds, codec: Spec[Codec], folder: Path, **settings: Any) -> Path:
    """The folder of a vocoder for these bands and data, trained first if there is none."""
    if (folder / CONFIG).is_file() and read_config(folder)["trained"].get("fingerprint") == data.fingerprint():
        return folder
    train_vocoder(data, codec, **settings)[1].save(folder)
    return folder


@torch.no_grad()
def reconstruction(codec: Mel, data: Sounds, most: int = 256) -> dict[str, float]:
    """How near held-out sounds come back from their mel bands, by the vocoder and by Griffin-Lim: means over some."""
    held = np.flatnonzero(data.held_out_mask())[:most]
    media = data.fetch(held).media
    h = torch.cat([_bands(codec, part) for part in torch.split(media, 64)])[:, None]
    h = h.reshape(len(media), -1, *h.shape[2:])
    made = {"vocoder": codec.sound(h, media.shape[-1]), "griffin_lim": codec.by_griffin_lim(h, media.shape[-1])}
    found = {}
    for name, sound in made.items():
        found[f"{name}_mel_db"] = round(float(log_mel_distance(media, sound, data.info.rate).mean()), 3)
        found[f"{name}_stft"] = round(float(stft_distance(media, sound).mean()), 4)
        found[f"{name}_snr_db"] = round(float(signal_to_noise(media, sound).mean()), 2)
    return found


def _bands(codec: Mel, media: Tensor) -> Tensor:
    """Log-mel magnitudes of every channel alone: (B c, bands, frames)."""
    h = codec.encode(media)
    return h.reshape(-1, codec.bands, h.shape[-1])


@final
class _Steps:
    """The vocoder, its critics and their optimizers."""

    def __init__(self, codec: Mel, training: VocoderTraining, samples: int, where: torch.device) -> None:
        assert codec.vocoder is not None
        self.codec, self.vocoder, self.training = codec, codec.vocoder, training
        hop = codec.frames.hop
        self.length = min(training.length, samples) // hop * hop
        self.optimizer = torch.optim.AdamW(self.vocoder.parameters(), training.lr, (0.8, 0.99), weight_decay=0.01)
        self.critics = SpectralCritics(self.length, training.critic_width).to(where) if training.adversary else None
        self.critic_optimizer = (
            torch.optim.AdamW(self.critics.parameters(), training.critic_lr, (0.8, 0.99)) if self.critics else None
        )

    def __call__(self, real: Tensor, rate: float, adversary: bool) -> Tensor:
        """One step on parts of sounds (B, T); returns the loss without the adversary's."""
        for optimizer, lr in ((self.optimizer, self.training.lr), (self.critic_optimizer, self.training.critic_lr)):
            if optimizer is not None:
                for group in optimizer.param_groups:
                    group["lr"] = lr * rate
        bank, frames = self.codec.bank, self.codec.frames
        h = (bank @ frames(real).abs()).clamp_min(self.codec.floor).log()
        made = frames.inverse(self.vocoder(h), real.shape[-1])
        again = (bank @ frames(made).abs()).clamp_min(self.codec.floor).log()
        loss = stft_distance(real, made, _WINDOWS).mean() + F.l1_loss(again, h)
        total = loss
        if adversary and self.critics is not None and self.critic_optimizer is not None:
            judged = hinge(self.critics(real), self.critics(made.detach())).mean()
            self.critic_optimizer.zero_grad()
            torch.autograd.backward(judged)
            self.critic_optimizer.step()
            total = loss - self.training.adversary * unlearning(self.critics, made).mean()
        self.optimizer.zero_grad()
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(self.vocoder.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()


def _run(steps: _Steps, media: Tensor, training: VocoderTraining, began: float, on_step: OnStep | None) -> int:
    """All steps; returns how many."""
    order, number, done = Order(len(media), training.seed), 0, 0.0
    flat = media.flatten(0, 1)
    while done < 1:
        index = np.arange(number * training.batch, (number + 1) * training.batch, dtype=np.int64)
        rows = torch.from_numpy(order(index)).to(media.device)
        spare = flat.shape[-1] - steps.length
        first = (uniform(keys(training.seed, "part", index)) ** 2 * (spare + 1)).astype(
            np.int64
        )  # sounds end in silence
        at = torch.from_numpy(first).to(media.device)[:, None] + torch.arange(steps.length, device=media.device)
        channels = media.shape[1]
        real = flat[rows * channels + number % channels].gather(1, at)
        rate = min(1.0, done / 0.02 + 1e-3) * min(1.0, (1 - done) / 0.5)
        loss = steps(real, rate, done >= training.quiet)
        number += 1
        if training.steps is not None:
            done = number / training.steps
        elif number % 10 == 0:
            loss.item()  # what was asked for is done, not only queued
            done = (time.perf_counter() - began) / 60 / (training.minutes or 1.0)
        if on_step is not None and number % 50 == 0:
            on_step(done, float(loss))
    return number
