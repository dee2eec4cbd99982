"""`ae`: an autoencoder of pictures, sounds or volumes, the codec of a latent diffusion model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor

from sfumato.codecs import Codec, Latent, Spectrogram, Waveform, load_weights
from sfumato.core import DataInfo
from sfumato.core.random import keys
from sfumato.data import Data
from sfumato.errors import UserError
from sfumato.evaluate.perceptual import open_perceptual
from sfumato.kinds import kind_of
from sfumato.nn import ConvAutoencoder, Critic, PatchCritic
from sfumato.recipes.base import recipe
from sfumato.recipes.image import _device, batch_for, title_of
from sfumato.registry import Registered
from sfumato.spec import Spec, parse
from sfumato.train import Estimate, Hook, Run, Training, estimate
from sfumato.train.autoencoder_hooks import autoencoder_hooks
from sfumato.train.autoencoder_task import AutoencoderTask, Reconstruction

_MEASURED, _FETCHED = 1024, 64
_SOUNDS = (Waveform, Spectrogram)
_FRAMES = (0.0125, 0.025, 0.05)  # seconds, about, of the spectra that sounds are compared by
_STFT = 0.3  # 1 drowns the error of the samples: a signal-to-noise ratio near 0, and spectra that are hardly better


@final
@dataclass(frozen=True)
class AutoencoderRecipe(Registered, family="recipe", name="autoencoder"):
    """One training of one autoencoder, complete.

    title, data, train, seed: as of a `diffusion` recipe. codec: a `latent` codec, which has the network. losses: what it is
    trained on. critic: of the adversarial loss; none for `patch` where losses.adversarial is above 0.
    init: a folder with an autoencoder (`codec=FOLDER`) whose weights training starts from.
    """

    title: str
    data: Spec[Data]
    codec: Spec[Codec]
    losses: Reconstruction = field(default_factory=Reconstruction)
    critic: Spec[Critic] | None = None
    train: Training = field(default_factory=Training)
    seed: int = 0
    init: str | None = None

    def __post_init__(self) -> None:
        if self.codec.cls is not Latent:
            raise UserError(f"codec={self.codec.cls.kind}: an autoencoder's recipe trains a codec of type latent")
        if not self.title.strip():
            raise UserError("title = '' names no run; give the recipe a title")


@final
@dataclass(frozen=True)
class PreparedAutoencoder:
    """The parts of a run of an autoencoder, built."""

    recipe: AutoencoderRecipe
    data: Data
    task: AutoencoderTask

    def estimate(self, device: str = "auto") -> Estimate:
        """Parameters, memory and time, from two real steps."""
        return estimate(self.task, self.data, self.recipe.train, seed=self.recipe.seed, device=device)

    def hooks(self) -> list[Hook]:
        """What the run does besides training."""
        return autoencoder_hooks(self.data, self.recipe.train, self.recipe.codec)

    def in_words(self) -> str:
        """The model in a line."""
        codec = self.task.model
        count = sum(p.numel() for p in codec.net.parameters())
        latent = " x ".join(map(str, codec.shape))
        return f"autoencoder {codec.net.kind}, {count:,} parameters, latent {latent} ({codec.net.bottleneck.kind})"

    def next_command(self, folder: Path) -> str:
        """What to type when it is trained."""
        path = self.recipe.data.settings.get("path", self.recipe.data.cls.kind)
        return f"sfumato train image data={path} codec={folder}"


def prepare_autoencoder(spec: Spec[Any], run: Run | None = None) -> PreparedAutoencoder:
    """Open the data and build what an autoencoder's recipe says: a function of both, bit for bit."""
    made: AutoencoderRecipe = spec.build()
    data = made.data.build()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(keys(made.seed, "init", [0])[0]) >> 1)
        codec = made.codec.build(data.info)
        assert isinstance(codec, Latent)
        critic = None
        if made.losses.adversarial > 0:
            critic = (made.critic or Spec(PatchCritic)).build(codec.inner.shape)
    if run is None or run.checkpoints().newest_info() is None:
        if made.init is not None:
            load_weights(codec, made.init)
        else:
            codec.measure_inner(_media(data.split("train")))
    perceptual = None if made.losses.perceptual is None else open_perceptual(made.losses.perceptual)
    return PreparedAutoencoder(made, data, AutoencoderTask(codec, made.losses, critic, perceptual))


