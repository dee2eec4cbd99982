"""Scores in features: what is compared with what, under which name, and how a model's samples are drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import DIGITS as TINY
from tests.tiny import tiny_model, tiny_pipeline, tiny_spec
from torch import Tensor, nn

from sfumato.conditioners import Text
from sfumato.data import Arrays, Digits
from sfumato.data.digits import WORDS
from sfumato.errors import UserError
from sfumato.evaluate import (
    Extractor,
    draw,
    feature_scores,
    frechet,
    kid,
    prdc,
    prdc_intervals,
    scores_between,
)
from sfumato.evaluate.features import asked_by, choose
from sfumato.pipeline import Pipeline, Sampling
from sfumato.spec import Spec

DIGITS = Digits()
NAMES = ("fd", "fd_held_out", "kid", "precision", "recall", "density", "coverage")


class Corners(Extractor):
    """Every second pixel, or whatever `stride` says, of a picture."""

    def __init__(self, name: str = "corners", stride: int = 2, sha: str = "c0ffee00", fid: bool = False) -> None:
        super().__init__(nn.Linear(1, 1), name, sha, "none", batch=100)
        self.stride, self.is_fid = stride, fid

    def see(self, media: Tensor) -> Tensor:
        return media[:, 0, :: self.stride, :: self.stride].flatten(1).float()


def part(name: Any) -> Tensor:
    split = DIGITS.split(name)
    return split.fetch(np.arange(len(split))).media


def features(seed: int, n: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) + shift


def test_every_score_is_the_one_it_names_with_that_of_real_items() -> None:
    train, held_out, samples = features(0, 300), features(1, 80), features(2, 80, 0.5)
    found = scores_between(train, held_out, samples, k=3, most=60)
    assert tuple(found) == NAMES
    assert (
        found["fd"].value == frechet(train, samples).value and found["fd"].interval == frechet(train, samples).interval
    )
    assert found["fd"].real == frechet(train, held_out).value  # 80 held-out items, as many as there are samples
    assert found["fd_held_out"].value == frechet(held_out, samples).value
    assert found["fd_held_out"].real == frechet(held_out, train[choose(300, 80)]).value
    h, y, x = held_out[choose(80, 60)], samples[choose(80, 60)], train[choose(300, 60)]
    assert found["kid"].value == kid(h, y).value and found["kid"].real == kid(h, x).value
    ours, reals = prdc(h, y, 3), prdc(h, x, 3)
    for name in NAMES[3:]:
        assert (found[name].value, found[name].real) == (getattr(ours, name), getattr(reals, name))
        assert found[name].interval == prdc_intervals(h, y, 3)[name]
    assert all(score.interval is not None and score.real is not None and score.note for score in found.values())


def test_fewer_held_out_items_than_samples_are_said() -> None:
    found = scores_between(features(0, 200), features(1, 50), features(2, 100), k=3)
    assert "real: of only 50 held-out items, so rather too high" in found["fd"].note
    assert "50 samples against 50 held-out items" in found["coverage"].note
    with pytest.raises(UserError, match="1 item can't be scored"):
        scores_between(features(0, 20), features(1, 1), features(2, 10))


def test_training_items_as_samples_score_as_real_ones() -> None:
    """All training items as samples: at distance 0 from themselves; in the other scores alike, but for which were chosen."""
    found = feature_scores(DIGITS, part("train"), Corners())
    at = found.metrics
    assert at["fd_corners"].value == pytest.approx(0, abs=1e-6)
    assert at["fd_held_out_corners"].value == pytest.approx(
        frechet(*map(Corners(), (part("held_out"), part("train")))).value
    )
    for name in ("precision", "recall", "coverage"):
        score = at[f"{name}_corners"]
        assert score.interval is not None and score.real is not None
        assert score.interval[0] <= score.real <= score.interval[1]
    assert found.n == 1438


def test_the_settings_say_all_that_the_figures_depend_on() -> None:
    found = feature_scores(DIGITS, part("held_out")[:50], Corners(), k=4, most=40, most_real=700)
    names = [f"{name}_corners" for name in NAMES]
    assert list(found.metrics) == names
    assert found.settings == {
        "training_items": 700,
        "held_out_items": 359,
        "samples": 50,
        "compared": 40,
        "k": 4,
        "extractors": [{"name": "corners", "sha256": "c0ffee00", "resize": "none", "dims": 16, "scores": names}],
    }


def test_batches_and_several_extractors_change_nothing() -> None:
    samples = part("held_out")[:60]
    batches: Iterable[Tensor] = iter(torch.split(samples, 7))
    both = feature_scores(DIGITS, batches, [Corners(), Corners("grid", 3, "beef")])
    alone = feature_scores(DIGITS, samples, Corners("grid", 3, "beef"))
    assert {k: v for k, v in both.metrics.items() if k.endswith("_grid")} == alone.metrics
    assert len(both.metrics) == 2 * len(NAMES)


def test_names_are_those_of_the_extractor_and_fid_of_the_true_one_alone() -> None:
    samples = part("held_out")[:60]
    alike = feature_scores(DIGITS, samples, [Corners(sha="aaaaaaaaa"), Corners(sha="bbbbbbbbb", stride=3)])
    assert {"fd_corners-aaaaaa", "fd_corners-bbbbbb"} <= set(alike.metrics)
    true = feature_scores(DIGITS, samples, Corners("inception", fid=True))
    assert list(true.metrics)[:3] == ["fid", "fid_held_out", "kid_inception"]
    assert true.settings["extractors"][0]["scores"] == list(true.metrics)
    for wrong, said in (([], "at least one extractor"), ([Corners(), Corners()], "one extractor is given twice")):
        with pytest.raises(UserError, match=said):
            feature_scores(DIGITS, samples, wrong)


def test_progress_counts_all_real_items() -> None:
    seen: list[tuple[str, int, int]] = []
    feature_scores(DIGITS, part("held_out")[:20], Corners(), on_work=lambda *said: seen.append(said))
    assert [s for s in seen if s[1] == s[2]] == [("training items", 1438, 1438), ("held-out items", 359, 359)]


def test_what_can_not_be_scored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no samples"):
        feature_scores(DIGITS, iter(()), Corners())
    np.save(tmp_path / "x.npy", np.zeros((40, 1, 8, 8), np.float32))
    with pytest.raises(UserError, match="features are those of pictures, not of array items"):
        feature_scores(Arrays(path=str(tmp_path / "x.npy")), part("train"), Corners())
    np.save(tmp_path / "y.npy", np.zeros((40, 1, 8, 8), np.uint8))
    with pytest.raises(UserError, match="the held-out part of the data has 0 items"):
        feature_scores(Arrays(path=str(tmp_path / "y.npy"), held_out=0.0), part("train"), Corners())


def test_chosen_items_are_few_distinct_and_the_same_ones() -> None:
    made = choose(1000, 100)
    assert np.array_equal(made, choose(1000, 100)) and len(set(made.tolist())) == 100 and (np.diff(made) > 0).all()
    assert np.array_equal(choose(50, 100), np.arange(50))
    assert len(set((made % 10).tolist())) == 10  # items in a round of ten classes: an even stride would see one of them


# ---------------------------------------------------------------- drawing


def pipeline_of(conditioner: str) -> Pipeline:
    spec = tiny_spec(TINY, conditioner)
    if conditioner == "text":  # the digits' captions are up to 36 bytes long
        spec = replace(spec, conditioner=Spec(Text, width=16, depth=1, heads=2, length=40))
    return Pipeline(tiny_model(spec), spec, Sampling(steps=3))


@pytest.mark.parametrize(("conditioner", "columns"), [("none", []), ("label", ["label"]), ("text", ["caption"])])
def test_samples_are_those_of_the_pipeline_for_the_conditions_of_training_items(
    conditioner: str, columns: list[str]
) -> None:
    pipeline = pipeline_of(conditioner)
    seen: list[tuple[str, int, int]] = []
    made = draw(pipeline, DIGITS, 6, seed=4, batch=4, on_work=lambda *said: seen.append(said))
    media = torch.cat(list(made.batches))
    asked = asked_by(DIGITS.split("train"), columns, 6, 4) if columns else {"n": 6}
    assert torch.equal(media, pipeline(**asked, seed=4, batch_size=4).media)
    assert media.shape == (6, 1, 8, 8) and media.dtype == torch.uint8
    assert seen[-1] == ("samples", 6, 6)
    assert (made.settings["seed"], made.settings["num_inference_steps"]) == (4, 3)
    assert made.settings["asked_by"] == columns and not {"prompt", "label", "n"} & set(made.settings)


def test_classes_are_as_frequent_as_in_training_and_depend_on_the_seed() -> None:
    train = DIGITS.split("train")
    all_of_them = asked_by(train, ("label",), 1438, 0)["label"]
    labels = train.columns(np.arange(1438))["label"]
    assert isinstance(labels, Tensor) and Counter(all_of_them) == Counter(labels.tolist())
    some = [asked_by(train, ("label", "caption"), 50, seed) for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert all(WORDS[k] in text or str(k) in text for k, text in zip(some[0]["label"], some[0]["prompt"]))
    with pytest.raises(UserError, match="the model is asked by number, which this data has not"):
        asked_by(train, ("number",), 5, 0)


def test_sampling_settings_can_be_changed() -> None:
    made = draw(tiny_pipeline("label"), DIGITS, 2, guidance=2.0, steps=2)
    assert (made.settings["guidance_scale"], made.settings["num_inference_steps"]) == (2.0, 2)
    with pytest.raises(UserError, match="this model is unconditional"):
        draw(tiny_pipeline("none"), DIGITS, 2, guidance=2.0)
