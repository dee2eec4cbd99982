"""Codecs of sounds: round trips, whiteness, what a mel spectrogram keeps, and vocoders as folders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.test_sound import sine

from sfumato.codecs import Codec, Mel, Spectrogram, Vocos, Waveform
from sfumato.codecs.audio_vocoder import Trained
from sfumato.core import DataInfo
from sfumato.errors import UserError
from sfumato.kinds import kind_of
from sfumato.sound import mel_bank
from sfumato.spec import Spec, parse
from sfumato.testing import check_codec

INFO = DataInfo((1, 1024), "audio", rate=8000)
STEREO = DataInfo((2, 1000), "audio", rate=8000)


def noise(info: DataInfo, n: int = 8) -> torch.Tensor:
    return 0.1 * torch.randn(n, *info.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("info", [INFO, STEREO])
@pytest.mark.parametrize("spec", [Spec(Waveform), Spec(Waveform, fold=8), Spec(Spectrogram, window=64, hop=16)])
def test_exact_codecs_give_sounds_back_and_are_white(info: DataInfo, spec: Spec[Codec]) -> None:
    codec = spec.build(info)
    check_codec(codec, noise(info), tolerance=2e-6)
    longer = noise(DataInfo((info.shape[0], 1536), "audio", rate=8000))
    torch.testing.assert_close(codec.decode(codec.whiten(codec.encode(longer)))[..., :1536], longer, atol=2e-6, rtol=0)


def test_a_folded_waveform_has_the_volume_of_its_whitening() -> None:
    codec, x = Waveform(INFO, fold=4), noise(INFO, 3)
    codec.measure([x])
    ideal = -256 * codec.whitening.std.double().log().sum()
    torch.testing.assert_close(codec.log_volume(x), ideal.expand(3))
    with pytest.raises(UserError, match="fold = 3 does not divide 1024 samples"):
        Waveform(INFO, fold=3).log_volume(x)


@pytest.mark.parametrize("codec", [Waveform, Spectrogram])
def test_a_sound_beyond_full_scale_is_cut_or_turned_down_as_a_whole(codec: type[Waveform] | type[Spectrogram]) -> None:
    ramp = torch.linspace(-2, 2, 1024)[None]
    x = torch.stack([ramp, ramp / 4])
    cut, lower = (c.decode(c.whiten(c.encode(x))) for c in (codec(INFO), codec(INFO, beyond="lower")))
    torch.testing.assert_close(cut[0], ramp.clamp(-1, 1), atol=2e-6, rtol=0)
    torch.testing.assert_close(lower[0], ramp / 2, atol=2e-6, rtol=0)
    assert torch.equal(cut[1], lower[1])
    with pytest.raises(UserError, match="beyond=louder is not known; cut or lower"):
        codec(INFO, beyond="louder")  # type: ignore[arg-type]


def test_a_compressed_spectrum_has_the_square_root_of_the_amplitude() -> None:
    codec = Spectrogram(INFO, window=64, hop=16)
    whole = codec.encode(sine(1000, 8000, 1024, 0.25)[None, None])  # bin 8
    real, imaginary = whole[0, 8, 20], whole[0, 33 + 7, 20]
    assert math.hypot(real, imaginary) == pytest.approx(0.5, abs=1e-4)


def test_mel_bands_of_a_sine_hold_its_amplitude_and_silence_is_the_floor() -> None:
    codec = Mel(INFO, window=256, hop=64, bands=16, floor=-120.0)
    h = codec.encode(torch.cat([sine(1000, 8000, 1024, 0.5)[None, None], torch.zeros(1, 1, 1024)]))
    assert h.shape == (2, 16, 16) == (2, *codec.shape)
    torch.testing.assert_close(h[1], torch.full((16, 16), math.log(1e-6)))
    # the Hann window's three bins hold amplitude x (1/2 + 1 + 1/2); the bands share them out
    area = mel_bank(129, 16, 8000).sum(1).float()  # what the rows were divided by
    total = (h[0].exp() * area[:, None])[:, 4:-4].sum(0)
    torch.testing.assert_close(total, torch.full_like(total, 1.0), atol=1e-3, rtol=0)


def test_griffin_lim_brings_the_bands_back_and_silence_stays_silent() -> None:
    info = DataInfo((1, 4096), "audio", rate=8000)
    codec = Mel(info, bands=40)
    x = torch.stack([sine(440, 8000, 4096, 0.4) + sine(1500, 8000, 4096, 0.2), sine(700, 8000, 4096, 0.5)])[:, None]
    codec.measure([x])
    x0 = codec.whiten(codec.encode(x))
    made = codec.decode(x0)
    assert made.shape == x.shape
    off = (codec.encode(made) - codec.encode(x)).abs()[:, :, 8:-8]
    loud = codec.encode(x)[:, :, 8:-8] > math.log(0.01)
    assert off[loud].mean() < 0.15  # 1.3 dB
    assert not codec.decode(codec.whiten(codec.encode(torch.zeros_like(x)))).any()


def test_other_lengths_keep_whole_frames() -> None:
    codec = Mel(INFO, bands=16)
    assert codec.decode(codec.whiten(codec.encode(noise(DataInfo((1, 1500), "audio", rate=8000))))).shape[-1] == 24 * 64


def test_two_channels_are_two_sets_of_bands() -> None:
    codec = Mel(STEREO, bands=16)
    left = noise(STEREO, 1)
    left[:, 1] = 0
    h = codec.encode(left)
    assert h.shape == (1, 32, 16)
    torch.testing.assert_close(h[0, :16], Mel(INFO, bands=16).encode(left[:, :1])[0])
    assert bool((h[0, 16:] == h[0, 16:].min()).all())


def test_a_vocoder_is_read_from_its_folder_when_the_codec_is_measured_and_not_after(tmp_path: Path) -> None:
    spec: Spec[Any] = Spec(Mel, bands=16, vocoder=Spec(Vocos, width=8, depth=1))
    trained = spec.build(INFO)
    Trained(trained.vocoder, spec.settings["vocoder"], trained.described, {}).save(tmp_path / "v")
    codec = spec.with_(weights=str(tmp_path / "v")).build(INFO)
    codec.measure([noise(INFO)])
    h = codec.encode(noise(INFO))[:, None]
    torch.testing.assert_close(codec.sound(h), trained.sound(h))
    again = parse(Codec, codec_dict := spec.with_(weights="gone").to_dict(), path="codec").build(INFO)
    again.load_state_dict(codec.state_dict())  # as a model folder does
    torch.testing.assert_close(again.sound(h), trained.sound(h))
    assert codec_dict["vocoder"] == {"type": "vocos", "width": 8, "depth": 1}


def test_vocoders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    spec: Spec[Any] = Spec(Mel, bands=16, vocoder=Spec(Vocos, width=8, depth=1))
    made = spec.build(INFO)
    Trained(made.vocoder, spec.settings["vocoder"], made.described, {}).save(tmp_path / "v")
    for other, said in (
        (spec.with_(weights=str(tmp_path)), "there is no vocoder here"),
        (spec.with_(weights=str(tmp_path / "v"), hop=32), "hop = 64 there, 32 here"),
        (
            spec.with_(weights=str(tmp_path / "v"), vocoder=Spec(Vocos, width=16, depth=1)),
            "a vocoder of other settings",
        ),
        (spec, "codec.vocoder has no weights yet"),
    ):
        with pytest.raises(UserError, match=said):
            other.build(INFO).measure([noise(INFO)])


@pytest.mark.parametrize(
    ("spec", "info", "said"),
    [
        (Spec(Mel), DataInfo((3, 8, 8)), "codec=mel is for sounds, and this data is 'image'"),
        (Spec(Waveform, fold=0), INFO, "fold = 0 must be at least 1"),
        (Spec(Mel, high=5000.0), INFO, "high = 5000 Hz is above half the rate of 8000"),
        (Spec(Mel, weights="x"), INFO, "weights = x are those of a vocoder"),
        (Spec(Spectrogram, power=0.0), INFO, "power = 0.0 must lie in"),
        (Spec(Spectrogram, window=63, hop=15), INFO, "window = 63 must be even"),
    ],
)
def test_settings_that_mean_nothing_are_refused(spec: Spec[Codec], info: DataInfo, said: str) -> None:
    with pytest.raises(UserError, match=said):
        spec.build(info)


def test_sounds_are_files_that_read_back_and_a_player(tmp_path: Path) -> None:
    kind, x = kind_of(STEREO), noise(STEREO, 1)[0]
    file = tmp_path / "a.wav"
    file.write_bytes(kind.encode(x, STEREO, ".wav"))
    assert kind.is_whole(file)
    found = kind.read(file, STEREO)
    assert found is not None
    torch.testing.assert_close(found, x, atol=4e-5, rtol=0)
    file.write_bytes(file.read_bytes()[:-10])
    assert not kind.is_whole(file)
    html = kind.viewer([x], STEREO, ["<b>"])
    assert html.count("<audio controls") == 1 and "data:audio/wav;base64,UklGR" in html and "&lt;b&gt;" in html
    assert "<script" not in html and "http" not in html


def test_a_spectrogram_shows_a_rising_tone_rising() -> None:
    info = DataInfo((1, 8000), "audio", rate=8000)
    at = torch.arange(8000) / 8000
    sweep = torch.sin(2 * math.pi * (200 * at + 1200 * at.square()))[None]
    image = kind_of(info).picture(sweep, info)
    grey = torch.from_numpy(np.asarray(image, np.int64).sum(2))
    rows = grey.argmax(0)[4:-4]
    assert bool((rows.diff() <= 1).all()) and int(rows[0]) - int(rows[-1]) > image.height // 2