def _media(data: Data) -> Iterator[Tensor]:
    count = min(len(data), _MEASURED)
    chosen = np.arange(count) * len(data) // max(count, 1)
    for first in range(0, count, _FETCHED):
        yield data.fetch(chosen[first : first + _FETCHED]).media


@dataclass(frozen=True)
class _Scale:
    width: int
    blocks: int
    lr: float
    positions: int  # of a batch


_SCALES = {
    "xs": _Scale(16, 1, 2e-3, 1 << 16),
    "s": _Scale(64, 2, 1e-3, 1 << 20),
    "m": _Scale(128, 2, 5e-4, 1 << 20),
    "l": _Scale(192, 3, 3e-4, 1 << 19),
}
Size = Literal["auto", "xs", "s", "m", "l"]


@recipe("ae")
def ae(
    *,
    data: Spec[Data],
    size: Size = "auto",
    minutes: float | None = None,
    factor: int = 8,
    channels: int | None = None,
    adversarial: float = 0.1,
    codec: Spec[Codec] | None = None,
) -> Spec[AutoencoderRecipe]:
    """An autoencoder of pictures, sounds or volumes; `sfumato train image codec=RUN` then trains in its latent.

    data: a path or a name. size: xs, s, m or l (auto: xs on a CPU, m on a GPU). minutes: of training (15 and 30).
    factor: positions of an axis that become one. channels: of the latent (4 for factor 8, 3 for less, 32 for 32 and more).
    adversarial: of the critic, which begins after 200,000 samples; 0 for none.
    codec: what the autoencoder works on (a spectrogram, say); by default the usual codec of the data. Sounds of
    codec=waveform or spectrogram are also compared by their spectra (losses.stft=0.3), voxels by squares (losses.norm=l2).
    """
    info, device = data.build().info, _device()
    scale = _SCALES[("xs" if device == "cpu" else "m") if size == "auto" else size]
    if codec is not None and codec.cls in _SOUNDS and "beyond" not in codec.settings:
        codec = codec.with_(beyond="lower")  # what comes back through a latent may be louder than what went in
    inner = codec or parse(Codec, kind_of(info).codec, path="codec")
    if inner.cls is Latent:
        raise UserError("codec=: an autoencoder works on a codec without one; name that of the media, or leave it out")
    field_shape = inner.build(info).shape
    if len(field_shape) == 1 or min(field_shape[1:]) < factor:
        raise UserError(
            f"factor={factor}: the data has the shape {field_shape}, which leaves no latent; use a smaller factor"
            if len(field_shape) > 1
            else f"data of shape {field_shape} has no positions to make fewer; train on it directly"
        )
    made = channels if channels is not None else (32 if factor >= 32 else 4 if factor >= 8 else 3)
    patch = 1 if factor < 4 else 2
    network = Spec(
        ConvAutoencoder,
        channels=made,
        factor=factor,
        patch=patch,
        width=scale.width,
        mults=(1, 2, 4),
        blocks=scale.blocks,
    )
    batch = min(batch_for(field_shape, scale.positions), 64)
    return Spec(
        AutoencoderRecipe,
        title=f"{title_of(data)}-ae",
        data=data,
        codec=Spec(Latent, autoencoder=network, inner=codec),
        losses=_losses(info, inner, adversarial),
        train=Training(
            batch=batch,
            minutes=minutes if minutes is not None else (15.0 if device == "cpu" else 30.0),
            lr=scale.lr,
            decay=0.5,
            drop=0.0,
        ),
    )


def _losses(info: DataInfo, inner: Spec[Codec], adversarial: float) -> Reconstruction:
    """What an autoencoder of such media is trained on."""
    after = 200_000 if adversarial else 0
    if inner.cls not in _SOUNDS:
        # of cells that are seldom occupied the median is "empty" and grey, which is what l1 asks for where it is not sure
        return Reconstruction(norm="l2" if info.kind == "voxels" else "l1", adversarial=adversarial, after=after)
    windows = tuple(max(32, 2 ** round(math.log2(info.rate * seconds))) for seconds in _FRAMES)
    return Reconstruction(adversarial=adversarial, after=after, stft=_STFT, windows=windows)
