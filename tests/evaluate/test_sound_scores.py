"""Measures of sounds against closed forms, and scores of models whose answers are known."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.data import Clips
from sfumato.errors import UserError
from sfumato.evaluate import Judge, SoundJudge, sound_scores
from sfumato.evaluate.audio import (
    clipped,
    log_mel_distance,
    parts,
    signal_to_noise,
    silent,
    statistics,
    stft_distance,
    target,
)
from sfumato.output import Output
from sfumato.recipes.judges_audio import sound_judge_of, targets_of, train_sound_judge


def noise(n: int = 3, samples: int = 4096) -> torch.Tensor:
    return 0.3 * torch.randn(n, 1, samples, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
def test_a_louder_sound_is_as_far_as_its_factor_says(factor: float) -> None:
    x = noise()
    found = stft_distance(x, factor * x, (64, 256))
    torch.testing.assert_close(found, torch.full((3,), abs(1 - factor) + abs(math.log(factor))), atol=2e-4, rtol=0)
    in_db = log_mel_distance(x, factor * x, 8000)
    torch.testing.assert_close(in_db, torch.full((3,), abs(20 * math.log10(factor))), atol=1e-3, rtol=0)
    if factor == 0.5:
        torch.testing.assert_close(
            signal_to_noise(x, factor * x), torch.full((3,), 20 * math.log10(2)), atol=1e-4, rtol=0
        )


def test_a_gain_moves_the_means_of_the_bands_and_not_their_deviations() -> None:
    x = noise()
    soft, loud = statistics(0.5 * x, 8000), statistics(x, 8000)
    torch.testing.assert_close(loud[:, :32] - soft[:, :32], torch.full((3, 32), math.log(2)), atol=1e-4, rtol=0)
    torch.testing.assert_close(loud[:, 32:], soft[:, 32:], atol=1e-4, rtol=0)


def test_clipped_and_silent_sounds() -> None:
    x = torch.zeros(4, 2, 100)
    x[0, 1, 50:53] = -1.0  # three in a row
    x[1, 0, [10, 11, 20, 30]] = 1.0  # never three in a row
    x[2] = 9e-4
    assert clipped(x).tolist() == [True, False, False, False]
    assert silent(x).tolist() == [False, False, True, True]


def test_parts_are_counted_between_pauses() -> None:
    bursts: list[list[tuple[int, int, float]]] = [
        [(100, 400, 1.0)],
        [(100, 300, 1.0), (600, 800, 1.0)],
        [(100, 300, 1.0), (400, 600, 1.0)],  # a pause of 0.1 s belongs to a word
        [(100, 300, 1.0), (600, 610, 1.0)],  # a click is no part
        [(100, 300, 1.0), (600, 800, 0.01)],  # 40 dB below
        [(100, 300, 0.1), (500, 600, 0.02), (800, 900, 0.1)],
        [],
    ]
    x = torch.zeros(len(bursts), 2, 1000)
    for row, found in zip(x, bursts):
        for begin, end, level in found:
            row[:, begin:end] = level
    assert parts(x, 1000).tolist() == [1, 2, 1, 1, 1, 3, 0]


# ---------------------------------------------------------------- scores


def voices(folder: Path, n: int = 60) -> Clips:
    """Low and high tones of two voices (with and without an octave), a third of them held out."""
    generator = np.random.default_rng(0)
    at = np.arange(1024) / 8000
    rows, labels, who = [], [], []
    for i in range(n):
        pitch, octave = i % 2, i // 2 % 2
        hertz = (300, 1300)[pitch] * generator.uniform(0.9, 1.1)
        wave = np.sin(2 * np.pi * hertz * at) + octave * np.sin(4 * np.pi * hertz * at)
        rows.append((8000 * wave + 50 * generator.standard_normal(1024)).astype(np.int16))
        labels.append(pitch)
        who.append(("plain", "bright")[octave])
    np.savez(
        folder / "v.npz",
        audio=np.concatenate(rows),
        offsets=np.arange(n + 1) * 1024,
        sample_rate=np.int32(8000),
        pitch=np.asarray(labels),
        who=np.asarray(who),
        is_test=np.arange(n) % 6 >= 4,
    )  # alternating parities: every class is in both parts
    return Clips(
        path=str(folder / "v.npz"), label="pitch", names=("low", "high"), captions=("{who} {pitch}",), judged=("who",)
    )


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clips, dict[str, Judge], Path]:
    folder = tmp_path_factory.mktemp("voices")
    data = voices(folder)
    judges: dict[str, Judge] = {
        c: train_sound_judge(data, c, epochs=150, width=8, device="cpu") for c in targets_of(data)
    }
    return data, judges, folder


def answers(data: Clips, pick: Any) -> Any:
    """A pipeline that answers a caption with a sound of the data: `pick(indices of that caption)`."""
    captions = data.columns(range(len(data)))["caption"]

    def call(*, prompt: list[str], **more: Any) -> Output:
        rows = [pick([i for i, c in enumerate(captions) if c == p], n) for n, p in enumerate(prompt)]
        media = data.fetch(rows).media
        return Output(media, media, tuple(range(len(rows))), tuple(prompt), {}, data.info)

    call.model = SimpleNamespace(conditioner=SimpleNamespace(columns=("caption",)))  # type: ignore[attr-defined]
    return call


def test_judges_learn_and_are_kept(judged: tuple[Clips, dict[str, Judge], Path]) -> None:
    data, judges, folder = judged
    assert sorted(judges) == ["label", "who"]
    assert all(judge.trained["accuracy"] == 1.0 for judge in judges.values())
    media = data.fetch(range(6)).media
    torch.testing.assert_close(judges["who"](media[2:3]), judges["who"](media)[2:3])
    judges["who"].save(folder / "j")
    again = Judge.load(folder / "j")
    assert isinstance(again, SoundJudge) and torch.equal(again.features(media), judges["who"].features(media))
    with pytest.raises(UserError, match=r"looks at sounds of shape \(1, 1024\), not \(1, 1000\)"):
        again.predict(media[..., :1000])
    kept = sound_judge_of(data, "who", folder / "k", epochs=1, width=8, device="cpu")
    assert (
        sound_judge_of(data, "who", folder / "k", epochs=1, width=8, device="cpu").weights_sha256 == kept.weights_sha256
    )


def test_a_model_that_gives_held_out_sounds_scores_what_they_do(judged: tuple[Clips, dict[str, Judge], Path]) -> None:
    data, judges, _ = judged
    held = data.held_out_mask()
    pipeline = answers(data, lambda rows, n: [i for i in rows if held[i]][n % 2])
    found = sound_scores(pipeline, data, judges, n=20).metrics
    for column in ("label", "who"):
        assert found[f"{column}_accuracy"].value == found[f"{column}_accuracy"].real == 1.0
        assert found[f"{column}_accuracy_least"].value == 1.0
        assert found[f"kid_{column}"].value < 0.05
    assert found["near_copies"].value <= 0.3 and found["silent"].value == found["clipped"].value == 0


def test_a_model_that_copies_and_one_that_mixes_up_its_words(judged: tuple[Clips, dict[str, Judge], Path]) -> None:
    data, judges, _ = judged
    held, pitch = data.held_out_mask(), target(data, "label").values
    copies = answers(data, lambda rows, n: next(i for i in rows if not held[i]))
    assert sound_scores(copies, data, judges, n=20).metrics["near_copies"].value == 1.0
    wrong = answers(data, lambda rows, n: next(i for i in range(len(data)) if pitch[i] != pitch[rows[0]]))
    found = sound_scores(wrong, data, judges, n=20).metrics
    assert found["label_accuracy"].value == 0.0 and found["label_accuracy"].real == 1.0


def test_what_can_not_be_judged_is_said(judged: tuple[Clips, dict[str, Judge], Path]) -> None:
    data = judged[0]
    with pytest.raises(UserError, match="has no column 'age'; its columns are"):
        target(data, "age")
    with pytest.raises(UserError, match="has no labels of at least 2 classes"):
        target(Clips(path=data.path), "label")
    assert targets_of(Clips(path=data.path)) == {}
