"""A latent codec: another codec's field, made smaller by an autoencoder that was trained before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from sfumato.codecs.base import Codec, Whitening
from sfumato.core import DataInfo
from sfumato.errors import UserError
from sfumato.kinds import kind_of
from sfumato.nn.autoencoder import Autoencoder
from sfumato.nn.tiling import tiled
from sfumato.spec import Spec, parse

_LEAST = 8  # positions of a tile of the latent at least


@final
class Latent(Codec, name="latent"):
    """media -> inner codec's x (B, C, *S) -> autoencoder -> h (B, c, *s), the latent -> whitened per channel.

    autoencoder: the network and its settings. inner: what makes a field of media; none for the usual codec of their kind.
    path: a folder that the weights of a new model are read from, and sha256 what they must be (`weights_sha256`): both are
    filled in by `codec=FOLDER`. A trained model has the weights in its own folder and needs neither. precision: `auto` runs
    the network in bfloat16 on CUDA, `fp32` nowhere.

    `encode` hands through what is encoded already (data written by `sfumato data encode`): floating-point items of the
    latent's shape. Media of kinds with 8-bit items are scaled to [-1, 1] for the network; others are whitened.
    Sounds may have any length: the last position of their field is repeated up to a multiple of the network's factor, and
    what that made is cut off again.
    Decoding is not exact, so there is no likelihood of media. Rombach et al., "High-Resolution Image Synthesis with Latent
    Diffusion Models", 2022. The scale of the latent is measured on the data at hand instead of carried along as a constant.
    """

    measured: ClassVar[int] = 512  # items; a latent has hundreds of positions each

    def __init__(
        self,
        info: DataInfo,
        *,
        autoencoder: Spec[Autoencoder],
        inner: Spec[Codec] | None = None,
        path: str | None = None,
        sha256: str | None = None,
        precision: Literal["auto", "fp32"] = "auto",
    ) -> None:
        super().__init__()
        kind = kind_of(info)
        made = inner or parse(Codec, kind.codec, path="codec.inner")
        if made.cls is Latent:
            raise UserError(
                "codec.inner: a latent of a latent is not made; name the codec of the media, such as pixels"
            )
        self.inner = made.build(info)
        self.net = autoencoder.build(self.inner.shape)
        self.sha256, self.precision, self.bytes = sha256, precision, kind.dtype == "uint8"
        if self.inner.shape[0] != self.net.shape[0]:  # an imported network has channels of its own
            raise UserError(
                f"codec=latent: the autoencoder is for {self.net.shape[0]} channels, and the data has {self.inner.shape[0]}; "
                f"set data.channels={self.net.shape[0]} or train another one"
            )
        own = self.inner.shape[1:]
        self._any = info.kind == "audio" and len(own) == 1
        self._shape = self.net.latent_shape((-(-own[0] // self.net.factor) * self.net.factor,) if self._any else own)
        if not self.bytes and self._shape == info.shape:
            raise UserError(
                "codec=latent: its latent has the shape of the media; use a factor above 1 or other channels"
            )
        self.whitening = Whitening(self._shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def field(self, media: Tensor) -> Tensor:
        """media to what the autoencoder reads (B, C, *S)."""
        x = self.inner.whiten(self.inner.encode(media))
        more = -x.shape[-1] % self.net.factor if self._any else 0
        return torch.cat([x, x[..., -1:].expand(*x.shape[:-1], more)], -1) if more else x

    def media(self, x: Tensor) -> Tensor:
        """What the autoencoder makes (B, C, *S) as media; a sound of the usual length is cut to that of the data."""
        usual = self._any and x.shape[-1] == self._shape[-1] * self.net.factor
        return self.inner.decode(x[..., : self.inner.shape[-1]] if usual else x)

    def encode(self, media: Tensor) -> Tensor:
        if self.is_encoded(media):
            return media.float()
        x = self.field(media)
        with self._half(x):
            return self.net.encode(x)

    def encode_tiled(self, media: Tensor, tile: int) -> Tensor:
        """`encode` in the memory of a tile of the field, at most about `tile` positions a side; seams are blended."""
        factor = self.net.factor
        side = max(_LEAST, tile // factor) * factor
        overlap = (side // (4 * factor)) * factor

        def encode(x: Tensor) -> Tensor:
            with self._half(x):
                return self.net.encode(x)

        return tiled(encode, self.field(media), tile=side, overlap=overlap, factor=Fraction(1, factor))

    def is_encoded(self, media: Tensor) -> bool:
        """Whether these are latents and not media."""
        if self.bytes:
            return media.is_floating_point()
        return tuple(media.shape[1:]) == self._shape

    def whiten(self, h: Tensor) -> Tensor:
        x0: Tensor = self.whitening(h)
        return x0

    def decode(self, x0: Tensor) -> Tensor:
        return self.media(self._decode(self.whitening.inverse(x0)))

    def decode_tiled(self, x0: Tensor, tile: int) -> Tensor:
        factor = self.net.factor
        side = max(_LEAST, tile // factor)
        h = self.whitening.inverse(x0)
        return self.media(tiled(self._decode, h, tile=side, overlap=side // 4, factor=factor))

    def _decode(self, h: Tensor) -> Tensor:
        with self._half(h):
            return self.net.decode(h)

    def _half(self, x: Tensor) -> AbstractContextManager[object]:
        if not x.is_cuda:
            return nullcontext()
        return torch.autocast("cuda", torch.bfloat16, enabled=self.precision == "auto")

    @torch.no_grad()
    def measure(self, media: Iterable[Tensor]) -> None:
        """Mean and deviation of the latent, per channel. The inner codec was measured when the autoencoder was trained."""
        device = self.whitening.mean.device
        self.whitening.fit(self.encode(batch.to(device)) for batch in media)

    def measure_inner(self, media: Iterable[Tensor]) -> None:
        """The inner codec's own measure, once, before the autoencoder is trained; 8-bit media keep the range [-1, 1]."""
        if not self.bytes:
            self.inner.measure(media)

    def weights(self) -> dict[str, Tensor]:
        """Everything that a latent depends on: tensors of network and inner codec by name, the whitening left out."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("whitening.")}

    def weights_sha256(self) -> str:
        """sha256 of `weights`, names and shapes included: the same weights give the same one in any file."""
        return digest_of(self.weights())


def digest_of(tensors: dict[str, Tensor]) -> str:
    """sha256 of names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous()
        found.update(f"{name} {flat.dtype} {tuple(flat.shape)}\n".encode())
        found.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
