"""Short-time spectra, mel bands, resampling and WAV files against closed forms and other programs."""

from __future__ import annotations

import io
import math
import struct
import wave

import numpy as np
import pytest
import torch

from sfumato.errors import UserError
from sfumato.sound import Frames, from_mel, griffin_lim, mel_bank, mel_points, read_wav, resample, write_wav
from sfumato.sound.wav import BadSound, read_head


def sine(hertz: float, rate: int, samples: int, amplitude: float = 1.0) -> torch.Tensor:
    at = torch.arange(samples, dtype=torch.float64) / rate
    return (amplitude * torch.sin(2 * math.pi * hertz * at)).float()


# ---------------------------------------------------------------- spectra


@pytest.mark.parametrize(("window", "hop", "samples"), [(256, 64, 8192), (64, 16, 1001), (50, 10, 333), (32, 16, 5)])
def test_the_inverse_gives_the_signal_back(window: int, hop: int, samples: int) -> None:
    x = torch.randn(2, 3, samples, generator=torch.Generator().manual_seed(0))
    frames = Frames(window, hop)
    spectrum = frames(x)
    assert spectrum.shape == (2, 3, window // 2 + 1, -(-samples // hop))
    torch.testing.assert_close(frames.inverse(spectrum, samples), x, atol=2e-6, rtol=0)


def test_a_steady_sine_has_its_amplitude_in_its_bin_and_nothing_two_bins_away() -> None:
    size = Frames(256, 64)(sine(1000, 8000, 4096, 0.3)).abs()[:, 8:-8]  # 1000 Hz is bin 32
    torch.testing.assert_close(size[32], torch.full_like(size[32], 0.3), atol=1e-5, rtol=0)
    torch.testing.assert_close(size[31], torch.full_like(size[31], 0.15), atol=1e-5, rtol=0)  # Hann: half beside it
    assert size[[20, 29, 35, 60]].max() < 1e-5


def test_frame_k_is_centred_on_its_samples() -> None:
    x = torch.zeros(1024)
    x[64 * 5 + 32] = 1.0
    energy = Frames(256, 64)(x).abs().square().sum(0)
    assert int(energy.argmax()) == 5
    torch.testing.assert_close(energy[4], energy[6])


def test_windows_that_can_not_be_inverted_are_refused() -> None:
    with pytest.raises(UserError, match="window = 64, hop = 40: a window is at least two hops long"):
        Frames(64, 40)


def test_griffin_lim_finds_a_signal_with_the_magnitudes_of_a_chord() -> None:
    x = sine(440, 8000, 4096, 0.4) + sine(1230, 8000, 4096, 0.2)
    frames = Frames(256, 64)
    wanted = frames(x).abs()

    def miss(iterations: int) -> float:
        made = frames(griffin_lim(frames, wanted, 4096, iterations=iterations)).abs()
        return float((made - wanted).norm() / wanted.norm())

    assert miss(64) < 0.06 < miss(1)
    one, two = griffin_lim(frames, wanted[None]), griffin_lim(frames, torch.stack([wanted, wanted.flip(1)]))
    torch.testing.assert_close(one[0], two[0], atol=1e-5, rtol=0)


# ---------------------------------------------------------------- mel bands


def test_mel_points_are_those_of_the_formula() -> None:
    points = mel_points(1, 0, 700 * (10 ** (2 * 781.1728387 / 2595) - 1))  # 781.17 mel is 700 Hz
    torch.testing.assert_close(points, torch.tensor([0.0, 700.0, 2100.0], dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("bins", "bands", "rate"), [(129, 64, 8000), (33, 128, 8000), (1025, 80, 44100)])
def test_bands_share_out_every_bin_and_have_the_area_of_their_triangles(bins: int, bands: int, rate: int) -> None:
    bank, points = mel_bank(bins, bands, rate), mel_points(bands, 0, rate / 2)
    step = rate / 2 / (bins - 1)
    inside = (torch.arange(bins) - 0.5) * step >= points[1]
    inside &= (torch.arange(bins) + 0.5) * step <= points[-2]
    torch.testing.assert_close(bank[:, inside].sum(0), torch.ones(int(inside.sum()), dtype=torch.float64))
    area = (points[2:] - points[:-2]) / 2 / step
    torch.testing.assert_close(
        bank[:-1].sum(1), area[:-1]
    )  # the last one ends at half the rate, the last bin beyond it
    assert (bank.sum(1) > 0).all()


def test_a_bin_much_wider_than_its_bands_gets_their_mean_height() -> None:
    bank = mel_bank(3, 1, 8, low=1.0, high=3.0)  # bins at 0, 2, 4 Hz, 2 Hz wide; the triangle has area 1
    torch.testing.assert_close(bank, torch.tensor([[0.0, 0.5, 0.0]], dtype=torch.float64), atol=1e-2, rtol=0)


def test_magnitudes_are_found_that_have_the_bands() -> None:
    bank = mel_bank(129, 40, 8000).float()
    mel = bank @ torch.rand(129, 7, generator=torch.Generator().manual_seed(0))
    found = from_mel(bank, mel, iterations=300)
    assert (found >= 0).all()
    torch.testing.assert_close(bank @ found, mel, rtol=0.02, atol=1e-3)


# ---------------------------------------------------------------- resampling


@pytest.mark.parametrize(("old", "new"), [(44100, 8000), (8000, 44100), (22050, 16000), (192000, 8000)])
def test_a_sine_stays_the_sine_at_the_same_times(old: int, new: int) -> None:
    made = resample(sine(440, old, old // 2), old, new)
    assert len(made) == -(-(old // 2) * new // old)
    ideal = sine(440, new, len(made))
    edge = new // 50
    torch.testing.assert_close(made[edge:-edge], ideal[edge:-edge], atol=5e-4, rtol=0)


def test_what_the_lower_rate_can_not_hold_is_removed() -> None:
    made = resample(sine(5000, 16000, 16000), 16000, 8000)  # would fold to 3000 Hz
    assert made[200:-200].abs().max() < 2e-3


def test_a_constant_stays_and_the_same_rate_is_the_same_signal() -> None:
    flat = resample(torch.ones(2, 4000), 8000, 11025)
    torch.testing.assert_close(flat[:, 300:-300], torch.ones(2, flat.shape[1] - 600), atol=1e-5, rtol=0)
    x = torch.randn(3, 50)
    assert resample(x, 8000, 8000) is x


@pytest.mark.parametrize(("rates", "said"), [((0, 8000), "a rate of 0"), ((44100, 767_999), "would need a filter")])
def test_rates_that_can_not_be_are_refused(rates: tuple[int, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resample(torch.zeros(10), *rates)


# ---------------------------------------------------------------- WAV


def riff(
    code: int, channels: int, rate: int, bits: int, raw: bytes, said: int | None = None, extra: bytes = b""
) -> bytes:
    form = struct.pack("<HHIIHH", code, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits) + extra
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"LIST" + struct.pack("<I", 3) + b"abc\0"
    return b"RIFF" + struct.pack("<I", 0) + body + b"data" + struct.pack("<I", len(raw) if said is None else said) + raw


def test_sixteen_bits_are_read_as_other_programs_write_them_and_the_other_way_round() -> None:
    values = np.asarray([[0, 1, -1, 32767, -32768], [5, 4, 3, 2, 1]], np.int16)
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(22050)
        file.writeframes(values.T.tobytes())
    sound, rate = read_wav(stream)
    assert rate == 22050
    np.testing.assert_array_equal(sound, values / np.float32(32768))
    with wave.open(io.BytesIO(write_wav((values / 32767).astype(np.float32), 8000))) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 8000, 5)
        again = np.frombuffer(file.readframes(5), "<i2").reshape(5, 2).T
    np.testing.assert_array_equal(again, np.maximum(values, -32767))


@pytest.mark.parametrize(
    ("code", "bits", "raw", "ideal"),
    [
        (1, 8, bytes([0, 128, 255]), [-1, 0, 127 / 128]),
        (1, 24, bytes([0, 0, 0x80, 0, 0, 0x40, 0xFF, 0xFF, 0x7F]), [-1, 0.5, 1 - 2**-23]),
        (1, 32, struct.pack("<3i", -(2**31), 0, 2**30), [-1, 0, 0.5]),
        (3, 32, struct.pack("<3f", 1.5, -0.25, 0), [1.5, -0.25, 0]),
        (3, 64, struct.pack("<3d", 1.5, -0.25, 0), [1.5, -0.25, 0]),
    ],
)
def test_every_width_of_samples(code: int, bits: int, raw: bytes, ideal: list[float]) -> None:
    sound, _ = read_wav(io.BytesIO(riff(code, 1, 8000, bits, raw)))
    np.testing.assert_allclose(sound[0], ideal, atol=1e-7)
    extensible = struct.pack("<HHI", 22, bits, 0) + struct.pack("<H", code) + bytes(14)
    sound, _ = read_wav(io.BytesIO(riff(0xFFFE, 1, 8000, bits, raw, extra=extensible)))
    np.testing.assert_allclose(sound[0], ideal, atol=1e-7)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"ID3 and so on, not a wav", "is not a WAV file"),
        (b"RIFF\0\0\0\0WAVE", "has no description of its samples"),
        (riff(1, 1, 8000, 16, b"\0\0", said=0xFFFFFFF0), "is cut short: it says 4,294,967,280 bytes"),
        (riff(7, 1, 8000, 8, b"\0\0"), "is coded as format 7 of 8 bits"),
        (riff(1, 0, 8000, 16, b"\0\0"), "says that it has 0 channels"),
        (riff(1, 1, 0, 16, b"\0\0"), "says that it has 0 samples a second"),
    ],
)
def test_broken_heads_are_said_in_words_before_anything_is_allocated(content: bytes, said: str) -> None:
    with pytest.raises(BadSound, match=said):
        read_head(io.BytesIO(content))


def test_a_stream_of_unknown_length_is_read_to_its_end() -> None:
    sound, _ = read_wav(io.BytesIO(riff(1, 1, 8000, 16, struct.pack("<2h", 16384, -16384), said=0xFFFFFFFF)))
    np.testing.assert_array_equal(sound, [[0.5, -0.5]])
