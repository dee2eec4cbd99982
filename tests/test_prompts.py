"""Prompts on their way through a pipeline: weights, blanks, strange characters, and a frozen encoder end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato import modelfolder
from sfumato.conditioners.encoder import Encoder, Span
from sfumato.conditioners.frozen import Frozen
from sfumato.core import DataInfo
from sfumato.errors import UserError
from sfumato.evaluate.features import asked_by
from sfumato.pipeline import Pipeline
from sfumato.spec import Spec
from tests.tiny import DIGITS, tiny_model, tiny_pipeline, tiny_spec


class _Letters:
    """One token a character."""

    before, after, pad = (1,), (2,), 0

    def read(self, text: str) -> tuple[list[int], list[Span]]:
        return [3 + ord(c) % 61 for c in text], [(i, i + 1) for i in range(len(text))]


class LettersEncoder(Encoder):
    """A table of random vectors: stands in for a pretrained encoder where none is installed."""

    name, width, pooled_width, length = "letters", 6, 6, 32

    def __init__(self, number: int) -> None:
        self.fingerprint = f"{number:064x}"
        self.table = torch.randn(64, 6, generator=torch.Generator().manual_seed(number))

    @property
    def reader(self) -> _Letters:
        return _Letters()

    def run(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        states = self.table[ids] * mask[:, :, None]
        return states, states.sum(1) / mask.sum(1, keepdim=True)


class Letters(Frozen, name="letters-for-tests"):
    def __init__(self, info: DataInfo, *, number: int = 1, windows: int = 1) -> None:
        super().__init__(info, LettersEncoder(number), width=8, windows=windows, cache=None, batch=4)


def frozen(number: int = 1) -> Pipeline:
    spec = replace(tiny_spec(network="dit"), conditioner=Spec(Letters, number=number))
    return Pipeline(tiny_model(spec), spec)


def pictures(pipeline: Pipeline, *prompts: str, **more: Any) -> Tensor:
    asked = {"seed": 3, "num_inference_steps": 2, "output_type": "pt", **more}
    return pipeline(list(prompts), **{**asked, "seed": [asked["seed"]] * len(prompts)}).media


both = pytest.mark.parametrize("pipeline", [tiny_pipeline(), frozen()], ids=["bytes", "frozen"])


@both
def test_weights_act_and_a_weight_of_1_does_not(pipeline: Pipeline) -> None:
    plain, one, two, none = pictures(pipeline, "a red 7", "a (red:1.0) 7", "a (red:2) 7", "a (red:0) 7")
    assert torch.equal(plain, one)
    assert not torch.equal(plain, two) and not torch.equal(plain, none) and not torch.equal(two, none)


@both
def test_parentheses_that_mean_nothing_are_text(pipeline: Pipeline) -> None:
    plain, escaped, weighted = pictures(pipeline, "a (red) 7", r"a \(red\) 7", "a (red:1.5) 7")
    assert torch.equal(plain, escaped) and not torch.equal(plain, weighted)


@both
def test_negative_prompts_are_weighted_too(pipeline: Pipeline) -> None:
    plain, weighted, one = (
        pictures(pipeline, "seven", negative_prompt=n, guidance_scale=3.0)
        for n in ("a red 3", "a (red:2) 3", "a (red:1) 3")
    )
    assert torch.equal(plain, one) and not torch.equal(plain, weighted)


@both
def test_blank_prompts_ask_for_anything(pipeline: Pipeline) -> None:
    made = pictures(pipeline, "", "   ", "\n\t", "\x00\x1b", "( :2)", "\u3000")
    anything = pictures(pipeline, "seven", guidance_scale=0)
    for picture in made:
        assert torch.equal(picture, made[0])
    torch.testing.assert_close(made[:1].float(), anything.float(), rtol=0, atol=1)


@both
def test_control_characters_are_blanks_and_ways_of_writing_are_one(pipeline: Pipeline) -> None:
    plain, odd = pictures(pipeline, "a red 7", " a\x00red \n\x7f 7 ")
    assert torch.equal(plain, odd)
    composed, apart = pictures(pipeline, "caf\u00e9", "cafe\u0301")
    assert torch.equal(composed, apart)


@both
@pytest.mark.parametrize("prompt", ["επτά", "七", "👩\u200d🚀", "סֶבַע", "7\u202e7"])
def test_any_language_and_picture_is_taken(pipeline: Pipeline, prompt: str) -> None:
    a, b = pictures(pipeline, prompt, "seven")
    assert not torch.equal(a, b)


@both
@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("x" * 10_000, "and this model reads"),
        ("a (red:40) 7", "the weight 40 of .* is outside 0 to 10"),
        ("\ud800", "not valid Unicode"),
    ],
)
def test_what_can_not_be_asked(pipeline: Pipeline, prompt: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        pictures(pipeline, prompt)
    with pytest.raises(UserError, match=says):
        pictures(pipeline, "7", negative_prompt=prompt, guidance_scale=3.0)


def test_the_settings_of_an_output_make_it_again() -> None:
    pipeline = tiny_pipeline()
    made = pipeline("a (red:2) 7", seed=1, output_type="pt")
    assert made.prompts == ("a (red:2) 7",)
    assert torch.equal(pipeline(**made.settings).media, made.media)


def test_captions_of_data_are_no_prompts() -> None:
    """A caption with a parenthesis and a number asks for that very text."""
    from sfumato.data import Subset
    from tests.train.tiny import TinyData

    data: Any = TinyData()
    data.columns = lambda indices, draws=None: {"caption": ["at noon (12:30)"] * len(indices)}
    (asked,) = asked_by(data, ("caption",), 1, 0)["prompt"]
    assert asked == r"at noon \(12:30\)" and isinstance(data.split("train"), Subset)


# ---------------------------------------------------------------- a frozen encoder in a model folder


def test_a_model_folder_holds_the_encoder_by_reference(tmp_path: Path) -> None:
    ours = frozen()
    folder = ours.save_pretrained(tmp_path / "model")
    names = set(modelfolder.read_tensors(folder))
    assert {n.removeprefix("conditioner.") for n in names if n.startswith("conditioner.")} == {
        "anything", "any_vector", "fingerprint", "project.weight", "project.bias",
    }  # fmt: skip
    again = Pipeline.from_pretrained(folder)
    assert torch.equal(pictures(again, "a (red:2) 7"), pictures(ours, "a (red:2) 7"))


def test_a_model_folder_of_another_encoder_is_refused(tmp_path: Path) -> None:
    """The same settings, but what they lead to has changed: as when a folder of that name holds another encoder."""
    spec = replace(tiny_spec(network="dit"), conditioner=Spec(Letters, number=2))
    folder = Pipeline(frozen(1).model, spec).save_pretrained(tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["model"]["conditioner"]["number"] == 2
    with pytest.raises(UserError, match="letters: this is not the text encoder that the model was trained with"):
        Pipeline.from_pretrained(folder)


def test_half_precision_of_ours_leaves_the_encoder_alone() -> None:
    pipeline = frozen()
    encoder: Any = pipeline.model.conditioner.embedder.encoder  # type: ignore[union-attr]
    before = encoder.table.clone()
    pipeline.to(dtype="bf16")
    assert pictures(pipeline, "a red 7").shape == (1, *DIGITS.shape)
    assert torch.equal(encoder.table, before)
