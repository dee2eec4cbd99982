"""Scores of sounds: do they say what was asked, are they like real ones, are they copies, silent or clipped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.core.random import keys
from sfumato.data import Clips, Data, Referenced
from sfumato.data.columns import read_labels
from sfumato.errors import UserError
from sfumato.evaluate.accuracy import Share, accuracy
from sfumato.evaluate.audio_judge import LogMel
from sfumato.evaluate.frechet import frechet
from sfumato.evaluate.judge import Judge
from sfumato.evaluate.kid import kid
from sfumato.evaluate.memorization import memorization
from sfumato.evaluate.scores import Score, Scores
from sfumato.pipeline import Pipeline
from sfumato.request import as_arguments
from sfumato.sound import SpectralDistance

FULL, RUN = 0.999, 3  # so many samples in a row beyond this share of full scale are clipped
SILENT = 1e-3  # a peak below -60 dB
_QUIETER, _PAUSE, _PART = 30.0, 0.15, 0.04  # dB below the loudest; seconds of a pause and of a part at least
_STATISTICS = 32  # bands of `statistics`: 64 numbers
_BATCH = 64
WINDOWS = (64, 128, 256, 512, 1024)


@final
@dataclass(frozen=True)
class Target:
    """What items are, by a column: values (N,) int64, numbers of `classes`."""

    values: Tensor
    classes: tuple[str, ...]


def target(data: Data, column: str) -> Target:
    """The labels of all items, or another column of `Clips`. Raises UserError."""
    if column == "label":
        labels = data.columns(np.arange(len(data))).get("label")
        if not isinstance(labels, Tensor) or len(data.info.labels) < 2:
            raise UserError(f"{data.where}: has no labels of at least 2 classes to judge by; set label=COLUMN")
        return Target(labels, data.info.labels)
    if not isinstance(data, Clips | Referenced):
        raise UserError(f"{data.where}: has no column '{column}' to judge by; known: label")
    values, classes = read_labels(data.column(column), f"{data.where}: {column}")
    return Target(torch.from_numpy(values), classes)


# ---------------------------------------------------------------- measures of single sounds


def clipped(media: Tensor) -> Tensor:
    """(N,) bool: sounds (N, c, T) with 3 samples or more in a row at full scale."""
    full = (media.abs() >= FULL).flatten(0, 1)
    runs = full.unfold(1, RUN, 1).all(2).any(1)
    return runs.reshape(media.shape[:2]).any(1)


def silent(media: Tensor) -> Tensor:
    """(N,) bool: sounds (N, c, T) with a peak below -60 dB of full scale."""
    return media.abs().flatten(1).amax(1) < SILENT


def parts(media: Tensor, rate: int) -> Tensor:
    """(N,) int64: how many parts of sounds (N, c, T) are sounding, apart by pauses of 0.15 s or more.

    Sounding are frames of 20 ms, every 10 ms, within 30 dB of the sound's loudest one; parts below 40 ms do not count. A
    word has one part, with the closures of its stops inside.
    """
    size, hop = max(2, round(0.02 * rate)), max(1, round(0.01 * rate))
    power = media.double().square().mean(1).unfold(1, min(size, media.shape[2]), hop).mean(2)
    sounding = (power > power.amax(1, keepdim=True) * 10 ** (-_QUIETER / 10)).cpu().numpy()
    found = []
    for row in sounding:
        runs = _runs(row)
        for begin, end in zip(runs[:-1, 1], runs[1:, 0]):
            row[begin:end] |= (end - begin) * hop < _PAUSE * rate
        found.append(int((np.diff(_runs(row)) * hop >= _PART * rate).sum()))
    return torch.tensor(found)


def _runs(row: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(runs, 2): first and after last of each run of True."""
    return np.flatnonzero(np.diff(np.pad(row, 1).astype(np.int8))).reshape(-1, 2)


