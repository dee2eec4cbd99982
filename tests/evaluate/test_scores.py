"""Scores of models whose samples are known: copies of training digits, fresh draws of held-out ones, and the wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato.codecs import Pixels
from sfumato.conditioners import Conditioner
from sfumato.core import X0, Cond, CondShape, Flow, NetDenoiser, Network
from sfumato.data import Digits, Shapes, matches_many
from sfumato.errors import UserError
from sfumato.evaluate import Judge
from sfumato.evaluate.scores import Score, caption_scores, class_prompts, class_scores
from sfumato.model import Model, ModelSpec
from sfumato.pipeline import Output, Pipeline, Sampling
from sfumato.recipes.judges import train_judge
from sfumato.spec import Spec

DIGITS = Digits()


class Drawer(Network):
    """Gives a stored picture of the class asked for; which one is chosen by the first pixel of the noise it is given.

    With one step from pure noise this is a model that draws from a set of pictures, uniformly.
    """

    def __init__(self, shape: tuple[int, ...], cond: CondShape, pictures: list[Tensor]) -> None:
        super().__init__()
        self.pictures = pictures
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        assert cond is not None and cond.vector is not None
        drawn = []
        for one, wanted in zip(x, cond.vector.argmax(1).tolist()):
            choice = self.pictures[wanted]
            share = float(torch.special.ndtr(one.double().flatten()[0]))
            drawn.append(choice[min(int(share * len(choice)), len(choice) - 1)])
        return torch.stack(drawn)


class OneHot(Conditioner):
    """The class as a one-hot vector."""

    columns = ("label",)
    shape = CondShape(vector=10)

    def prepare(self, conditions: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"label": conditions["label"]}

    def forward(self, prepared: Mapping[str, Tensor]) -> Cond:
        return Cond(vector=nn.functional.one_hot(prepared["label"], 10).float())

    def null(self, n: int) -> Cond:
        return Cond(vector=torch.zeros(n, 10))


def drawing_from(part: str, each: int | None = None, shift: int = 0) -> Pipeline:
    """A pipeline that draws real digits of a part of the data; `shift`: of the wrong class."""
    split = DIGITS.split(part)  # type: ignore[arg-type]
    batch = split.fetch(np.arange(len(split)))
    codec = Pixels(DIGITS.info)
    codec.measure([batch.media])
    x0, labels = codec.whiten(codec.encode(batch.media)), batch.conditions["label"]
    pictures = [x0[labels == (k + shift) % 10][:each] for k in range(10)]
    conditioner = OneHot()
    denoiser = NetDenoiser(Drawer(DIGITS.info.shape, conditioner.shape, pictures), Flow(), X0())
    model = Model(denoiser, codec, conditioner, DIGITS.info)
    unused: Any = None
    spec = ModelSpec(DIGITS.info, unused, Spec(Flow), Spec(X0), Spec(Pixels), unused)
    return Pipeline(model, spec, Sampling(steps=1, guidance=None))


@pytest.fixture(scope="module")
def judge() -> Judge:
    return train_judge(DIGITS, epochs=10, width=8)


def test_copies_of_training_digits_are_found_out(judge: Judge) -> None:
    made = class_scores(drawing_from("train"), DIGITS, judge, each=60).metrics
    assert made["prompt_accuracy"].value > 0.98
    assert made["near_copies"].value == 1.0
    assert made["near_copies"].real == pytest.approx(0.05, abs=0.003)
    assert made["deviation"].of_real == pytest.approx(1, abs=0.05)


def test_draws_of_held_out_digits_score_as_real_ones(judge: Judge) -> None:
    made = class_scores(drawing_from("held_out"), DIGITS, judge, each=100)
    found = made.metrics
    assert made.n == 1000
    assert made.media.shape == (1000, 1, 8, 8)
    assert found["prompt_accuracy"].value == pytest.approx(found["prompt_accuracy"].real, abs=0.02)
    assert found["near_copies"].value == pytest.approx(found["near_copies"].real, abs=0.03)
    assert found["deviation"].of_real == pytest.approx(1, abs=0.05)
    assert found["coverage_pixels"].of_real > 0.9
    assert found["fd"].value < 2 * found["fd"].real


def test_one_picture_a_class_has_no_deviation_and_little_coverage(judge: Judge) -> None:
    made = class_scores(drawing_from("train", each=1), DIGITS, judge, each=40).metrics
    assert made["deviation"].value == 0
    assert made["coverage_pixels"].of_real < 0.3
    assert made["coverage_features"].of_real < 0.3


def test_the_wrong_digits_are_not_what_was_asked(judge: Judge) -> None:
    made = class_scores(drawing_from("train", shift=1), DIGITS, judge, each=20).metrics
    assert made["prompt_accuracy"].value < 0.03
    assert made["deviation"].of_real == pytest.approx(1, abs=0.1)


def test_scores_are_repeatable_and_plain_data(judge: Judge) -> None:
    pipeline = drawing_from("train")
    first, second = (class_scores(pipeline, DIGITS, judge, each=8, seed=3).to_dict() for _ in range(2))
    assert first == second
    assert set(first) == {"n", "metrics", "settings"}
    assert set(first["metrics"]["fd"]) == {"value", "interval", "real", "note"}
    assert first != class_scores(pipeline, DIGITS, judge, each=8, seed=4).to_dict()


def test_how_classes_are_asked_for() -> None:
    assert class_prompts(drawing_from("train"), DIGITS) == {"label": list(range(10))}
    reads_captions = drawing_from("train")
    reads_captions.model.conditioner.columns = ("caption",)  # type: ignore[union-attr]
    assert class_prompts(reads_captions, DIGITS)["prompt"][7] == "a handwritten seven"
    reads_captions.model.conditioner = None
    with pytest.raises(UserError, match="can't be asked for a class"):
        class_prompts(reads_captions, DIGITS)


def test_a_score_without_real_items_has_no_ratio() -> None:
    assert Score(0.4, real=0.8).of_real == 0.5
    with pytest.raises(UserError, match="no score of real items"):
        _ = Score(0.4, note="of nothing").of_real


# ---------------------------------------------------------------- captions

SHAPES = Shapes(count=1200)


class Artist:
    """Stands in for a pipeline: draws the pictures of the captions it is asked for, or those of their neighbours."""

    def __init__(self, shift: int) -> None:
        self.shift = shift
        captions = SHAPES.columns(np.arange(len(SHAPES)))["caption"]
        self.index = {caption: i for i, caption in enumerate(captions)}

    def __call__(self, prompt: list[str], **settings: Any) -> Output:
        wanted = [self.index[caption] for caption in prompt]
        media = SHAPES.fetch(wanted[self.shift :] + wanted[: self.shift]).media
        return Output(media, media, tuple(range(len(prompt))), tuple(prompt), settings, SHAPES.info)


def test_caption_scores_of_the_right_and_the_wrong_pictures() -> None:
    right = caption_scores(Artist(0), SHAPES, matches_many, n=60).metrics  # type: ignore[arg-type]
    assert right["prompt_accuracy"].value == right["prompt_accuracy"].real
    assert right["prompt_accuracy"].value >= 0.98
    assert right["prompt_accuracy_seen"].value >= 0.98
    assert right["deviation"].of_real == pytest.approx(1)
    assert right["near_copies"].value == right["near_copies"].real
    wrong = caption_scores(Artist(1), SHAPES, matches_many, n=60).metrics  # type: ignore[arg-type]
    assert wrong["prompt_accuracy"].value <= 0.05
    assert wrong["prompt_accuracy"].real == right["prompt_accuracy"].real


def test_caption_scores_ask_for_no_more_than_there_is() -> None:
    with pytest.raises(UserError, match="n = 5000: this part of the data has"):
        caption_scores(Artist(0), SHAPES, matches_many, n=5000)  # type: ignore[arg-type]
