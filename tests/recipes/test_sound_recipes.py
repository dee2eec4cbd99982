"""Recipes of sounds, the vocoder's training, and the demo: small runs whose outcome is known."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from sfumato.codecs import Mel, Vocos
from sfumato.data import Clips, Tones, open_data
from sfumato.data.audio_tones import COUNTS, HELD_OUT, KINDS, PITCHES, captions_of, hear, heard_as_asked
from sfumato.errors import UserError
from sfumato.pipeline import Pipeline
from sfumato.recipes import demo_audio, load_recipe, prepare
from sfumato.recipes.vocoder import VocoderTraining, reconstruction, train_vocoder, vocoder_of
from sfumato.spec import Spec


def speech(folder: Path, n: int = 24) -> Path:
    """Clips of noise with the columns of spoken digits."""
    generator = np.random.default_rng(0)
    np.savez(
        folder / "s.npz",
        audio=(3000 * generator.standard_normal(n * 2000)).astype(np.int16),
        offsets=np.arange(n + 1) * 2000,
        sample_rate=np.int32(8000),
        labels=np.arange(n, dtype=np.uint8) % 10,
        speakers=np.asarray(["theo", "ann"])[np.arange(n) % 2],
        families=np.asarray(["snare", "kick", "bass"])[np.arange(n) % 3],
        is_test=np.arange(n) < 4,
    )
    return folder / "s.npz"


# ---------------------------------------------------------------- drawn sounds


def test_every_drawn_sound_is_heard_as_its_caption_says() -> None:
    data = Tones(count=250)
    captions = [options[0] for options in data.table.captions or ()]
    assert heard_as_asked(data.media, captions).all()
    assert len(set(captions)) == len(COUNTS) * len(PITCHES) * len(KINDS)
    wrong = [captions_of(2 - c, p, k)[0] for c, p, k in data.combinations.tolist()]
    ones = data.combinations[:, 0] == 1  # two of them are two either way
    assert np.array_equal(heard_as_asked(data.media, wrong), ones)


def test_what_is_heard_survives_the_codec_and_silence_holds_nothing() -> None:
    data = Tones(count=60)
    codec = load_recipe("tones").codec.build(data.info)  # type: ignore[union-attr]
    media = torch.from_numpy(data.media)
    codec.measure([media])
    made = codec.decode(codec.whiten(codec.encode(media))).numpy()
    assert heard_as_asked(made, [options[0] for options in data.table.captions or ()]).all()
    assert hear(np.zeros((1, 2048), np.float32)).kind is None


def test_held_out_combinations_are_in_no_training_item_and_hold_every_word() -> None:
    data = Tones(count=500)
    training = {tuple(row) for row in data.combinations[~data.held_out_mask()].tolist()}
    assert not training & set(HELD_OUT) and len(training) == 30
    assert [len({row[i] for row in HELD_OUT}) for i in range(3)] == [3, 3, 4]
    assert np.array_equal(Tones(count=500).fetch([7]).media, data.fetch([7]).media)


# ---------------------------------------------------------------- recipes


def test_spoken_digits_are_asked_for_in_words(tmp_path: Path) -> None:
    spec = load_recipe("digits-speech", {"data": str(speech(tmp_path))})
    prepared = prepare(spec)
    info = prepared.data.info
    assert (info.shape, info.rate, info.labels[7]) == ((1, 8192), 8000, "seven")
    assert prepared.data.columns([7])["caption"] == ["speaker ann says seven"]
    assert prepared.spec.build().codec.shape == (64, 128)
    assert sum(p.numel() for p in prepared.task.model.parameters()) < 4_000_000
    with pytest.raises(UserError, match=r"recipe 'digits-speech' is for an .npz file of clips"):
        load_recipe("digits-speech", {"data": "tones"})


def test_sounds_are_asked_by_what_the_data_has(tmp_path: Path) -> None:
    hits = prepare(load_recipe("oneshots", {"data": str(speech(tmp_path)), "data.seconds": "0.25"}))
    assert hits.data.info.labels == ("bass", "kick", "snare") and hits.data.info.numbers == ("seconds",)
    made = Pipeline(hits.task.model.eval(), hits.spec)(label="kick", number=0.25, num_inference_steps=1)
    assert made.audios.shape == (1, 1, 2000)
    stereo = load_recipe("sounds", {"data": str(speech(tmp_path)), "channels": "2", "codec": "waveform"})
    assert stereo.codec is not None and stereo.codec.build(stereo.data.build().info).shape[0] == 2
    with pytest.raises(UserError, match="recipe 'sounds' is for sounds, and this is 'digits'"):
        load_recipe("sounds", {"data": "digits"})


# ---------------------------------------------------------------- vocoder


def test_a_vocoder_learns_and_is_a_function_of_its_steps(tmp_path: Path) -> None:
    data = open_data(str(speech(tmp_path))).with_(seconds=0.25).build()
    assert isinstance(data, Clips)
    codec: Spec[Mel] = Spec(Mel, window=128, hop=32, bands=32, vocoder=Spec(Vocos, width=32, depth=1))
    few = VocoderTraining(steps=1, batch=4, length=1024, adversary=0.0)
    many = VocoderTraining(steps=60, batch=4, length=1024, adversary=0.02, critic_width=4, quiet=0.5)
    first, _ = train_vocoder(data, codec, training=few, device="cpu")
    made, trained = train_vocoder(data, codec, training=many, device="cpu")
    before, after = (reconstruction(c, data)["vocoder_stft"] for c in (first, made))
    assert after < 0.8 * before
    again, _ = train_vocoder(data, codec, training=many, device="cpu")
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    trained.save(tmp_path / "v")
    assert vocoder_of(data, codec, tmp_path / "v", training=few) == tmp_path / "v"  # it is there: nothing is trained
    assert json.loads((tmp_path / "v" / "vocoder.json").read_text())["trained"]["steps"] == 60


def test_a_vocoders_training_has_one_budget() -> None:
    with pytest.raises(UserError, match="set minutes or steps"):
        VocoderTraining()


# ---------------------------------------------------------------- demo


def test_the_demo_listens_and_fails_where_too_little_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    console = Console(file=said, width=400)
    assert demo_audio.run_audio_demo(tmp_path, console, minutes=0.02, each=1) == 1  # a second of training
    folder = tmp_path / "demo-audio"
    assert (folder / "tone.wav").read_bytes()[:4] == b"RIFF"
    assert "<audio controls" in (folder / "report.html").read_text()
    assert "Score: in" in said.getvalue() and "at least 80% are expected" in said.getvalue()
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "heard": 0.95}))
    monkeypatch.setattr(demo_audio, "trainer", lambda *a, **k: pytest.fail("a second demo trained again"))
    assert demo_audio.run_audio_demo(tmp_path, console, minutes=0.02, each=1) == 0
