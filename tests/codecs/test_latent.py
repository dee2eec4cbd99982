"""The latent codec: whitening, tiles, what is encoded already, and its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.codecs import Latent, Waveform, load_weights, open_codec, save_autoencoder
from sfumato.core import DataInfo
from sfumato.errors import SfumatoError, UserError
from sfumato.nn import Autoencoder, ConvAutoencoder, Plain
from sfumato.nn.autoencoder import fold, unfold
from sfumato.spec import Spec

PICTURES = DataInfo((3, 32, 32))


@final
class Local(Autoencoder, name="local-for-tests"):
    """A re-ordering with a blur before and after it: exactly invertible in parts, and local."""

    def __init__(self, shape: tuple[int, ...], *, factor: int = 4, blur: bool = True) -> None:
        super().__init__()
        self.shape, self.factor = tuple(shape), factor
        self.channels, self.axes, self.blur = shape[0] * factor ** (len(shape) - 1), len(shape) - 1, blur
        self.bottleneck = Plain(self.channels)

    @property
    def last(self) -> nn.Module:
        return nn.Identity()

    def _blurred(self, x: Tensor) -> Tensor:
        if not self.blur:
            return x
        pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[self.axes]
        return pool(x, 3, 1, 1, count_include_pad=False)

    def hidden(self, x: Tensor) -> Tensor:
        return fold(self._blurred(x), (self.factor,) * self.axes)

    def made(self, z: Tensor) -> Tensor:
        return self._blurred(unfold(z, (self.factor,) * self.axes))


def tiny(info: DataInfo = PICTURES, **settings: Any) -> tuple[Latent, Spec]:
    """A codec of some thousand weights, moved off the zero initialisation."""
    torch.manual_seed(0)
    spec: Spec = Spec(Latent, autoencoder=Spec(ConvAutoencoder, factor=4, channels=2, width=8, blocks=1, **settings))
    codec = spec.build(info)
    with torch.no_grad():
        for p in codec.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return codec.eval(), spec


def pictures(n: int = 8, size: tuple[int, int] = (32, 32), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8, generator=generator)


def test_x0_is_white_on_the_data_it_was_measured_on() -> None:
    codec, _ = tiny()
    codec.measure(pictures(64).split(16))
    x0 = codec.whiten(codec.encode(pictures(64)))
    per_channel = x0.double().transpose(0, 1).flatten(1)
    assert x0.shape[1:] == codec.shape == (2, 8, 8)
    assert per_channel.mean(1).abs().max() < 1e-4 and (per_channel.std(1, correction=0) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(24,), (32, 24), (8, 12, 8)])
def test_a_re_ordering_comes_back_exactly_in_any_dimension(size: tuple[int, ...]) -> None:
    info = DataInfo((2, *size), "array")
    codec = Latent(info, autoencoder=Spec(Local, blur=False))
    media = 5 + 3 * torch.randn(6, 2, *size)
    codec.measure_inner([media])
    codec.measure([media])
    assert torch.allclose(codec.decode(codec.whiten(codec.encode(media))), media, atol=1e-4)


@pytest.mark.parametrize("samples", [1003, 1024, 31])
def test_sounds_of_any_length_come_back_in_their_own(samples: int) -> None:
    """Waveforms in groups of 4, of which 8 are one position: 1,003 samples are 251 groups, and 32 positions."""
    info = DataInfo((1, samples), "audio", rate=8000)
    codec = Latent(info, autoencoder=Spec(Local, factor=8, blur=False), inner=Spec(Waveform, fold=4))
    media = 0.2 * torch.randn(3, 1, samples)
    codec.measure_inner([media])
    codec.measure([media])
    assert codec.shape == (32, -(-samples // 32))
    back = codec.decode(codec.whiten(codec.encode(media)))
    assert back.shape == media.shape and torch.allclose(back, media, atol=1e-5)
    longer = 0.2 * torch.randn(3, 1, 2 * samples + 1)
    back = codec.decode(codec.whiten(codec.encode(longer)))
    assert back.shape[-1] - longer.shape[-1] in range(32)
    assert torch.allclose(back[..., : longer.shape[-1]], longer, atol=1e-5)


def test_latents_are_handed_through_and_media_are_not() -> None:
    codec, _ = tiny()
    h = codec.encode(pictures())
    assert torch.equal(codec.encode(h), h)
    assert torch.equal(codec.encode(h.half()), h.half().float())
    sounds = Latent(DataInfo((1, 32), "array"), autoencoder=Spec(Local, blur=False))
    media = torch.randn(2, 1, 32)
    assert torch.equal(sounds.encode(sounds.encode(media)), sounds.encode(media))


@pytest.mark.parametrize("size", [(160, 96), (64, 200)])
def test_tiles_of_a_local_network_are_the_whole(size: tuple[int, int]) -> None:
    codec = Latent(DataInfo((3, *size)), autoencoder=Spec(Local))
    media = pictures(2, size)
    whole = codec.encode(media)
    assert torch.allclose(codec.encode_tiled(media, 64), whole, atol=1e-6)
    x0 = codec.whiten(whole)
    assert torch.equal(codec.decode_tiled(x0, 64), codec.decode(x0))
    assert torch.equal(codec.decode_tiled(x0, 4096), codec.decode(x0))


def test_its_folder_brings_the_same_codec_back_and_its_hash(tmp_path: Path) -> None:
    codec, spec = tiny()
    save_autoencoder(tmp_path / "ae", codec, spec, PICTURES, {"samples": 3})
    opened = open_codec(str(tmp_path / "ae"))
    assert opened.sha256 == codec.weights_sha256()
    again = opened.build(PICTURES)
    assert isinstance(again, Latent) and again.weights_sha256() != codec.weights_sha256()
    load_weights(again, str(tmp_path / "ae"))
    assert torch.equal(again.eval().encode(pictures()), codec.encode(pictures()))
    card = (tmp_path / "ae" / "README.md").read_text()
    assert codec.weights_sha256() in card and "2 x 8 x 8" in card


def test_other_weights_and_damage_are_refused(tmp_path: Path) -> None:
    codec, spec = tiny()
    save_autoencoder(tmp_path / "ae", codec, spec, PICTURES, {})
    opened = open_codec(str(tmp_path / "ae"))
    with torch.no_grad():
        next(codec.net.parameters()).add_(1)
    save_autoencoder(tmp_path / "ae", codec, spec, PICTURES, {})
    with pytest.raises(UserError, match="holds another autoencoder"):
        load_weights(opened.build(PICTURES), str(tmp_path / "ae"))  # type: ignore[arg-type]
    file = tmp_path / "ae" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(SfumatoError, match=r"model\.safetensors"):
        open_codec(str(tmp_path / "ae"))


def test_folders_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder and no codec of that name"):
        open_codec(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="has no autoencoder"):
        open_codec(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(UserError, match="is a diffusers UNet2DModel"):
        open_codec(str(tmp_path))
    assert open_codec("pixels").cls.kind == "pixels"


def test_sizes_and_kinds_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"multiples of 4; set data.size=32,32"):
        tiny(DataInfo((3, 32, 30)))
    with pytest.raises(UserError, match="a latent of a latent"):
        Latent(PICTURES, autoencoder=Spec(Local), inner=Spec(Latent, autoencoder=Spec(Local)))
    with pytest.raises(UserError, match="shape of the media"):
        Latent(DataInfo((2, 8), "array"), autoencoder=Spec(Local, factor=1))
    with pytest.raises(UserError, match="likelihood"):
        tiny()[0].log_volume(pictures())
