"""The cards of the speech and voxel models that ship, written from what `sfumato eval` found.

    sfumato eval speech data=fsdd.npz --json > speech-eval.json
    python -m benchmarks.model_cards FOLDER speech-eval.json [--results speech.json] [--beside metrics.json ...]

FOLDER is the model folder: its README.md is written again and its manifest made new; the rest stays. `settled` makes such a
folder of one that a training has saved. Whether the card is of speech or voxels is what the model makes. --results keeps the
scores with the record of the training, and with what is in the files --beside: the `metrics.json` of the training, what
`benchmarks.speech_clips` measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._table import machine, versions
from sfumato.evaluate.judge import Judge
from sfumato.files import replacing_folder
from sfumato.modelfolder import CARD, CONFIG, WEIGHTS, read_config
from sfumato.pipeline import Pipeline

_SCORES = """| score | value | 95% interval | real |
| --- | --- | --- | --- |
{rows}"""

_GITHUB = "https://github.com/"
SOURCES = (
    (
        "low-poly models by Quaternius",
        "trebeljahr/quaternius-showcase at eab2e43a7e688dad1cc6be764c1c4ba593e1961c",
        1469,
        "CC0 1.0, as Quaternius states with the packs; that repository itself has no licence text for them",
    ),
    (
        "KayKit City Builder, Furniture, Restaurant, Halloween and Dungeon Remastered by Kay Lousberg",
        "KayKit-Game-Assets",
        479,
        "CC0 1.0",
    ),
    (
        "Mini Mike's Metro Minis by Mike Judge",
        "mikelovesrobots/mmmm at 149a03053a1992cdfbd1a1cc041598f4aea53e75",
        432,
        "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)",
    ),
    (
        "Platformer Kit 1.0 by Kenney",
        "beep2bleep/FreeAssetsByKenneyNLandQuaternius at dea756baf3b3a4889d8c245e456a4791f961578a",
        56,
        "CC0 1.0",
    ),
)
_LIMITS = ("in_parts", "single_component")  # scores that the limits speak of

_SPEECH = """---
library_name: sfumato
tags: [diffusion, text-to-speech, audio]
license: cc-by-sa-4.0
---

# speech

Says a digit, zero to nine, in one of six voices: `sfumato sample speech "theo says seven" seconds=1`. One
second at 8 kHz, mono. {count:,} parameters with text encoder and vocoder, in 8 bits: {size}.

```python
from sfumato import Pipeline

Pipeline.load("speech")("theo says seven", n=4, seed=0).audios[0]
```

A prompt is `speaker theo says seven`, `theo says seven` or `seven, spoken by theo`. The voices are george,
jackson, lucas, nicolas, theo and yweweler.

## Data and licence

