"""What is said of a model of emoji: names and designs that it has not met together, tones, copies, and guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.random import keys
from sfumato.data import Emoji
from sfumato.data.emoji import TONES
from sfumato.data.emoji_words import caption, style_words
from sfumato.errors import UserError
from sfumato.evaluate.accuracy import Share
from sfumato.evaluate.alignment import AMONG, JudgeAligner, choices
from sfumato.evaluate.contrastive import ContrastiveJudge
from sfumato.evaluate.kid import kid
from sfumato.evaluate.memorization import memorization
from sfumato.evaluate.scores import Score, Scores
from sfumato.pipeline import Pipeline

OnWork = Callable[[str, int, int], None]
SCALES = (1.0, 2.0, 4.0, 7.5)
_COUNTED = 0.6  # share of real pictures that a judge must find for a design to count
_COARSE = 32  # side of the pictures whose distances say what is a copy
_RESAMPLES = 2000
_TONE_SEEDS = 2


@final
@dataclass(frozen=True)
class _Asker:
    """Draws pictures of a model for captions."""

    pipeline: Pipeline
    batch: int
    steps: int | None
    scale: float | None
    on_work: OnWork

    def __call__(self, what: str, prompts: Sequence[str], seed: int, scale: float | None = None) -> Tensor:
        """(N, C, H, W) uint8; picture i has the seed `seed + i`."""
        plan = self.pipeline.plan(
            list(prompts),
            seed=seed,
            num_inference_steps=self.steps,
            guidance_scale=self.scale if scale is None else scale,
        )
        made: list[Tensor] = []
        for media in self.pipeline.run(plan, self.batch):
            made.append(media)
            self.on_work(what, sum(map(len, made)), len(prompts))
        return torch.cat(made)


def emoji_scores(
    pipeline: Pipeline,
    data: Emoji,
    judge: ContrastiveJudge,
    *,
    among: int = AMONG,
    seen: int = 300,
    curve: int = 100,
    scales: Sequence[float] = SCALES,
    seed: int = 0,
    guidance: float | None = None,
    steps: int | None = None,
    batch: int = 64,
    on_work: OnWork | None = None,
) -> Scores:
    """One picture for every held-out caption, judged beside the held-out pictures themselves; and what guidance does.

    retrieval_known: share nearest to its own of `among` captions, all in its own design, so that the design gives nothing
        away: names known from other designs, in a design held out for them. Tones are left out. retrieval_counted: the same
        over the designs in which real pictures reach 60%; of_real_counted: this as a share of what real pictures reach.
    retrieval_new: names never seen in any design.
    style_accuracy: share that the judge takes for the design that was asked for, of all held-out captions.
    skin_tone_accuracy: share that it takes for the tone that was asked for, of held-out captions with one, two seeds each.
    kid: squared kernel distance in the judge's features to the held-out pictures; real: of as many training pictures in the
        same designs.
    near_copies: share nearer to a training picture than 95% of held-out pictures are, at 32 x 32 pixels;
        near_copies_seen: the same where `seen` training captions are asked for.
    accuracy_at_SCALE, variety_at_SCALE: over `curve` known names, two seeds each: retrieval, and the mean distance of the two
        in the judge's embedding, 1 - cosine. 0 leaves the curve out.

    guidance, steps: instead of the model's own. A function of its arguments.
    """
    ask = _Asker(pipeline, batch, steps, guidance, on_work or (lambda what, done, of: None))
    aligner = JudgeAligner(judge)
    known, new = data.part("known"), data.part("new")
    both = np.concatenate([known, new])
    if not len(known) or not len(new):
        raise UserError(f"{data.where}: nothing is held out; give emoji with a test part, and hold= above 0")
    made = ask("held-out captions", [caption(data.rows[i]) for i in both], seed)
    real = data.fetch(both).media
    plain = np.asarray([not data.rows[i].tone for i in both])
    where = {"known": np.flatnonzero(plain[: len(known)]), "new": len(known) + np.flatnonzero(plain[len(known) :])}
    found: dict[str, Score] = {}
    for part, at in where.items():
        lists = _choices(data, both[at], both[plain], among, seed)
        ours, reals = (aligner.first(m[at], lists) for m in (made, real))
        found[f"retrieval_{part}"] = _share(ours, reals, f"nearest to its own of {among} captions, {part} names")
        if part == "known":
            found |= _counted(data, both[at], ours, reals)
            lists_known = lists
    found |= _attributes(data, judge, ask, both, made, real, seed + len(both))
    train = data.split("train")
    found["kid"] = _kid(data, judge, both, made, real, train.indices)
    found |= _copies(data, ask, made, real, train.indices, seen, seed)
    shown = where["known"][: min(curve, len(where["known"]))]
    if curve:
        found |= _curve(data, aligner, ask, both[shown], lists_known[: len(shown)], scales, seed)
    acting = pipeline.sampling.guidance
    settings = {
        "among": among,
        "seed": seed,
        "guidance_scale": guidance if guidance is not None else (None if acting is None else acting.scale),
        "steps": steps or pipeline.sampling.steps,
        "known": len(where["known"]),
        "new": len(where["new"]),
    }
    return Scores(found, len(both), settings, made)


def _choices(data: Emoji, asked: NDArray[np.int64], pool: NDArray[np.int64], among: int, seed: int) -> list[list[str]]:
    """Captions to choose among, in the design that was asked for: of names of the same part first, then of the other."""
    made = []
    own = set(asked.tolist())
    names = list(dict.fromkeys(data.rows[i].name for i in asked))
    more = list(dict.fromkeys(data.rows[i].name for i in pool if i not in own))
    for k, i in enumerate(asked.tolist()):
        style = f"{style_words(data.rows[i].style)} emoji"
        first = [f"{name}, {style}" for name in names]
        extra = [f"{name}, {style}" for name in more if name not in names][: max(0, among - len(first))]
        made += choices([caption(data.rows[i])], [*first, *extra], among, seed + k)
    return made


def _share(ours: Tensor, reals: Tensor, note: str) -> Score:
    share = Share(int(ours.sum()), len(ours))
    return Score(share.value, share.interval, float(reals.float().mean()), f"share {note}")


def _counted(data: Emoji, asked: NDArray[np.int64], ours: Tensor, reals: Tensor) -> dict[str, Score]:
    """The designs where real pictures reach 60%, and the ratio there, its interval by resampling the prompts."""
    styles = np.asarray([data.rows[i].style for i in asked])
    of_real = {style: float(reals[torch.from_numpy(styles == style)].float().mean()) for style in sorted(set(styles))}
    counted = [style for style, value in of_real.items() if value >= _COUNTED]
    at = torch.from_numpy(np.isin(styles, counted))
    if not bool(at.any()):
        return {}
    a, b = ours[at].double().numpy(), reals[at].double().numpy()
    drawn = np.random.default_rng(0).integers(0, len(a), (_RESAMPLES, len(a)))
    ratios = np.sort(a[drawn].mean(1) / np.maximum(b[drawn].mean(1), 1e-12))
    low, high = float(ratios[int(0.025 * _RESAMPLES)]), float(ratios[int(0.975 * _RESAMPLES)])
    names = ", ".join(counted)
    return {
        "retrieval_counted": replace(_share(ours[at], reals[at], ""), note=f"as retrieval_known, in {names}"),
        "of_real_counted": Score(float(a.mean() / b.mean()), (low, high), 1.0, "as a share of the real pictures'"),
    }


def _attributes(
    data: Emoji, judge: ContrastiveJudge, ask: _Asker, both: NDArray[np.int64], made: Tensor, real: Tensor, seed: int
) -> dict[str, Score]:
    styles = [style_words(data.rows[i].style) for i in both]
    ours, reals = (_right(judge.values(media, "style"), styles) for media in (made, real))
    found = {"style_accuracy": _share(ours, reals, "that the judge takes for the design asked for")}
    toned = np.flatnonzero([data.rows[i].tone in TONES for i in both])
    if not len(toned):
        return found
    again = [caption(data.rows[i]) for i in both[toned]]
    more = [ask("skin tones", again, seed + k * len(again)) for k in range(_TONE_SEEDS - 1)]
    tones = [data.rows[i].tone for i in both[toned]]
    ours = _right(judge.values(torch.cat([made[toned], *more]), "skin tone"), tones * _TONE_SEEDS)
    reals = _right(judge.values(real[toned], "skin tone"), tones)
    return found | {"skin_tone_accuracy": _share(ours, reals, "that the judge takes for the skin tone asked for")}


def _right(values: Sequence[str], asked: Sequence[str]) -> Tensor:
    return torch.tensor([a == b for a, b in zip(values, asked, strict=True)])


def _kid(
    data: Emoji, judge: ContrastiveJudge, both: NDArray[np.int64], made: Tensor, real: Tensor, train: NDArray[np.int64]
) -> Score:
    order = train[np.argsort(keys(0, "kid", train), kind="stable")]
    chosen: list[int] = []
    for style in data.styles:
        many = sum(data.rows[i].style == style for i in both)
        chosen += [i for i in order.tolist() if data.rows[i].style == style][:many]
    h, y, x = (judge.features(m).cpu() for m in (real, made, data.fetch(chosen).media))
    ours = kid(h, y)
    note = f"squared kernel distance, {len(y)} samples against {len(h)} held-out pictures"
    return Score(ours.value, ours.interval, kid(h, x).value, note)


def _copies(
    data: Emoji, ask: _Asker, made: Tensor, real: Tensor, train: NDArray[np.int64], seen: int, seed: int
) -> dict[str, Score]:
    bank, held_out = _coarse(data.fetch(train).media), _coarse(real)
    about = f"share nearer to training than 95% of held-out pictures, at {_COARSE} x {_COARSE} pixels"
    chosen = train[np.argsort(keys(seed, "seen", train), kind="stable")][:seen]
    asked = {"near_copies": made}
    if len(chosen):
        asked["near_copies_seen"] = ask("trained captions", [caption(data.rows[i]) for i in chosen], seed)
    found = {}
    for name, media in asked.items():
        said = memorization(_coarse(media), bank, held_out)
        of = ", for held-out captions" if name == "near_copies" else ", for captions of the training part"
        found[name] = Score(said.near_copies.value, said.near_copies.interval, said.held_out.value, about + of)
    return found


def _coarse(media: Tensor) -> Tensor:
    side = min(_COARSE, media.shape[2])
    return F.adaptive_avg_pool2d(media.float(), side).round()


def _curve(
    data: Emoji,
    aligner: JudgeAligner,
    ask: _Asker,
    asked: NDArray[np.int64],
    lists: list[list[str]],
    scales: Sequence[float],
    seed: int,
) -> dict[str, Score]:
    found: dict[str, Score] = {}
    said = [caption(data.rows[i]) for i in asked]
    real = aligner.first(data.fetch(asked).media, lists)
    for scale in scales:
        first, second = (ask(f"guidance {scale:g}", said, seed + k * len(said), scale) for k in range(2))
        right = torch.cat([aligner.first(media, lists) for media in (first, second)])
        about = f"at guidance {scale:g}, {len(said)} known names, 2 seeds"
        found[f"accuracy_at_{scale:g}"] = _share(right, real, f"nearest to its own caption {about}")
        apart = 1 - (aligner.pictures(first) * aligner.pictures(second)).sum(1)
        found[f"variety_at_{scale:g}"] = Score(
            float(apart.mean()), note=f"mean distance of two pictures of a prompt {about}"
        )
    return found


def summary(scores: Scores) -> dict[str, Any]:
    """Plain data of the scores, for a model card."""
    return {name: {"value": s.value, "interval": s.interval, "real": s.real} for name, s in scores.metrics.items()}
