"""Guidance by name: in recipes, in calls of a pipeline and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato import cli
from sfumato.errors import UserError
from sfumato.guidance import (
    Chain,
    Classifier,
    ClassifierFree,
    Dynamic,
    Guidance,
    PerturbedAttention,
    PlusPlus,
    Projected,
    Static,
)
from sfumato.pipeline import Pipeline, Sampling
from sfumato.registry import members
from sfumato.spec import as_spec, parse
from tests.tiny import FIELD, tiny_pipeline

NAMES = {"cfg", "apg", "cfg-zero", "cfg++", "auto", "pag", "chain"}


def test_all_have_names_and_say_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(members("guidance")) == NAMES and set(members("threshold")) == {"static", "dynamic"}
    assert cli.run(["show", "guidance", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert set(shown) == NAMES
    assert all(about["about"].endswith(".") and len(about["about"]) < 150 for about in shown.values())
    assert shown["apg"]["settings"] == {"scale": "5.0", "eta": "0.0", "norm": "none", "interval": "none"}


@pytest.mark.parametrize(
    "value",
    [
        ClassifierFree(2.0, interval=(-3.0, 3.0), rescale=0.5),
        Projected(4.0, eta=0.5, norm=3.0),
        PlusPlus(0.5),
        PerturbedAttention(2.0, (0, 1)),
        Chain(ClassifierFree(2.0), Chain(PerturbedAttention(), Projected())),
    ],
    ids=repr,
)
def test_settings_come_back(value: Guidance) -> None:
    sampling = Sampling(guidance=value, threshold=Dynamic(0.9))
    plain = json.loads(json.dumps(as_spec(sampling).to_dict()))
    assert parse(Sampling, plain).build() == sampling


def test_any_setting_can_be_overridden_by_its_path() -> None:
    spec = as_spec(Sampling())
    chain = spec.override("guidance", "{type: chain, first: {type: apg, scale: 4}, second: pag}")
    chain = chain.override("guidance.second.scale", "0.5").override("threshold", "dynamic")
    want = Sampling(guidance=Chain(Projected(4.0), PerturbedAttention(0.5)), threshold=Dynamic())
    assert chain.build() == want
    step_by_step = spec.override("guidance", "chain").override("guidance.first", "apg")
    step_by_step = step_by_step.override("guidance.first.scale", "4").override("guidance.second", "pag")
    step_by_step = step_by_step.override("guidance.second.scale", "0.5").override("threshold", "dynamic")
    assert step_by_step.build() == want
    with pytest.raises(UserError, match=r"can't be read; write \{type: NAME, setting: value, ...\}"):
        spec.override("guidance", "{type: chain, first: [")


def test_a_call_names_guidance_and_scale_apart() -> None:
    """A scale goes to the one that compares with anything; pag in the same chain keeps its own."""
    pipeline = tiny_pipeline(info=FIELD)
    chain = Chain(PerturbedAttention(0.5), Projected(9.0))
    got = pipeline("seven", guidance=chain, guidance_scale=2).media
    assert torch.equal(got, pipeline("seven", guidance=Chain(PerturbedAttention(0.5), Projected(2.0))).media)
    assert torch.equal(
        pipeline("seven", guidance="cfg", guidance_scale=1).media, pipeline("seven", guidance_scale=1).media
    )
    function = Classifier(lambda x, t: -x.square().flatten(1).sum(1), 0.0)
    assert torch.equal(pipeline("seven", guidance=function).media, pipeline("seven", guidance_scale=1).media)
    assert pipeline("seven", guidance=function).settings["guidance"] is function


def test_guidance_without_a_condition() -> None:
    """pag guides an unconditional model; for a conditional one its scale 0 still needs a prompt."""
    pipeline = tiny_pipeline("none", info=FIELD)
    plain = pipeline(n=2).media
    assert torch.equal(pipeline(n=2, guidance="pag", guidance_scale=0).media, plain)
    guided = pipeline(n=2, guidance="pag")
    assert not torch.equal(guided.media, plain) and torch.equal(pipeline(**guided.settings).media, guided.media)
    stored = Pipeline(pipeline.model, pipeline.spec, Sampling(steps=3, guidance=PerturbedAttention()))
    assert torch.equal(stored(n=2).media, guided.media)


def test_a_threshold_keeps_samples_in_range() -> None:
    """With static thresholding a high scale ends within the range of pixels before it is decoded."""
    pipeline = tiny_pipeline()
    x0: list[torch.Tensor] = []

    def look(pipe: Pipeline, step: int, t: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        x0.append(state["x"])

    made = pipeline("seven", n=4, guidance_scale=30, threshold=Static(), callback_on_step_end=look)
    bounds = pipeline.model.codec.bounds()
    assert bounds is not None and x0[-1].min() >= bounds[0][0] and x0[-1].max() <= bounds[1][0]
    assert torch.equal(pipeline(**made.settings).media, made.media) and made.settings["threshold"] == {"type": "static"}
    pipeline("seven", n=4, guidance_scale=30, callback_on_step_end=look)
    assert x0[-1].abs().max() > bounds[1][0]


@pytest.mark.parametrize(
    ("conditioner", "request_", "said"),
    [
        ("none", {"guidance": "apg"}, "guidance=apg: this model is unconditional, there is nothing to guide it by"),
        ("none", {"threshold": "static"}, "threshold=static: this codec's media have no range to keep to"),
        ("text", {"prompt": "7", "guidance": "cgf"}, "guidance: there is no guidance 'cgf'; did you mean 'cfg'?"),
        ("text", {"prompt": "7", "guidance": "cfg++", "guidance_scale": 3.0}, "guidance=3.0 is not a scale of cfg++"),
        ("text", {"prompt": "7", "guidance": "pag", "guidance_scale": -1.0}, "guidance=-1.0 is not a scale; 0 is no"),
        ("text", {"guidance": "pag", "guidance_scale": 0.0}, "asked by prompt=, and prompt= is missing"),
        ("text", {"prompt": "7", "guidance": "pag", "negative_prompt": "3"}, "negative_prompt= does nothing with guidance"),
        ("text", {"prompt": "7", "guidance": "auto"}, "guidance=auto needs a worse model; set guidance.model="),
        ("text", {"prompt": "7", "guidance": {"type": "chain", "first": "cfg"}}, "needs the setting 'second'"),
        ("text", {"prompt": "7", "threshold": "statik"}, "threshold: there is no threshold 'statik'; did you mean 'static'?"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_one_sentence(conditioner: str, request_: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        tiny_pipeline(conditioner, info=FIELD)(**request_)
    assert said in str(caught.value) and "\n" not in str(caught.value)


# ---------------------------------------------------------------- the command line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_pipeline(network="unet").save_pretrained(tmp_path / "tiny")
    return tmp_path


def sampled(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.run(["sample", "tiny", "seven", "n=1", "--json", *words]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_command_line_names_guidance_or_scales(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = sampled(capsys, "guidance=apg", "guidance.scale=4", "threshold=dynamic", "threshold.quantile=0.9", "-o", "a")
    settings = made["settings"]
    assert settings["guidance"] == {"type": "apg", "scale": 4.0, "eta": 0.0, "norm": None, "interval": None}
    assert settings["threshold"] == {"type": "dynamic", "quantile": 0.9} and settings["guidance_scale"] == 4.0
    python = Pipeline.from_pretrained("tiny")("seven", guidance=Projected(4.0), threshold=Dynamic(0.9)).media
    from sfumato import media

    assert (folder / made["files"][0]).is_file()
    assert list(media.to_image(python[0]).tobytes()) == list(_pixels(folder / made["files"][0]))
    scales = sampled(capsys, "guidance=2", "-o", "b")["settings"]
    assert scales["guidance_scale"] == 2.0 and scales["guidance"]["type"] == "cfg"
    chain = sampled(capsys, "guidance={type: chain, first: cfg, second: pag}", "guidance.second.scale=2", "-o", "c")
    assert chain["settings"]["guidance"]["second"] == {"type": "pag", "scale": 2.0, "blocks": None}
    assert sampled(capsys, "guidance=none", "-o", "d")["settings"]["guidance"] is None


def _pixels(file: Path) -> bytes:
    from PIL import Image

    return Image.open(file).tobytes()


def test_mistakes_on_the_command_line_are_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word, said in (
        ("guidance=cgf", "must be a number, or several with commas, or the name of a guidance; did you mean 'cfg'?"),
        ("guidance=apg,2", "guidance=apg,2: must be a number, or several with commas, or the name of a guidance"),
        ("guidance={type: cfg, scael: 2}", "guidance.scael: cfg has no setting 'scael'; did you mean 'scale'?"),
        ("threshold=statik", "threshold: there is no threshold 'statik'; did you mean 'static'?"),
        ("guidance=auto", "guidance=auto needs a worse model; set guidance.model= to a run"),
    ):  # fmt: skip
        capsys.readouterr()
        assert cli.run(["sample", "tiny", "seven", word]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
        assert not (folder / "samples").exists()
