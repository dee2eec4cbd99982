"""`digits-speech`: spoken digits asked for in words, "speaker theo says seven"."""

from __future__ import annotations

from typing import Literal

from sfumato.codecs import Codec, Mel, Vocoder, Vocos
from sfumato.conditioners import Conditioner, Reference, Text, Together
from sfumato.core import LogisticGrid
from sfumato.data import Clips, Data, Referenced
from sfumato.data.digits import WORDS
from sfumato.errors import UserError
from sfumato.guidance import ClassifierFree
from sfumato.nn import UNet
from sfumato.pipeline import Sampling
from sfumato.recipes.aim import aim
from sfumato.recipes.base import Recipe, recipe
from sfumato.samplers import DPMpp2M
from sfumato.spec import Spec
from sfumato.train import Training

Size = Literal["xs", "s"]
CAPTIONS = ("speaker {speakers} says {labels}", "{speakers} says {labels}", "{labels}, spoken by {speakers}")
BANDS = 64  # of `Mel`, as it comes
SECONDS = 1.024  # 8,192 samples, 128 frames

# widths: of the U-Net's levels. batch, lr: of AdamW
_SIZES: dict[str, tuple[int, tuple[int, ...], int, float]] = {
    "xs": (48, (1, 2, 2), 32, 2e-3),
    "s": (64, (1, 2, 2), 128, 1.5e-3),
}


@recipe("digits-speech")
def digits_speech(
    *,
    data: Spec[Data],
    minutes: float | None = None,
    samples: int | None = None,
    size: Size = "s",
    vocoder: str | None = None,
    condition: Literal["words", "reference"] = "words",
) -> Spec[Recipe]:
    """A word and a speaker asked for in words: "theo says seven". One second at 8 kHz, through 64 mel bands.

    data: an .npz of clips with the columns `labels` (0-9) and `speakers`, as made from the Free Spoken Digit Dataset;
    any other `clips` with captions of its own. minutes or samples: of training (4 minutes). size: xs for two CPU cores,
    s for a GPU. vocoder: folder of a trained vocoder; none: Griffin-Lim. condition: reference takes the speaker out of the
    words, and asks for "seven" in the voice of a clip.
    """
    width, mults, batch, lr = _SIZES[size]
    clips = spoken(data)
    asked: Spec[Conditioner] = Spec(Text, width=64, depth=1, heads=4, length=48, buckets=512)
    if condition == "reference":
        own = clips if "captions" in data.settings else clips.with_(captions=("{labels}",))
        clips = Spec(Referenced, data=own, by="speakers")
        asked = Spec(Together, first=asked, second=Spec(Reference, width=64, depth=1))
    return Spec(
        Recipe,
        title="speech",
        data=clips,
        codec=mel_codec(vocoder),
        network=Spec(UNet, width=width, mults=mults, blocks=1, attention=(1, 2), dropout=0.1),
        conditioner=asked,
        **aim(BANDS, width),
        sampling=_sampling(),
        train=Training(
            batch=batch,
            minutes=None if samples is not None else (4.0 if minutes is None else minutes),
            samples=samples,
            lr=lr,
            decay=0.5,
            ema=(0.05,),
            evaluations=6,
            pictures=4,
            checkpoint_minutes=10.0,
            threads=4 if size == "s" else 1,
        ),
    )


def _sampling() -> Sampling:
    """Some fresh noise, and more of the steps far up in it, where it is decided when a word begins.

    Nearer to recordings than 20 deterministic steps: in log-mel statistics 0.94 against 1.12, of 360 samples (docs/audio.md).
    """
    grid = LogisticGrid(center=-1.5, scale=2.0)
    return Sampling(solver=DPMpp2M(eta=0.5), grid=grid, steps=30, guidance=ClassifierFree(scale=1.5))


def spoken(data: Spec[Data]) -> Spec[Data]:
    """Clips with what the recipe needs set, where it is not."""
    if data.cls is not Clips:
        raise UserError(
            "recipe 'digits-speech' is for an .npz file of clips (audio, offsets, sample_rate); give data=FILE.npz"
        )
    usual = {
        "label": "labels",
        "names": WORDS,
        "captions": CAPTIONS,
        "judged": ("speakers",),
        "seconds": SECONDS,
        "level": "peak",
        "speed": 0.05,
    }
    return data.with_(**{k: v for k, v in usual.items() if k not in data.settings})


def mel_codec(vocoder: str | None) -> Spec[Codec]:
    """64 bands every 8 ms, with the vocoder of a folder."""
    if vocoder is None:
        return Spec(Mel)
    return Spec(Mel, vocoder=vocos(), weights=vocoder)


def vocos() -> Spec[Vocoder]:
    """The vocoder of the recipe: 0.7 million parameters."""
    return Spec(Vocos, width=160, depth=4)