def statistics(media: Tensor, rate: int) -> Tensor:
    """(N, 64): mean and deviation over time of each of 32 log-mel bands."""
    mel = LogMel(rate, _STATISTICS).to(media.device)
    bands = torch.cat([mel(part) for part in torch.split(media, 256)])
    return torch.cat([bands.mean(2), bands.std(2)], 1)


def stft_distance(real: Tensor, made: Tensor, windows: Sequence[int] = WINDOWS) -> Tensor:
    """How far spectra of sounds (N, c, T) are from those they should be, over several resolutions: (N,).

    `sound.SpectralDistance` has the formula.
    """
    found: Tensor = SpectralDistance(windows).to(real.device)(real, made)
    return found


def log_mel_distance(real: Tensor, made: Tensor, rate: int) -> Tensor:
    """Mean difference of log-mel magnitudes in dB, (N,), over bands and frames where either is above -80 dB."""
    mel = LogMel(rate).to(real.device)
    a, b = mel(real), mel(made)
    heard = torch.maximum(a, b) > a.new_tensor(1.001e-4).log()
    off = (a - b).abs() * heard
    mean: Tensor = off.flatten(1).sum(1) / heard.flatten(1).sum(1).clamp_min(1)
    return mean * (20 / math.log(10))


def signal_to_noise(real: Tensor, made: Tensor) -> Tensor:
    """10 log10 |x|^2 / |x - x'|^2 of each sound (N, c, T), (N,) dB."""
    power, noise = (v.square().flatten(1).sum(1) for v in (real, real - made))
    ratio: Tensor = 10 * torch.log10(power / noise.clamp_min(1e-20))
    return ratio


# ---------------------------------------------------------------- scores of a model


@final
@dataclass(frozen=True)
class _Asked:
    """n calls of a model: their arguments, and the held-out items that they are those of."""

    arguments: dict[str, Any]
    rows: NDArray[np.int64]


def _asked(pipeline: Pipeline, data: Data, held: NDArray[np.int64], n: int) -> _Asked:
    """What held-out items are asked by, each about as often as any other."""
    conditioner = pipeline.model.conditioner
    columns = () if conditioner is None else conditioner.columns
    order = held[np.argsort(keys(0, "asked", np.arange(len(held))), kind="stable")]
    rows = np.resize(order, n)
    found = data.columns(rows)
    if lacking := [c for c in columns if c not in found]:
        raise UserError(f"the model is asked by {lacking[0]}, which this data has not; give the data it was trained on")
    arguments = as_arguments({column: found[column] for column in columns})
    return _Asked(arguments or {"n": n}, rows)


def sound_scores(
    pipeline: Pipeline,
    data: Data,
    judges: Mapping[str, Judge],
    *,
    n: int = 1000,
    seed: int = 0,
    guidance: float | None = None,
    steps: int | None = None,
) -> Scores:
    """Ask for what held-out sounds are, `n` times in all, and measure the samples against real sounds and with judges.

    With COLUMN that of a judge (`label`, `speakers`):
    COLUMN_accuracy: share of samples that the judge takes for what was asked; real: on held-out sounds.
    COLUMN_accuracy_least: the same for the class with the lowest; real: likewise.
    fd_COLUMN, kid_COLUMN: squared Frechet and kernel distance to held-out sounds in the judge's features, with as many
    of each;
        real: of as many training sounds.
    fd_mel: Frechet distance in means and deviations of 32 log-mel bands, likewise.
    near_copies: share nearer to a training sound, in log-mel magnitudes, than 5% of held-out ones; real: the held-out
    share. silent, clipped, in_parts: shares of samples, the last of those with a pause inside (`parts`); real: of
    held-out sounds.

    guidance, steps: instead of the model's own settings. A function of its arguments. media: the samples in the order
    asked.
    """
    held_out = np.flatnonzero(data.held_out_mask())
    training = np.flatnonzero(~data.held_out_mask())
    if len(held_out) < 2 or len(training) < 2:
        raise UserError("both parts of the data need at least 2 sounds to score against; set held_out")
    asked = _asked(pipeline, data, held_out, n)
    made = pipeline(
        **asked.arguments,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        batch_size=_BATCH,
        output_type="pt",
    )
    real, train = data.fetch(held_out).media, data.fetch(training).media
    found: dict[str, Score] = {}
    for column, judge in judges.items():
        wanted = target(data, column).values
        found |= _judged(column, judge, wanted, asked.rows, held_out, (made.media, real, train))
    found |= _plain(data.info.rate, made.media, real, train)
    return Scores(found, n, made.settings, made.media)


