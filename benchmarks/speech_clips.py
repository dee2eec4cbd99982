"""Clips of the speech model described by measures that need no ear, beside real recordings of the same words and voices.

    python -m benchmarks.speech_clips --data fsdd.npz [--model speech] [--seed 0] [--picture clips.png] [--all all.png]
                                      [--json FILE]

One sample of each of five prompts, none chosen by its looks. Of each: seconds of sound and where it begins, sounding parts (a
pause of 0.15 s parts them), pitch (median and 10 to 90% of the voiced frames, in Hz), share of voiced frames, peak in dB of
full scale, and what the judges beside the model hear. Real: the median and the 5 to 95% range of the same measures over all
recordings of that voice and word. The pictures have spectrograms, samples above, a held-out recording of each below: of the
five, and of all six voices and ten words.
Also how far held-out recordings are from themselves after each codec and back: signal to noise, mean difference of log-mel
magnitudes (both dB), distance of spectra at five resolutions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.speech import asked_for_all, spectrograms
from sfumato.codecs import Mel, Spectrogram, Waveform
from sfumato.data import Sounds, open_data
from sfumato.evaluate.audio import log_mel_distance, parts, signal_to_noise, stft_distance, target
from sfumato.evaluate.judge import Judge
from sfumato.kinds import kind_of
from sfumato.modelfolder import find_folder
from sfumato.pipeline import Pipeline
from sfumato.recipes.speech import spoken

PROMPTS = ("theo says seven", "george says zero", "jackson says three", "lucas says nine", "nicolas says five")
LOWEST, HIGHEST = 60.0, 400.0  # Hz
_FRAME, _HOP = 0.04, 0.01  # seconds
_VOICED = 0.6  # of a frame's energy that repeats after a period
_QUIETER = 30.0  # dB below the loudest frame: no sound


def pitch_track(sound: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    """The pitch of each frame of 40 ms, every 10 ms, in Hz: (F,), NaN where it is not voiced.

    r(k) = sum x_i x_{i+k} / sqrt(sum x_i^2 sum x_{i+k}^2) over lags k of 60 to 400 Hz; the shortest lag at a maximum of at
    least 0.9 of the largest one, with a parabola through its neighbours. Voiced: r of at least 0.6, within 30 dB of the
    loudest frame. Boersma, "Accurate short-term analysis of the fundamental frequency", 1993, has the idea and its limits.
    """
    size, hop = round(_FRAME * rate), round(_HOP * rate)
    low, high = int(rate / HIGHEST), int(np.ceil(rate / LOWEST))
    frames = np.lib.stride_tricks.sliding_window_view(sound, size + high)[::hop]
    power = np.square(frames[:, :size]).mean(1)
    found = np.full(len(frames), np.nan)
    for i in np.flatnonzero(power > power.max(initial=0.0) * 10 ** (-_QUIETER / 10)):
        x = frames[i]
        there = np.stack([x[k : k + size] for k in range(low - 1, high + 1)])
        r = there @ x[:size] / np.maximum(np.sqrt(np.square(there).sum(1) * np.square(x[:size]).sum()), 1e-12)
        peaks = np.flatnonzero((r[1:-1] >= r[:-2]) & (r[1:-1] > r[2:])) + 1
        if not len(peaks) or r[peaks].max() < _VOICED:
            continue
        k = peaks[r[peaks] >= 0.9 * r[peaks].max()][0]
        bend = r[k - 1] - 2 * r[k] + r[k + 1]
        found[i] = rate / (low - 1 + k + (0.5 * (r[k - 1] - r[k + 1]) / bend if bend < 0 else 0.0))
    return found


def described(sound: Tensor, rate: int) -> dict[str, float]:
    """The measures of a sound (1, T)."""
    x = sound[0].double().numpy()
    size = round(0.02 * rate)
    level = np.square(np.lib.stride_tricks.sliding_window_view(x, size)[:: size // 2]).mean(1)
    heard = np.flatnonzero(level > level.max() * 10 ** (-_QUIETER / 10))
    pitch = pitch_track(x, rate)
    voiced = pitch[~np.isnan(pitch)]
    low, middle, high = np.quantile(voiced, (0.1, 0.5, 0.9)) if len(voiced) else (0.0,) * 3
    return {
        "begins_s": float(heard[0] * _HOP),
        "sounding_s": float(len(heard) * _HOP),
        "parts": float(parts(sound[None], rate)[0]),
        "pitch_hz": float(middle),
        "pitch_low_hz": float(low),
        "pitch_high_hz": float(high),
        "voiced": len(voiced) / max(len(heard), 1),
        "peak_db": float(20 * np.log10(max(np.abs(x).max(), 1e-6))),
    }


def real_range(found: list[dict[str, float]]) -> dict[str, list[float]]:
    """Of each measure 5%, the median and 95%, over sounds."""
    return {
        key: [round(float(v), 3) for v in np.nanquantile([one[key] for one in found], (0.05, 0.5, 0.95))]
        for key in found[0]
    }


def reconstructed(mel: Mel, data: Sounds) -> dict[str, dict[str, float]]:
    """By codec, how far held-out recordings are from what becomes of them: means over recordings."""
    media = data.fetch(np.flatnonzero(data.held_out_mask())).media
    made = {}
    for codec in (Waveform(data.info), Spectrogram(data.info), mel):
        if codec is not mel:
            codec.measure([media])
        made[codec.kind] = codec.decode(codec.whiten(codec.encode(media)))
    made["mel, vocoder"] = made.pop(mel.kind)
    h = mel.encode(media)
    made["mel, Griffin-Lim"] = mel.by_griffin_lim(h.reshape(len(h), -1, mel.bands, h.shape[-1]), media.shape[-1])
    return {
        name: {
            "snr_db": round(float(signal_to_noise(media, sound).mean()), 2),
            "mel_db": round(float(log_mel_distance(media, sound, data.info.rate).mean()), 3),
            "stft": round(float(stft_distance(media, sound).mean()), 4),
        }
        for name, sound in made.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="speech")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--all", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    data = spoken(open_data(asked.data)).build()
    assert isinstance(data, Sounds)
    pipeline, rate = Pipeline.load(asked.model), data.info.rate
    judges = {c: Judge.load(find_folder(asked.model) / "judges" / c) for c in ("label", "speakers")}
    made = pipeline(list(PROMPTS), seed=asked.seed, output_type="pt").media
    targets, held = {c: target(data, c) for c in judges}, data.held_out_mask()
    rows: list[dict[str, Any]] = []
    real: list[Tensor] = []
    for prompt, sound in zip(PROMPTS, made):
        speaker, _, word = prompt.partition(" says ")
        wanted = {"label": word, "speakers": speaker}
        same = np.all([targets[c].values.numpy() == targets[c].classes.index(wanted[c]) for c in judges], 0)
        recordings = data.fetch(np.flatnonzero(same)).media
        real.append(data.fetch(np.flatnonzero(same & held)[:1]).media[0])
        heard = {c: judge.classes[int(judge.predict(sound[None])[0])] for c, judge in judges.items()}
        measured = {k: round(v, 3) for k, v in described(sound, rate).items()}
        rows.append(
            {
                "prompt": prompt,
                "seed": asked.seed + len(rows),
                "heard": f"{heard['speakers']} says {heard['label']}",
                **measured,
                "real": real_range([described(one, rate) for one in recordings]),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    assert isinstance(pipeline.model.codec, Mel)
    codecs = reconstructed(pipeline.model.codec, data)
    print(json.dumps(codecs), flush=True)
    if asked.picture is not None:
        sheet = kind_of(data.info).sheet([*made, *real], data.info, len(PROMPTS), [*PROMPTS, *["real"] * len(real)])
        sheet.quantize(128).save(asked.picture, optimize=True)
    if asked.all is not None:
        spectrograms(*asked_for_all(pipeline, data), data).quantize(32).save(asked.all, optimize=True)
    if asked.json is not None:
        content = {"clips": rows, "codecs": codecs}
        asked.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
