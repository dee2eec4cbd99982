"""Training an autoencoder: reconstruction, perceptual distance, a critic, and equivariance of the latent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.codecs import Latent, Spectrogram, Waveform
from sfumato.core import Batch, Draws, Loss, Planned, on_device
from sfumato.core.random import training_noise
from sfumato.errors import UserError
from sfumato.evaluate.perceptual import Perceptual
from sfumato.nn.discriminator import Critic, adaptive_weight, hinge, unlearning
from sfumato.registry import Registered
from sfumato.sound import SpectralDistance
from sfumato.spec import as_spec
from sfumato.train.task import Task

_SCALES = (0.5, 0.75)  # of the latent's sides, for equivariance


@final
@dataclass(frozen=True)
class Reconstruction(Registered, family="reconstruction", name="reconstruction"):
    """What an autoencoder is trained on, besides the penalty of its bottleneck:

        |x' - x|_p + perceptual_weight d(x', x) + stft s(x', x) + adversarial lambda mean(-D(x'))

    norm: p, l1 or l2. perceptual: whose features d is measured in, the folder of a judge, `vgg:FILE` or `lpips:FILE,FILE`;
    none for no such term. stft: of s, the distance of the spectra of sounds (`sound.SpectralDistance`: spectral convergence
    and log magnitudes), with `windows` samples a frame, one number for each resolution; 0 for no such term, the only choice
    where the field holds no samples. adversarial: of the critic D, 0 for none; lambda makes both gradients in the last layer
    equally long (Esser et al. 2021, eq. 7). after: samples seen before the critic begins, which then also learns.
    equivariance: share of batches in which the latent is turned and made smaller and must decode to the picture so treated
    (Kouzelis et al., "EQ-VAE", 2025, section 3.2): a smoother latent, easier for a diffusion model. noise: its deviation, in
    those of the latent's channels over the batch, of noise that is added to the latent before it is decoded: a decoder that
    the small errors of a diffusion model do not disturb.
    """

    norm: Literal["l1", "l2"] = "l1"
    perceptual: str | None = None
    perceptual_weight: float = 0.5
    stft: float = 0.0
    windows: tuple[int, ...] = (256, 512, 1024)
    adversarial: float = 0.0
    after: int = 0
    equivariance: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("perceptual_weight", "stft", "adversarial", "after", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"losses.{name} = {getattr(self, name)}: must be at least 0")
        if not 0 <= self.equivariance <= 1:
            raise UserError(f"losses.equivariance = {self.equivariance}: is a share of the batches, 0 to 1")
        if not self.windows:
            raise UserError("losses.windows is empty: give samples a frame, such as 256,512,1024")


@final
class AutoencoderTask(Task):
    """A codec whose autoencoder learns, and its critic. Two phases, in one step and one backward pass.

    The generator's loss reaches the autoencoder alone, since it sees the critic through weights that are constants
    (`unlearning`); the critic's loss reaches the critic alone, since it sees reconstructions as constants. So one optimizer
    steps both, and one recorded graph holds both. `phases` names the parameters of each.
    """

    model: Latent

    def __init__(
        self, codec: Latent, losses: Reconstruction, critic: Critic | None = None, perceptual: Perceptual | None = None
    ) -> None:
        super().__init__()
        if (critic is None) != (losses.adversarial == 0):
            raise UserError(
                f"losses.adversarial = {losses.adversarial:g}: needs a critic where it is above 0, and else none"
            )
        if perceptual is not None and not (codec.bytes and len(codec.inner.shape) == 3):
            raise UserError("losses.perceptual: is for pictures, and this data has none; leave it unset")
        if losses.stft and not isinstance(codec.inner, Waveform | Spectrogram):
            raise UserError(
                f"losses.stft = {losses.stft:g}: compares spectra of sounds, and codec={codec.inner.kind} makes no samples "
                "to compare; set losses.stft=0"
            )
        self.model, self.losses, self.critic, self.perceptual = codec, losses, critic, perceptual
        self.spectra = SpectralDistance(losses.windows) if losses.stft else None
        codec.inner.requires_grad_(False)

    @property
    def phases(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that learn in each phase of a step; none belongs to two."""
        made = {"generator": list(self.model.net.parameters())}
        return made if self.critic is None else made | {"critic": list(self.critic.parameters())}

    @property
    def halved(self) -> nn.Module:
        return nn.ModuleList([self.model.net] if self.critic is None else [self.model.net, self.critic])

    @property
    def separable(self) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        return {"autoencoder.type": self.model.net.kind, **dict(as_spec(self.losses).leaves("losses."))}

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        planned = self.plan(batch, draws)
        device = next(self.model.net.parameters()).device
        tensors = {name: on_device(value, device) for name, value in planned.tensors.items()}
        value, each = self.compute(tensors)
        if self.critic is not None and "critic" not in tensors:  # several processes wait for a gradient of every weight
            value = value + 0 * torch.stack([p.sum() for p in self.critic.parameters()]).sum()
        return Loss(value, each, planned.t)

    def plan(self, batch: Batch, draws: Draws) -> Planned:
        tensors = {"media": batch.media, "keys": draws.keys("latent")}
        if self.critic is not None and draws.start >= self.losses.after:
            tensors["critic"] = torch.zeros(1)  # a name is enough: it tells one recorded step from another
        if self.losses.noise:
            tensors["noise"] = draws.keys("decoded")
        if float(draws.uniform("equivariance")[0]) < self.losses.equivariance:
            tensors |= self._treatment(draws, self.model.shape[1:])
        return Planned(tensors, torch.zeros(len(batch), dtype=torch.float64))

    def compute(self, planned: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        codec, losses = self.model, self.losses
        with torch.no_grad():
            x = codec.field(planned["media"])
        eps = training_noise(planned["keys"], codec.net.latent_shape(x.shape[2:]))
        z, penalty = codec.net(x, eps)
        if "turn" in planned:
            z, x = treated(z, x, planned["turn"], planned["size"].shape[1:], codec.net.factor)
        if "noise" in planned:
            z = z + losses.noise * _deviation(z) * training_noise(planned["noise"], z.shape[1:]).to(z)
        made = codec.net.made(z)
        error = made - x
        each = (error.abs() if losses.norm == "l1" else error.square()).flatten(1).mean(1)
        direct = each.mean()
        if self.perceptual is not None:
            near = self.perceptual(_shown(made), _shown(x))
            direct = direct + losses.perceptual_weight * near.mean()
        if self.spectra is not None:
            far = self.spectra(codec.inner.decode(x), codec.inner.decode(made))
            direct = direct + losses.stft * far.mean()
        value = direct + penalty.mean()
        if self.critic is None or "critic" not in planned:
            return value, each.detach()
        learning = self._through_critic(direct, made) + penalty.mean()
        judged = hinge(self.critic(x), self.critic(made.detach())).mean()
        learning = learning + judged
        return value.detach() + learning - learning.detach(), each.detach()

    def _through_critic(self, direct: Tensor, made: Tensor) -> Tensor:
        """A number whose gradient is that of direct + adversarial lambda mean(-D(made)).

        Both gradients are taken at `made` once; for lambda they go on to the last layer, and together to all others.
        """
        assert self.critic is not None
        against = -unlearning(self.critic, made).mean()
        (first,) = torch.autograd.grad(direct, made, retain_graph=True)
        (second,) = torch.autograd.grad(against, made)
        weight: Any = self.model.net.last.weight
        lasts = [torch.autograd.grad(made, weight, g, retain_graph=True)[0].float() for g in (first, second)]
        balance = self.losses.adversarial * adaptive_weight(*lasts)
        return (made * (first + balance * second).detach()).sum()

    @staticmethod
    def _treatment(draws: Draws, size: Sequence[int]) -> dict[str, Tensor]:
        """Which axes to mirror and whether to swap the last two, as 0 or 1, and the smaller size as a shape."""
        choices = [float(draws.uniform(f"equivariance/{i}")[0]) for i in range(len(size) + 2)]
        turn = torch.tensor([choice < 0.5 for choice in choices[: len(size) + 1]])
        scale = _SCALES[int(choices[-1] * len(_SCALES))]
        return {"turn": turn, "size": torch.zeros(1, *(max(1, round(n * scale)) for n in size))}


def treated(z: Tensor, x: Tensor, turn: Tensor, size: Sequence[int], factor: int) -> tuple[Tensor, Tensor]:
    """A latent z (B, c, *s) and its field x (B, C, *s factor), both mirrored, the last two axes swapped, and made smaller.

    turn: (axes + 1,) bool, an axis each, and the swap, which needs equal sides. size: of the latent afterwards.
    """
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(size)]
    area = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    made = []
    for field, to, how in ((z, list(size), mode), (x, [n * factor for n in size], area)):
        for axis in range(len(size)):
            field = torch.where(turn[axis], field.flip(2 + axis), field)
        if len(size) > 1 and field.shape[-1] == field.shape[-2]:
            field = torch.where(turn[-1], field.transpose(-1, -2), field)
        thin = {"antialias": True} if len(size) == 2 else {}
        made.append(F.interpolate(field.float(), to, mode=how, align_corners=False, **thin))
    return made[0], made[1]


def _deviation(z: Tensor) -> Tensor:
    """Of each channel of z (B, C, *S), (1, C, 1, ...), as a constant."""
    return z.detach().float().std((0, *range(2, z.ndim)), keepdim=True).to(z)


def _shown(x: Tensor) -> Tensor:
    """A field of [-1, 1] as grey levels."""
    return (x + 1) * 127.5