Free Spoken Digit Dataset, by Zohar Jackson and contributors: 3,000 recordings of six speakers, 50 of each digit
(https://github.com/Jakobovski/free-spoken-digit-dataset at 26eb9aaf76e81b692f806f9140c2d2777410d7a1), CC BY-SA
4.0 (https://creativecommons.org/licenses/by-sa/4.0/). The official test part, recordings 0 to 4 of each (300),
was held out; the model, its vocoder and its judges were trained on the other 2,700, each brought to one peak,
cut or filled up to 1.024 s and played up to 5% faster or slower. The weights are given under the same licence,
CC BY-SA 4.0.

## Training

A 1-D U-Net over log-mel bands (64 x 128) with a byte-level text encoder, flow matching whose network gives x0,
{training}. The vocoder took {vocoder} minutes and the judges {judges} s on top. `sfumato show speech` prints
every setting, `{command}` trains it again.

## Scores

`sfumato eval speech data=fsdd.npz --json`: {n:,} samples of held-out prompts, {sampling}. The two judges are
classifiers of real training recordings (`judges/`); they are right on {label:.1%} (digit) and {speakers:.1%}
(speaker) of the 300 held-out ones. Real: what held-out recordings score, or training recordings for distances.

{scores}

## Limits

It says ten words in six voices and nothing else: any other prompt gives one of these or a mixture of them. {in_parts}
of the samples have a pause inside. Highs are a little weaker than in recordings. A sound is
at most 1.024 s long; `seconds=` above that gives the word and then what the model makes of the rest. The voices are
those of real persons who gave their recordings to the data set; do not use them to pass for these persons.
"""

_VOXELS = """---
library_name: sfumato
tags: [diffusion, text-to-3d, voxels]
license: other
---

# voxels

Makes coloured voxel models of 32 x 32 x 32 cells from words: `sfumato sample voxels "a pine tree" -o tree.glb`.
Files: `.vox`, GLB, OBJ, PLY, STL, a turntable as PNG. {count:,} parameters with text encoder, in 8 bits:
{size}.

```python
from sfumato import Pipeline

Pipeline.load("voxels")("a pine tree", seed=0).images[0]
```

It was trained on captions such as `mushroom, plant, quaternius style`: a name, a category and a style
(quaternius, kaykit, kenney, mini mikes). `, turned left`, `, turned around` or `, turned right` behind that
turns the model.

## Data and licence

| source | models trained on | licence |
| --- | --- | --- |
{sources}

Mini Mike's Metro Minis are (c) Mike Judge, licensed CC BY 4.0; models were doubled, reduced or voxelised to
32^3. 2,436 models were trained on, each under the eight symmetries of a turn and a mirror; 109, apart by pack
and name, were held out. What it makes may be near to the models above, and a likeness of those by Mike Judge
asks for this credit.

## Training

A transformer over patches of 4^3 cells with a byte-level text encoder, flow matching, x0 predicted,
{training}. The judge took {judges} s on top. `sfumato show voxels` prints every setting, `{command}` trains it
again.

## Scores

`sfumato eval voxels data=voxels32.npz --json`: {n:,} samples of the 109 held-out captions, {sampling}. Real:
what the held-out models score, or training models against them.

{scores}

The judge of categories (`judge/`), a 3-D classifier of real training models that also sees how much there is of
each colour, is right on {judge:.1%} of the 109 held-out ones: 19 categories such as object, item, dungeon and scene
overlap. It compares how often samples and real models are taken for their category; of a single model it says little.

## Limits

2,436 models are few, and it knows best what its captions name. Names that no caption has give something of the
style or nothing that can be told, {empty:.1%} of the samples are empty. Colours and numbers of things are not
obeyed. {single_component} are in one piece; others have loose parts. Surfaces are mottled where it is not sure of a
colour. People, text and thin parts such as handles and legs come out broken most often.
"""


def settled(source: Path, folder: Path, *, trained: Mapping[str, Any], judges: Mapping[str, Judge]) -> Path:
    """A copy of a model folder as it ships: a record of the training that names no place, and its judges inside.

    trained: takes the place of the record. judges: by folder, such as `judge` or `judges/label`; stored in 8 bits.
    """
    config = read_config(source)
    config["model"]["codec"].pop("weights", None)  # they are with the model
    config["trained"] = json.loads(json.dumps(trained, default=str))
    with replacing_folder(folder) as made:
        for name in (WEIGHTS, CARD):
            shutil.copyfile(source / name, made / name)
        (made / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for name, judge in judges.items():
            judge.cpu().save(made / name, compact=True)
    return folder


def _before(stages: Sequence[Mapping[str, Any]]) -> str:
    """What a model went on from."""
    said = [f"{stage['samples']:,} samples in {stage['seconds'] / 60:.0f} minutes" for stage in stages]
    return f", going on from {' and then '.join(said)}" if said else ""


def write_card(folder: Path, found: Mapping[str, Any]) -> None:
    """The card of a settled folder, from the object that `sfumato eval --json` prints."""
    text = card(folder, found)
    with replacing_folder(folder.resolve()) as made:
        shutil.copytree(folder, made, dirs_exist_ok=True)
        (made / CARD).write_text(text, encoding="utf-8")


def card(folder: Path, found: Mapping[str, Any]) -> str:
    """The text, with every figure that was measured."""
    config = read_config(folder)
    trained, kind = config["trained"], config["model"]["info"]["kind"]
    settings = found["settings"]["sounds" if kind == "audio" else "voxels"]
    judged = {key.removeprefix("judge_"): value for key, value in settings.items() if key.startswith("judge_")}
    minutes = trained["seconds"] / 60
    return (_SPEECH if kind == "audio" else _VOXELS).format(
        count=sum(p.numel() for p in Pipeline.load(folder).model.parameters()),
        size=f"{(folder / WEIGHTS).stat().st_size / 2**20:.2f} MiB",
        training=f"{trained['samples']:,} samples in {minutes:.2f} minutes on one {trained['machine']} "
        f"(torch {trained['torch']})" + _before(trained.get("before", [])),
        vocoder=trained.get("vocoder_minutes"),
        judges=trained["judge_seconds"],
        command=trained["command"],
        n=found["n"],
        sampling=_sampling(config["sampling"]),
        label=judged.get("label", 0.0),
        speakers=judged.get("speakers", 0.0),
        judge=judged.get("accuracy", 0.0),
        empty=1 - found["metrics"].get("watertight", {"value": 1.0})["value"],  # any other one is closed
        **{name: _shares(score) for name, score in found["metrics"].items() if name in _LIMITS},
        sources="\n".join(f"| {what}, {_GITHUB}{where} | {n:,} | {licence} |" for what, where, n, licence in SOURCES),
        scores=_SCORES.format(rows="\n".join(_row(name, score) for name, score in found["metrics"].items())),
    )


def _sampling(settings: Mapping[str, Any]) -> str:
    scale = (settings.get("guidance") or {}).get("scale", 1.0)
    return f"{settings['steps']} steps of `{settings['solver']['type']}`, guidance {scale:g}"


def _shares(score: Mapping[str, Any]) -> str:
    return f"{score['value']:.1%} (real: {score['real']:.1%})"


def _row(name: str, score: Mapping[str, Any]) -> str:
    spread = "" if score["interval"] is None else "{:.3g} to {:.3g}".format(*score["interval"])
    real = "" if score["real"] is None else f"{score['real']:.3g}"
    return f"| `{name}` | {score['value']:.3g} | {spread} | {real} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--beside", type=Path, nargs="*", default=[])
    asked = parser.parse_args()
    found = json.loads(asked.scores.read_text(encoding="utf-8"))
    write_card(asked.folder, found)
    if asked.results is not None:
        beside = [json.loads(file.read_text(encoding="utf-8")) for file in asked.beside]
        kept = {key: value for content in beside for key, value in content.items() if key not in ("settings", "recipe")}
        found |= {"run": asked.folder.name, "scored_on": {**machine(), **versions()}}
        found["settings"]["data"]["path"] = Path(found["settings"]["data"]["path"]).name
        content = {asked.folder.name: found, "trained": read_config(asked.folder)["trained"], **kept}
        asked.results.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
