"""Folders and .npz files of sounds: what is read, what is done to it, and what is said of what can't be read."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.test_sound import riff

from sfumato.data import AudioFolder, Clips, check, open_data, summary
from sfumato.data.audio import Sounds
from sfumato.errors import UserError
from sfumato.sound import write_wav


def tone(samples: int, *, rate: int = 8000, hertz: float = 440.0, channels: int = 1, peak: float = 0.5) -> np.ndarray:
    wave = peak * np.sin(2 * math.pi * hertz * np.arange(samples) / rate)
    return np.tile(wave.astype(np.float32), (channels, 1))


def put(folder: Path, name: str, sound: np.ndarray, rate: int = 8000) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(write_wav(sound, rate))


def clips(folder: Path, sounds: list[np.ndarray], **columns: Any) -> Path:
    offsets = np.cumsum([0, *map(len, sounds)])
    arrays: dict[str, Any] = {"audio": np.concatenate(sounds), "offsets": offsets, "sample_rate": np.int32(8000)}
    np.savez(folder / "clips.npz", **arrays, **columns)
    return folder / "clips.npz"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path, "snare/a.wav", tone(1000))
    put(tmp_path, "snare/b.wav", tone(3000))
    put(tmp_path, "kick/c.wav", tone(2000))
    return tmp_path


def test_a_folder_gives_classes_and_sounds_followed_by_silence(folder: Path) -> None:
    spec = open_data(str(folder))
    assert spec.cls is AudioFolder
    data = spec.with_(seconds=0.25).build()
    assert (data.info.shape, data.info.kind, data.info.rate, data.info.labels) == (
        (1, 2000),
        "audio",
        8000,
        ("kick", "snare"),
    )
    batch = data.fetch([0, 1, 2])  # kick/c, snare/a, snare/b: in the order of their names
    assert batch.conditions["label"].tolist() == [0, 1, 1]  # type: ignore[union-attr]
    np.testing.assert_allclose(batch.media[0, 0].numpy(), tone(2000)[0], atol=4e-5)
    assert not batch.media[1, 0, 1000:].any() and batch.media[1, 0, 990:1000].any()
    np.testing.assert_allclose(batch.media[2, 0].numpy(), tone(3000)[0, :2000], atol=4e-5)
    assert data.problems == ("1 of 3 sounds are longer than 0.25 s and are cut",)
    assert "3 items of 1 x 2000 (float32 sounds)" in summary(data)


def test_metadata_gives_captions_and_numbers(folder: Path) -> None:
    (folder / "metadata.csv").write_text(
        "file_name,caption,pitch\nsnare/a.wav,a snare,1.5\nsnare/b.wav,another,2\nkick/c.wav,a kick,3\n",
        encoding="utf-8",
    )
    data = AudioFolder(path=str(folder), numbers=("pitch",), timing=True)
    found = data.columns([0, 2])
    assert found["caption"] == ["a kick", "another"]
    assert data.info.numbers == ("pitch", "seconds")
    np.testing.assert_allclose(np.asarray(found["number"]), [[3, 0.25], [2, 0.375]])


def test_rates_and_channels_are_converted_where_asked_and_refused_where_mixed(folder: Path) -> None:
    put(folder, "snare/d.wav", tone(4410, rate=44100, channels=2), 44100)
    with pytest.raises(
        UserError, match=r"has 8000 samples a second and snare/d.wav 44100; set rate=8000 or rate=44100"
    ):
        AudioFolder(path=str(folder))
    with pytest.raises(UserError, match=r"has 1 channels and snare/d.wav 2; set channels=1 or channels=2"):
        AudioFolder(path=str(folder), rate=8000)
    data = AudioFolder(path=str(folder), rate=8000, channels=1, seconds=0.1)
    assert data.problems[0] == "1 of 4 sounds have another rate and are resampled to 8000"
    np.testing.assert_allclose(data.fetch([3]).media[0, 0, 50:700].numpy(), tone(800)[0, 50:700], atol=1e-3)
    both = AudioFolder(path=str(folder), rate=8000, channels=2, seconds=0.1).fetch([0]).media
    assert torch.equal(both[0, 0], both[0, 1])


def test_eight_channels_become_their_mean_or_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "a.wav", np.stack([np.full(100, k / 10, np.float32) for k in range(8)]))
    with pytest.raises(UserError, match=r"a.wav has 8 channels; set channels=1 to mix them into one"):
        AudioFolder(path=str(tmp_path))
    media = AudioFolder(path=str(tmp_path), channels=1, seconds=0.0125).fetch([0]).media
    torch.testing.assert_close(media, torch.full((1, 1, 100), 0.35), atol=1e-4, rtol=0)


def test_192_khz_and_24_bits_come_down_to_8_khz(tmp_path: Path) -> None:
    wave = np.rint(tone(19200, rate=192000)[0] * 2**23).astype("<i4")
    raw = wave.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    (tmp_path / "a.wav").write_bytes(riff(1, 1, 192000, 24, raw))
    data = AudioFolder(path=str(tmp_path), rate=8000, seconds=0.1)
    np.testing.assert_allclose(data.fetch([0]).media[0, 0, 20:-20].numpy(), tone(800)[0, 20:-20], atol=1e-3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "bad.wav (is empty)"),
        (b"not a sound at all", "bad.wav (is not a WAV file)"),
        (riff(1, 1, 8000, 16, b""), "bad.wav (holds no samples)"),
        (riff(3, 1, 8000, 32, struct.pack("<2f", 0.5, math.nan)), "bad.wav (holds NaN or infinite samples)"),
        (
            riff(1, 1, 8000, 16, b"\0\0", said=2**31),
            "bad.wav (is cut short: it says 2,147,483,648 bytes of samples and holds 2)",
        ),
        (
            riff(17, 1, 8000, 4, b"\0\0"),
            "bad.wav (is coded as format 17 of 4 bits, which is not read; save it as 16-bit PCM)",
        ),
        (riff(1, 1, 1, 8, bytes(700)), "bad.wav (is 700 s long; cut it into pieces of at most 600 s)"),
    ],
)
def test_a_sound_that_can_not_be_read_is_named_and_another_stands_in(folder: Path, content: bytes, said: str) -> None:
    (folder / "snare" / "bad.wav").write_bytes(content)
    data = AudioFolder(path=str(folder), broken=1.0, seconds=0.1, held_out=0.0)
    found = data.fetch([3])
    assert list(data.unreadable().values()) == [f"snare/{said}"]
    assert found.media.abs().max() > 0.4


def test_silence_and_clipping_are_remarked(tmp_path: Path) -> None:
    put(tmp_path, "loud.wav", np.clip(tone(500, peak=3.0), -1, 1))
    put(tmp_path, "quiet.wav", tone(500, peak=0.0005))
    put(tmp_path, "touching.wav", tone(500, peak=1.0, hertz=2000))  # full scale, but never three samples in a row
    data = AudioFolder(path=str(tmp_path))
    assert [data.remarks(i) for i in range(3)] == [
        ("clipped (3 or more samples in a row at full scale)",),
        ("silent (peak below -60 dB)",),
        (),
    ]
    report = check(data)
    assert report.remarks == {
        "clipped (3 or more samples in a row at full scale)": ["loud.wav"],
        "silent (peak below -60 dB)": ["quiet.wav"],
    }
    assert report.good


def test_clips_give_words_for_columns_and_the_files_own_split(tmp_path: Path) -> None:
    sounds = [np.full(n, 1000 * n, np.int16) for n in (10, 20, 30)]
    path = clips(
        tmp_path,
        sounds,
        labels=np.asarray([1, 0, 1], np.uint8),
        who=np.asarray(["a", "b", "a"]),
        is_test=np.asarray([False, True, False]),
    )
    assert open_data(str(path)).cls is Clips
    data = Clips(path=str(path), label="labels", names=("zero", "one"), captions=("{who} says {labels}", "{labels}"))
    assert data.columns([0, 1, 2])["caption"] == ["a says one", "b says zero", "a says one"]
    assert data.info.labels == ("zero", "one")
    assert data.held_out_mask().tolist() == [False, True, False]
    assert data.info.shape == (1, 256)
    torch.testing.assert_close(data.fetch([1]).media[0, 0, :21], torch.tensor([*[20000 / 32768] * 20, 0.0]))
    seen = {data.columns([0], np.asarray([u]))["caption"][0] for u in np.linspace(0, 0.99, 20)}
    assert seen == {"a says one", "one"}
    loud = Clips(path=str(path), level="peak").fetch([0, 1, 2]).media
    torch.testing.assert_close(loud.amax(-1), torch.full((3, 1), 0.9))


def test_buckets_hold_every_sound_whole_in_the_shortest_length_that_does(tmp_path: Path) -> None:
    lengths = [100, 200, 300, 500, 600, 700, 900, 1000]
    path = clips(tmp_path, [np.full(n, 1000, np.int16) for n in lengths])
    data = Clips(path=str(path), buckets=2, granule=4)
    assert data.bucketing is not None and data.bucketing.shapes == ((1024,), (512,))
    assert data.bucketing.of.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    batch = data.fetch_bucket([0, 3])
    assert batch.media.shape == (2, 1, 512)
    assert (batch.media != 0).sum(-1).flatten().tolist() == [100, 500]
    assert data.fetch([0]).media.shape == (1, 1, 1024)


def test_speed_changes_the_length_by_its_factor_and_the_pitch_with_it(tmp_path: Path) -> None:
    wave = (tone(8000)[0] * 32767).astype(np.int16)
    data = Clips(path=str(clips(tmp_path, [wave])), speed=0.1, seconds=2.0)
    for draw in (0.1, 0.5, 0.9):
        sound = data.fetch([0], np.asarray([draw])).media[0, 0].numpy()
        length = int(np.flatnonzero(sound)[-1]) + 1
        factor = 8000 / length
        assert 0.9 < factor < 1.1 and abs(factor - 1) > 1e-4
        crossings = int(((sound[:-1] < 0) & (sound[1:] >= 0)).sum())
        assert crossings / (length / 8000) == pytest.approx(440 * factor, rel=0.01)
    np.testing.assert_array_equal(data.fetch([0]).media[0, 0, :8000].numpy(), wave / np.float32(32768))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rate": 10}, "rate = 10: must lie in"),
        ({"channels": 3}, "channels = 3: sounds have 1"),
        ({"seconds": 0.0}, "seconds = 0.0: must be above 0"),
        ({"speed": 0.5}, "speed = 0.5: a share"),
        ({"label": "nothing"}, "has no column 'nothing'; its columns are who"),
        ({"captions": ("{other}",)}, "has no column 'other'"),
        ({"names": ("a",)}, "names= are those of the classes; set label=COLUMN too"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path: Path, settings: dict[str, object], said: str) -> None:
    path = clips(tmp_path, [np.ones(10, np.int16)] * 2, who=np.asarray(["a", "b"]))
    with pytest.raises(UserError, match=said):
        Clips(path=str(path), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"offsets": np.asarray([0, 50])}, "must be rising whole numbers from 0 to the 20 samples"),
        ({"offsets": np.asarray([5, 0])}, "must be rising whole numbers"),
        ({"audio": np.zeros(20, np.float64)}, "store int16 or float32"),
        ({"sample_rate": np.float32(8000.5)}, "it must be one whole number"),
    ],
)
def test_npz_files_that_hold_no_clips_say_so(tmp_path: Path, changed: dict[str, np.ndarray], said: str) -> None:
    arrays = {"audio": np.zeros(20, np.int16), "offsets": np.asarray([0, 10, 20]), "sample_rate": np.int32(8000)}
    np.savez(tmp_path / "a.npz", **{**arrays, **changed})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=said):
        Clips(path=str(tmp_path / "a.npz"))


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3"])
def test_other_files_are_read_through_soundfile(tmp_path: Path, suffix: str) -> None:
    soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
    soundfile.write(str(tmp_path / f"a{suffix}"), tone(8000)[0], 8000)
    data: Sounds = AudioFolder(path=str(tmp_path), seconds=1.0)
    found = data.fetch([0]).media[0, 0, 1000:7000].numpy()
    spectrum = np.abs(np.fft.rfft(found * np.hanning(6000)))
    assert int(spectrum.argmax()) == 330  # 440 Hz of 6,000 samples
    (tmp_path / f"b{suffix}").write_bytes(b"broken" * 10)
    broken = AudioFolder(path=str(tmp_path), broken=1.0, held_out=0.0)
    broken.fetch([1])
    assert "can't be decoded" in broken.unreadable()[1]