def _judged(
    column: str,
    judge: Judge,
    wanted: Tensor,
    rows: NDArray[np.int64],
    held: NDArray[np.int64],
    media: tuple[Tensor, Tensor, Tensor],
) -> dict[str, Score]:
    made, real, train = media
    said, said_of_real = judge.predict(made).cpu(), judge.predict(real).cpu()
    ours, theirs = accuracy(said, wanted[rows]), accuracy(said_of_real, wanted[held])
    least, least_real = _least(said, wanted[rows]), _least(said_of_real, wanted[held])
    name = judge.classes[least[1]]
    features = [judge.features(x).cpu() for x in (made, real, train)]
    scores = _distances(column, *features)
    return {
        f"{column}_accuracy": Score(
            ours.value, ours.interval, theirs.value, "share that the judge takes for what was asked"
        ),
        f"{column}_accuracy_least": Score(
            least[0].value, least[0].interval, least_real[0].value, f"of the class with the lowest, {name}"
        ),
        **scores,
    }


def _least(said: Tensor, wanted: Tensor) -> tuple[Share, int]:
    """The share of the class with the lowest one."""
    shares = {k: accuracy(said[wanted == k], wanted[wanted == k]) for k in sorted(set(wanted.tolist()))}
    worst = min(shares, key=lambda k: shares[k].value)
    return shares[worst], worst


def _distances(name: str, made: Tensor, real: Tensor, train: Tensor) -> dict[str, Score]:
    """Frechet and kernel distance of m samples to m held-out items, beside those of m training items."""
    m = min(map(len, (made, real, train)))
    y, h, x = (rows[_some(len(rows), m)] for rows in (made, real, train))
    note = f"{m} samples, {m} held-out sounds, {made.shape[1]} features"
    distance, kernel = frechet(h, y), kid(h, y)
    real_distance, real_kernel = frechet(h, x, resamples=0).value, kid(h, x).value
    return {
        f"fd_{name}": Score(distance.value, distance.interval, real_distance, f"squared Frechet distance, {note}"),
        f"kid_{name}": Score(kernel.value, kernel.interval, real_kernel, f"squared kernel distance, {note}"),
    }


def _some(n: int, most: int) -> Tensor:
    order = np.argsort(keys(0, "features", np.arange(n)), kind="stable")[:most]
    return torch.from_numpy(np.sort(order))


def _plain(rate: int, made: Tensor, real: Tensor, train: Tensor) -> dict[str, Score]:
    """What needs no judge."""
    mel = LogMel(rate)
    bands = [torch.cat([mel(part) for part in torch.split(x, 256)]) for x in (made, train, real)]
    copies = memorization(bands[0], bands[1], bands[2])
    of_statistics = [statistics(x, rate) for x in (made, real, train)]
    note = "share nearer to a training sound than 5% of held-out ones, in log-mel magnitudes"
    found = {
        "fd_mel": _distances("mel", *of_statistics)["fd_mel"],
        "near_copies": Score(copies.near_copies.value, copies.near_copies.interval, copies.held_out.value, note),
    }

    def in_parts(media: Tensor) -> Tensor:
        return parts(media, rate) > 1

    for name, test in (("silent", silent), ("clipped", clipped), ("in_parts", in_parts)):
        ours, theirs = test(made), test(real)
        share = Share(int(ours.sum()), len(ours))
        said = f"share of {name} sounds" if name != "in_parts" else f"share with a pause of {_PAUSE:g} s or more inside"
        found[name] = Score(share.value, share.interval, float(theirs.float().mean()), said)
    return found
