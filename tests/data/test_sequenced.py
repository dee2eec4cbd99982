"""Patterns of short sounds: where hits lie, where they end, what is said of them, and what training may hear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.data import Clips, Sequenced
from sfumato.data.find import open_data
from sfumato.errors import UserError
from sfumato.nn import UNet
from sfumato.recipes import load_recipe

RATE, CLIPS = 8000, 20


def impulses(folder: Path, *, tail: int = 0) -> Clips:
    """Sounds of one sample and a quiet tail: 1 for training, -1 where held out; classes a and b in turn."""
    sounds = np.full((CLIPS, 1 + tail), 1e-4, np.float32)
    test = np.arange(CLIPS) % 4 == 3
    sounds[:, 0] = np.where(test, -1, 1)
    offsets = np.arange(CLIPS + 1) * (1 + tail)
    names = np.asarray(["a", "b"] * (CLIPS // 2))
    arrays: dict[str, Any] = {"audio": sounds.ravel(), "offsets": offsets, "sample_rate": np.int32(RATE)}
    np.savez(folder / "clips.npz", **arrays, family=names, is_test=test)
    return Clips(path=str(folder / "clips.npz"), label="family")


def hits_of(sound: torch.Tensor) -> np.ndarray:
    return np.flatnonzero(sound[0].numpy())


def tempo_of(caption: str) -> int:
    return int(caption.removesuffix(" beats a minute").split()[-1])


def test_hits_lie_on_sixteenths_of_the_tempo_and_the_bar_comes_again(tmp_path: Path) -> None:
    data = Sequenced(data=impulses(tmp_path), seconds=10.0, voices=1, count=50)
    batch = data.fetch(range(50), np.linspace(0, 0.98, 50))
    for sound, caption in zip(batch.media, batch.conditions["caption"]):
        step = 15 / tempo_of(str(caption)) * RATE
        hits = hits_of(sound)
        numbers = np.rint(hits / step).astype(int)
        assert hits[0] == 0 and np.array_equal(hits, np.rint(numbers * step))
        first = set(numbers[numbers < 16].tolist())
        assert set((numbers % 16).tolist()) == first
        there = set(numbers.tolist())
        assert there == {n for n in range(max(there) + 1) if n % 16 in first}


@pytest.mark.parametrize("tail", [0, 400])
def test_the_number_is_where_the_last_audible_sample_is(tmp_path: Path, tail: int) -> None:
    data = Sequenced(data=impulses(tmp_path, tail=tail), seconds=3.0, count=40)  # tails are below -50 dB and left out
    batch = data.fetch(range(40), np.linspace(0, 0.98, 40))
    ends = [int(hits_of(sound)[-1]) + 1 for sound in batch.media]
    asked = torch.as_tensor(batch.conditions["number"])[:, 0] * RATE
    assert ends == asked.round().long().tolist() and max(ends) <= 3 * RATE
    assert float(batch.media.abs().max()) <= 0.9 + 1e-6


def test_what_rings_on_is_faded_to_nothing_at_the_end(tmp_path: Path) -> None:
    audio = np.ones(2 * RATE, np.float32)  # one sound of two seconds, longer than any pattern
    np.savez(tmp_path / "clips.npz", audio=audio, offsets=np.array([0, 2 * RATE]), sample_rate=np.int32(RATE))
    data = Sequenced(data=Clips(path=str(tmp_path / "clips.npz")), seconds=1.0, voices=1)
    batch = data.fetch(range(5), np.linspace(0, 0.9, 5))
    for sound, number in zip(batch.media, torch.as_tensor(batch.conditions["number"])):
        end, fade = round(float(number) * RATE), RATE // 100
        assert 0.5 * RATE <= end <= RATE and not sound[0, end:].any()
        before = float(sound[0, end - fade])  # the last sample that is whole, of so many hits at once
        assert torch.allclose(sound[0, end - fade : end], before * torch.linspace(1, 0, fade + 1)[:-1], atol=1e-5)


def test_held_out_patterns_are_of_held_out_sounds_and_training_ones_of_the_others(tmp_path: Path) -> None:
    data = Sequenced(data=impulses(tmp_path), seconds=2.0, count=100)
    for name, sign in (("train", 1), ("held_out", -1)):
        part = data.split(name)  # type: ignore[arg-type]
        media = part.fetch(range(len(part)), np.linspace(0, 0.99, len(part))).media
        assert len(part) == {"train": 95, "held_out": 5}[name] and bool((media * sign >= 0).all())
        assert bool((media != 0).flatten(1).any(1).all())


def test_a_pattern_is_a_function_of_its_index_and_draw_with_columns_that_fit(tmp_path: Path) -> None:
    data = Sequenced(data=impulses(tmp_path), seconds=2.0)
    draws = np.asarray([0.3, 0.7, 0.3])
    batch, again = data.fetch([5, 5, 5], draws), data.fetch([5], draws[:1])
    assert torch.equal(batch.media[0], batch.media[2]) and torch.equal(batch.media[:1], again.media)
    assert not torch.equal(batch.media[0], batch.media[1])
    columns = data.columns([5, 5, 5], draws)
    assert columns["caption"] == batch.conditions["caption"]
    assert torch.equal(torch.as_tensor(columns["number"]), torch.as_tensor(batch.conditions["number"]))
    assert set(str(columns["caption"][0]).split(", ")[0].split(" and ")) <= {"a", "b"}
    other = Sequenced(data=data.data, seconds=2.5)
    assert other.fingerprint() != data.fingerprint() and other.info.shape == (1, 20_000)


def test_recipes_take_it_by_its_settings_and_a_length_is_known_up_to_the_window(tmp_path: Path) -> None:
    path = impulses(tmp_path).path
    text = f"{{type: sequenced, data: {{type: clips, path: {path}, label: family}}, seconds: 2.0, count: 60}}"
    spec = load_recipe("sounds", {"data": text, "codec": "{type: waveform, fold: 8}"})
    assert spec.data.cls is Sequenced and spec.network.cls is UNet and spec.codec is not None
    assert spec.codec.settings == {"fold": 8}
    number = spec.conditioner.settings["second"]  # type: ignore[union-attr]
    assert number.settings["low"] == (0.0,) and number.settings["high"] == (2.0,)
    assert open_data(path).cls is Clips


def test_what_can_not_be_played_is_refused(tmp_path: Path) -> None:
    clips = impulses(tmp_path)
    for settings, said in (
        ({"seconds": 0.0}, "seconds = 0"),
        ({"voices": 0}, "voices = 0"),
        ({"tempo": (120, 90)}, "tempo = 120, 90"),
        ({"count": 0}, "count = 0"),
    ):
        with pytest.raises(UserError, match=said):
            Sequenced(data=clips, **settings)  # type: ignore[arg-type]
    from sfumato.data import Digits

    with pytest.raises(UserError, match="plays sounds, and"):
        Sequenced(data=Digits())
