"""The guidance that the emoji model draws with by default, chosen on captions of its training part.

    python -m benchmarks.emoji_guidance --data emoji64.parquet [--model emoji] [--n 64] [--scales 1.5 2 3]

So many captions with a skin tone and as many without are drawn at each scale, with the same seeds; printed are the shares
that the model's judge takes for the tone and the design asked for, and the mean cosine of picture and caption. Held-out
captions, by which the model is scored, are not looked at. Ten minutes on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from sfumato import modelfolder
from sfumato.core.random import keys
from sfumato.data import Emoji
from sfumato.data.emoji import TONES
from sfumato.data.emoji_words import caption, style_words
from sfumato.evaluate.contrastive import ContrastiveJudge
from sfumato.evaluate.judge import Judge
from sfumato.pipeline import Pipeline

SEED = 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--n", type=int, default=64, help="captions with a tone, and as many without")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    parser.add_argument("--steps", type=int)
    asked = parser.parse_args()
    data, pipeline = Emoji(path=asked.data), Pipeline.load(asked.model)
    judge = Judge.load(
        modelfolder.SHIPPED / asked.model / "judge" if asked.model == "emoji" else Path(asked.model) / "judge"
    )
    assert isinstance(judge, ContrastiveJudge)
    train = data.split("train").indices
    order = train[np.argsort(keys(0, "choice", train), kind="stable")].tolist()
    toned = [i for i in order if data.rows[i].tone in TONES][: asked.n]
    rows = [data.rows[i] for i in [*toned, *[i for i in order if not data.rows[i].tone][: asked.n]]]
    prompts = [caption(row) for row in rows]
    for scale in asked.scales:
        how = {"guidance_scale": scale, "num_inference_steps": asked.steps, "batch_size": 64}
        media = pipeline(prompts, seed=SEED, output_type="pt", **how).media
        styles = np.mean([a == style_words(row.style) for a, row in zip(judge.values(media, "style"), rows)])
        tones = np.mean([a == row.tone for a, row in zip(judge.values(media[: len(toned)], "skin tone"), rows)])
        near = float((judge.embed(media) * judge.embed_words(prompts)).sum(1).mean())
        print(f"guidance {scale:g}: design {styles:.3f}, skin tone {tones:.3f}, cosine {near:.3f}", flush=True)


if __name__ == "__main__":
    main()
