"""The distance of spectra: its exact values, and as a term of an autoencoder's loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from benchmarks.seed_sizes import _ends, _off, _rest
from torch import Tensor

from sfumato.codecs import Latent, Mel, Waveform
from sfumato.core import Batch, DataInfo, Draws
from sfumato.errors import UserError
from sfumato.evaluate.audio import stft_distance
from sfumato.nn import ConvAutoencoder, Plain
from sfumato.recipes import load_recipe
from sfumato.sound import SpectralDistance
from sfumato.spec import Spec
from sfumato.train.autoencoder_task import AutoencoderTask, Reconstruction

WINDOWS = (64, 128, 256)
INFO = DataInfo((1, 1000), "audio", rate=8000)


def noise(n: int = 3, samples: int = 1000, seed: int = 0) -> Tensor:
    return torch.randn(n, 1, samples, generator=torch.Generator().manual_seed(seed))


def test_equal_sounds_are_at_0_and_a_louder_one_at_what_its_gain_says() -> None:
    """S' = k S in every bin: |1 - k| of convergence and |ln k| of log magnitudes, in each resolution."""
    distance, x = SpectralDistance(WINDOWS), noise()
    assert torch.equal(distance(x, x), torch.zeros(3))
    for gain in (0.5, 1.5, 3.0):
        exact = abs(1 - gain) + abs(math.log(gain))
        assert torch.allclose(distance(x, gain * x), torch.full((3,), exact), rtol=1e-4)
        assert torch.allclose(stft_distance(x, gain * x, WINDOWS), torch.full((3,), exact), rtol=1e-4)


def test_it_is_the_mean_of_its_resolutions_and_does_not_change_with_the_level_of_both() -> None:
    x, y = noise(), noise(seed=1)
    whole = SpectralDistance(WINDOWS)(x, y)
    single = torch.stack([SpectralDistance((window,))(x, y) for window in WINDOWS])
    assert torch.allclose(whole, single.mean(0), rtol=1e-5)
    assert torch.allclose(SpectralDistance(WINDOWS)(5 * x, 5 * y), whole, rtol=1e-3)
    assert torch.allclose(SpectralDistance(WINDOWS)(-x, x), torch.zeros(3), atol=1e-6)  # phases are not heard


@pytest.mark.parametrize("real_level, made_level", [(0.0, 0.0), (0.0, 0.3), (0.3, 0.0), (0.3, 0.3)])
def test_value_and_gradient_are_finite_at_silence(real_level: float, made_level: float) -> None:
    real, made = real_level * noise(), (made_level * noise()).requires_grad_()
    value = SpectralDistance(WINDOWS)(real, made)
    value.sum().backward()
    assert bool(value.isfinite().all()) and made.grad is not None and bool(made.grad.isfinite().all())
    if real_level == made_level:
        assert not value.any() and not made.grad.any()


def task_of(info: DataInfo, inner: Spec[Any] | None, **losses: Any) -> AutoencoderTask:
    torch.manual_seed(0)
    net = Spec(ConvAutoencoder, factor=4, channels=4, width=8, blocks=1, bottleneck=Spec(Plain))
    task = AutoencoderTask(Latent(info, autoencoder=net, inner=inner), Reconstruction(**losses))
    with torch.no_grad():
        for p in task.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return task


def test_the_loss_is_the_one_without_and_the_weighted_distance_of_the_sounds() -> None:
    """Also where the length is no multiple of the factor: 1,000 samples are 250 positions and the latent 63."""
    batch, draws = Batch(0.1 * noise(4)), Draws(0, 0, 4)
    with_it = task_of(INFO, Spec(Waveform, fold=4), stft=0.7, windows=WINDOWS)
    without = task_of(INFO, Spec(Waveform, fold=4))
    for task in (with_it, without):
        task.model.measure_inner([batch.media])
    codec = with_it.model
    x = codec.field(batch.media)
    made = codec.net.made(codec.net.encode(x))
    assert x.shape == (4, 4, 252) and codec.shape == (4, 63)
    far = SpectralDistance(WINDOWS)(codec.inner.decode(x), codec.inner.decode(made)).mean()
    a, b = (float(task.loss(batch, draws).value.detach()) for task in (with_it, without))
    assert float(far.detach()) > 0.1 and a == pytest.approx(b + 0.7 * float(far.detach()), rel=1e-5)


def test_pictures_and_mel_bands_have_no_spectra_to_compare() -> None:
    for info, inner, said in (
        (DataInfo((3, 16, 16)), None, "codec=pixels makes no samples"),
        (INFO, Spec(Mel, window=64, hop=16, bands=8), "codec=mel makes no samples"),
    ):
        with pytest.raises(UserError, match=f"losses.stft = 1: compares spectra of sounds, and {said}.*losses.stft=0"):
            task_of(info, inner, stft=1.0)
    for settings, said in (({"stft": -1.0}, "stft = -1"), ({"windows": ()}, "windows is empty")):
        with pytest.raises(UserError, match=said):
            Reconstruction(**settings)  # type: ignore[arg-type]


def test_the_recipe_compares_spectra_of_sounds_and_of_nothing_else() -> None:
    """Windows of about 12.5, 25 and 50 ms: at 4,096 Hz (tones) 64, 128 and 256 samples."""
    for asked, stft in (
        ({"data": "tones", "codec": "waveform", "codec.inner.fold": "4"}, 0.3),
        ({"data": "tones"}, 0.0),
        ({"data": "digits", "factor": "2"}, 0.0),
        ({"data": "tones", "codec": "waveform", "losses.stft": "0"}, 0.0),
    ):
        losses = load_recipe("ae", asked).build().losses  # type: ignore[attr-defined]
        assert losses.stft == stft
        assert not stft or losses.windows == (64, 128, 256)
    for codec, beyond in (("waveform", "lower"), ("{type: waveform, beyond: cut}", "cut")):
        spec = load_recipe("ae", {"data": "tones", "codec": codec}).codec
        assert spec.settings["inner"].settings["beyond"] == beyond


def test_the_end_of_a_sound_is_that_of_its_last_window_above_a_level() -> None:
    sounds = torch.zeros(2, 1, 800)  # a second of windows of 16
    sounds[0, 0, 384:400], sounds[0, 0, 496:512] = 0.5, 0.002  # 48 dB below
    sounds[1, 0, 784:] = -0.2
    assert torch.allclose(_ends(sounds, 800, -40.0), torch.tensor([0.5, 1.0]))
    assert torch.allclose(_ends(sounds, 800, -50.0), torch.tensor([0.64, 1.0]))
    found = _off(sounds, torch.tensor([0.5, 0.2]), 800, -40.0)
    assert found["within 0.5 s"] == 0.5 and abs(found["median"] - 0.4) < 1e-6
    assert abs(_rest(sounds[:1], torch.tensor([0.5]), 800) + 120) < 1e-6
    assert abs(_rest(sounds[:1], torch.tensor([0.39]), 800) + 120) < 1e-6
