"""The model card of the emoji model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfumato.data import Emoji
from sfumato.evaluate.contrastive import ContrastiveJudge
from sfumato.evaluate.scores import Score, Scores
from sfumato.pipeline import Pipeline

SOURCES = {
    "noto": ("Google Noto Emoji", "npm @iconify-json/noto 1.2.9", "Apache-2.0"),
    "noto-blob": ("Google Noto Emoji, old blobs", "npm @iconify-json/noto-v1 1.2.5", "Apache-2.0"),
    "twemoji": ("Twemoji, Twitter, Inc. and jdecked", "npm @iconify-json/twemoji 1.2.5", "CC BY 4.0"),
    "fluent": ("Microsoft Fluent Emoji", "npm @iconify-json/fluent-emoji 1.2.7", "MIT"),
    "fluent-flat": ("Microsoft Fluent Emoji, flat", "npm @iconify-json/fluent-emoji-flat 1.2.6", "MIT"),
}

_HEAD = """---
library_name: sfumato
tags: [diffusion, text-to-image, emoji]
license: other
---

# emoji

Draws emoji of 64 x 64 pixels from words: `sfumato sample emoji "red apple, fluent emoji"`. {count:,} parameters, 8 bits each.

```python
from sfumato import Pipeline

Pipeline.load("emoji")("red apple, fluent emoji", n=4, seed=0).grid()
```

A prompt is a name, a skin tone where there is one, and a design: `waving hand, dark skin tone, noto emoji`. The designs are
{styles}. Without a design the model chooses one.

## Data

| design | pictures | made by | package | licence |
| --- | --- | --- | --- | --- |
{sources}

Twemoji pictures are copyright Twitter, Inc. and other contributors, licensed CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/); they were drawn at 192 x 192, reduced to 64 x 64, laid on white, and learned
from. Names, keywords and groups: npm emojibase-data 17.0.0 (MIT), from Unicode CLDR. {train:,} of {total:,} pictures were
trained on; {known} are known names in a design held out for them and {new} are of names held out in every design.

## Training

{network} with the byte-level text encoder `text`, flow matching with velocity, {samples:,} samples in {minutes:g} minutes on
{gpu}{before}. Captions are reworded, {dropped:.0%} of them dropped, and in {swapped:.0%} words of the name are others; some
pictures are mirrored or moved, which their captions say.
`sfumato show emoji` prints every setting, `python -m benchmarks.emoji` trains it again.

## Scores

By a judge of words trained in this library on the same training pictures (`judge/`), one picture a caption, guidance
{guidance:g}, {steps} steps: `sfumato eval emoji data=PATH --json`. Real: what the held-out pictures themselves score.

| score | value | 95% interval | real |
| --- | --- | --- | --- |
{scores}

## Limits

It knows some 1,800 names in five designs. Colours and combinations that no emoji shows come out rarely as asked. Text, flags,
clock hands and other small signs are often wrong. For captions of its training data it draws pictures near to those it
was trained on: it is a small model of a small set, and `near_copies_seen` says how often. What it draws may be covered by
the licence of the designs above.
"""


def card(data: Emoji, pipeline: Pipeline, scores: Scores, judge: ContrastiveJudge, trained: Mapping[str, Any]) -> str:
    """The text, with every figure that was measured."""
    count = {style: sum(row.style == style for row in data.rows) for style in data.styles}
    rows = [f"| {s} | {count[s]:,} | {' | '.join(SOURCES.get(s, ('', '', '')))} |" for s in data.styles]
    network = pipeline.spec.network
    return _HEAD.format(
        count=sum(p.numel() for p in pipeline.model.parameters()),
        styles=", ".join(style.replace("-", " ") for style in data.styles),
        sources="\n".join(rows),
        train=len(data.split("train")),
        total=len(data),
        known=len(data.part("known")),
        new=len(data.part("new")),
        network=f"A diffusion transformer ({', '.join(f'{k} {v}' for k, v in network.settings.items())})",
        samples=pipeline.trained.get("samples", 0),
        minutes=trained["gpu_minutes"],
        gpu=trained["machine"],
        before="".join(f", after {b['samples']:,} in {b['gpu_minutes']:g}" for b in trained.get("before", [])),
        dropped=trained["dropped"],
        swapped=trained["swapped"],
        guidance=scores.settings["guidance_scale"],
        steps=scores.settings["steps"],
        scores="\n".join(_row(name, score) for name, score in scores.metrics.items()),
    )


def _row(name: str, score: Score) -> str:
    spread = "" if score.interval is None else "{:.3g} to {:.3g}".format(*score.interval)
    real = "" if score.real is None else f"{score.real:.3g}"
    return f"| `{name}`: {score.note} | {score.value:.3g} | {spread} | {real} |"
