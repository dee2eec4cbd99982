"""Sounds asked by a clip: the voice of a reference says what the words say, with tiny budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato import cli
from sfumato.conditioners import Reference, Together
from sfumato.data import Referenced
from sfumato.pipeline import Pipeline
from sfumato.recipes import load_recipe, prepare, trainer
from sfumato.recipes.load import read_recipe
from sfumato.sound import write_wav
from sfumato.spec import dump_yaml
from tests.recipes.test_sound_recipes import speech

SMALL = {"samples": "8", "batch": "4", "evaluations": "1", "pictures": "1", "size": "xs", "sampling.steps": "1"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    settings = {"data": str(speech(folder)), "condition": "reference", **SMALL, "network.width": "16"}
    trainer(load_recipe("digits-speech", settings), folder / "run", device="cpu").fit()
    return folder / "run"


def said(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = cli.run([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_words_say_what_and_the_clip_says_who(run: Path) -> None:
    spec = read_recipe(run / "recipe.yaml")
    assert spec.data.cls is Referenced and spec.data.by == "speakers" and spec.conditioner.cls is Together
    data = spec.data.build()
    assert data.columns([7])["caption"] == ["seven"]
    speakers = data.column("speakers")
    assert (speakers[data.others(np.arange(len(data)))] == speakers).all()


def test_a_clip_is_asked_by_as_the_samples_in_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = (0.2 * torch.randn(1, 3000, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    (tmp_path / "clip.wav").write_bytes(write_wav(clip.numpy(), 8000))
    code, _, error = said(
        capsys, "sample", run, "seven", f"reference={tmp_path / 'clip.wav'}", "n=1", "-o", tmp_path / "a.npy"
    )
    assert code == 0, error
    padded = torch.nn.functional.pad(clip.mul(32767).round().div(32768), (0, 8192 - 3000))
    pipeline = Pipeline.from_pretrained(run)
    ours = pipeline("seven", given={"reference": padded[None]}, output_type="pt").media[0].numpy()
    assert np.allclose(np.load(tmp_path / "a.npy")[0], ours, atol=1e-3)
    out = pipeline(["seven", "two"], given={"reference": str(tmp_path / "clip.wav")}, output_type="pt")
    assert out.prompts == ("seven, clip", "two, clip")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["seven"], "reference= is missing; give it a file"),
        (["seven", "reference=none.wav"], "reference=none.wav: there is no such file"),
        (["seven", "reference=text.wav"], "reference=text.wav: "),
        (["seven", "reference=clip.wav", "picture=a.png"], "picture= can't be given to this model"),
    ],
)
def test_what_can_t_be_asked(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.wav").write_text("not a sound")
    Path("clip.wav").write_bytes(write_wav(np.zeros((1, 100), np.float32), 8000))
    code, _, error = said(capsys, "sample", run, *arguments, "n=1", "-o", "a.wav")
    assert code == 2 and words in error


def test_any_sounds_by_a_clip_of_their_class(tmp_path: Path) -> None:
    settings = {"data": str(speech(tmp_path)), "label": "families", "data.seconds": "0.25", "condition": "reference"}
    spec = load_recipe("sounds", settings)
    (tmp_path / "recipe.yaml").write_text(dump_yaml(spec))
    assert read_recipe(tmp_path / "recipe.yaml") == spec
    made = prepare(spec)
    assert isinstance(made.task.model.conditioner, Reference) and made.data.info.numbers == ()
    batch = made.data.fetch([0, 1], np.asarray([0.3, 0.9]))
    cond = made.task.model.condition(batch.conditions)
    assert cond is not None and cond.vector is not None and cond.vector.shape == (2, 96)
