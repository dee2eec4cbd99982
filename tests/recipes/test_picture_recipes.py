"""Models asked by a picture: from training to the command line, with tiny budgets."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sfumato import cli
from sfumato.conditioners import Label, Picture, Together
from sfumato.data import Pictured, Solids
from sfumato.data.voxel_files import write_stored
from sfumato.editing import edit
from sfumato.errors import Interrupted
from sfumato.pipeline import Pipeline
from sfumato.recipes import load_recipe, prepare, trainer
from sfumato.recipes.load import read_recipe
from sfumato.solid.views import draw
from sfumato.solid.vox import read_vox
from sfumato.spec import Spec, dump_yaml

SMALL = {"samples": "32", "batch": "8", "evaluations": "1", "pictures": "1", "width": "16", "sampling.steps": "2"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    spec = load_recipe("solids", {"condition": "picture", **SMALL})
    spec = spec.override("data.data.count", 200)
    trainer(spec, folder / "run", device="cpu").fit()
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, index in (("chair.png", 3), ("table.png", 5)):
        model = Solids(count=9).fetch([index]).media[0].numpy()
        Image.fromarray(draw(model, 64).transpose(1, 2, 0)).save(name)
    return place / "run"


def said(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = cli.run([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_file_is_asked_by_as_the_tensor_in_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = said(capsys, "sample", run, "picture=chair.png", "n=1", "-o", "chair.vox")
    assert code == 0, error
    pixels = torch.from_numpy(np.asarray(Image.open("chair.png")).copy()).permute(2, 0, 1)[None]
    pipeline = Pipeline.from_pretrained(run)
    by_tensor = pipeline(given={"picture": pixels}, output_type="pt").media[0]
    assert np.array_equal(read_vox(Path("chair.vox"))[3], by_tensor[3].numpy())
    by_image = pipeline(given={"picture": Image.open("chair.png")}, output_type="pt").media[0]
    assert torch.equal(by_tensor, by_image)


def test_several_pictures_are_several_prompts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = said(capsys, "sample", run, "picture=chair.png,table.png", "n=2", "-o", "out")
    assert code == 0, error
    assert sorted(p.name for p in Path("out").glob("*.vox")) == [
        "000000-chair.vox", "000001-chair.vox", "000002-table.vox", "000003-table.vox",
    ]  # fmt: skip
    made = Pipeline.from_pretrained(run)(given={"picture": ["chair.png", "table.png"]}, n=2, output_type="pt")
    assert made.prompts == ("chair", "chair", "table", "table")
    alone = Pipeline.from_pretrained(run)(given={"picture": "table.png"}, seed=2, output_type="pt")
    assert torch.equal(made.media[2], alone.media[0])
    json.dumps(made.settings)


def test_another_picture_of_the_same_name_is_another_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "sample", run, "picture=chair.png", "n=2", "-o", "out")[0] == 0
    again = json.loads(said(capsys, "sample", run, "picture=chair.png", "n=2", "-o", "out", "--json")[1])
    assert (again["written"], again["already_there"]) == (0, 2)
    shutil.copy("table.png", "chair.png")
    code, _, error = said(capsys, "sample", run, "picture=chair.png", "n=2", "-o", "out")
    assert code == 2 and "samples of other settings" in error and "picture" in error


def test_without_guidance_s_condition_it_is_the_null_condition(run: Path) -> None:
    pipeline = Pipeline.from_pretrained(run)
    conditioner = pipeline.model.conditioner
    assert conditioner is not None
    anything = pipeline(guidance_scale=0, seed=4, output_type="pt")
    asked = pipeline(given={"picture": "chair.png"}, guidance_scale=0, seed=4, output_type="pt")
    assert torch.equal(anything.media, asked.media)
    _, cond = pipeline.guided(pipeline.plan(guidance_scale=0))
    assert cond is not None and cond.tokens is not None
    assert torch.equal(cond.tokens, conditioner.null(1).tokens)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["picture=none.png"], "picture=none.png: there is no such file"),
        (["picture=notes.txt"], "not a PNG, JPEG"),
        (["a red ball"], "prompt= can't be given to this model; ask it by picture="),
        ([], "picture= is missing; give it a file"),
        (["picture=chair.png", "reference=a.wav"], "reference= can't be given to this model"),
        (["pictur=chair.png"], "picture"),
    ],
)
def test_what_can_t_be_asked(run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    Path("notes.txt").write_text("not a picture")
    code, _, error = said(capsys, "sample", run, *arguments, "n=1", "-o", "a.vox")
    assert code == 2 and words in error
    assert not Path("a.vox").exists()


def test_the_run_shows_and_scores_itself(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (run / "samples" / "strip.png").is_file()
    asked = json.loads((run / "samples" / "asked.json").read_text())
    assert asked["request"] == {} and all(asked["words"])
    assert (
        "picture=FILE" in said(capsys, "show", run)[1] or '"picture": "FILE"' in (run / "model/README.md").read_text()
    )
    code, out, error = said(capsys, "eval", run, "--json", "captions=3", "voxels.steps=1")
    assert code == 0, error
    found = json.loads(out)
    assert set(found["metrics"]) == {"prompt_accuracy", "prompt_accuracy_seen", "single_component"}
    assert found["metrics"]["prompt_accuracy"]["real"] == 1
    assert "given" not in found["settings"]["voxels"]


def test_a_resumed_run_is_an_uninterrupted_one(place: Path, tmp_path: Path) -> None:
    class StopAtHalf:
        def update(self, done: float, samples: int, left: Any, loss: Any, rate: Any) -> None:
            if samples == 16:
                signal.raise_signal(signal.SIGINT)

        def say(self, text: str) -> None:
            pass

        def close(self) -> None:
            pass

    spec = read_recipe(place / "run" / "recipe.yaml")
    with pytest.raises(Interrupted):
        trainer(spec, tmp_path / "run", device="cpu", display=StopAtHalf()).fit()
    trainer(spec, tmp_path / "run", device="cpu").fit()
    ours, reference = (load_file(folder / "run" / "model" / "model.safetensors") for folder in (tmp_path, place))
    assert ours.keys() == reference.keys()
    assert [name for name in ours if not torch.equal(ours[name], reference[name])] == []


def test_recipes_name_the_picture(tmp_path: Path) -> None:
    data = Solids(count=40)
    write_stored(tmp_path / "models.npz", data.fetch(np.arange(40)).media.numpy(), caption=["a thing"] * 40)
    spec = load_recipe("voxels", {"data": str(tmp_path / "models.npz"), "size": "xs", "condition": "picture"})
    assert spec.data.cls is Pictured and spec.conditioner.cls is Picture and spec.conditioner.crop
    assert read_recipe_of(spec, tmp_path) == spec
    made = prepare(spec)
    batch = made.data.fetch([0, 1], np.asarray([0.2, 0.6]))
    cond = made.task.model.condition(batch.conditions)
    assert cond is not None and cond.tokens is not None and cond.tokens.shape[0] == 2


def read_recipe_of(spec: Any, folder: Path) -> Any:
    (folder / "recipe.yaml").write_text(dump_yaml(spec))
    return read_recipe(folder / "recipe.yaml")


def test_two_conditions_are_shown_and_asked_together(tmp_path: Path) -> None:
    """Runs of several columns: what their pictures are asked for is that of held-out items."""
    models = Solids(count=40, pairs=0.0)
    kinds = [models.describe(i).things[0].shape for i in range(40)]
    write_stored(tmp_path / "models.npz", models.fetch(np.arange(40)).media.numpy(), category=kinds)
    spec = load_recipe(
        "voxels", {"data": str(tmp_path / "models.npz"), "size": "xs", "condition": "picture", "samples": "8"}
    )
    both = Spec(Together, first=Spec(Label, width=8), second=Spec(Picture, width=16, heads=2))
    spec = (
        spec.with_(conditioner=both)
        .override("train.batch", 8)
        .override("sampling.steps", 1)
        .override("train.evaluations", 0)
    )
    trainer(spec, tmp_path / "run", device="cpu").fit()
    asked = json.loads((tmp_path / "run" / "samples" / "asked.json").read_text())
    assert set(asked["request"]) == {"label"} and set(asked["words"]) <= set(kinds)


def test_a_part_is_completed_as_the_picture_shows(run: Path) -> None:
    part = Solids(count=3, pairs=0.0).fetch([1]).media
    known = torch.zeros(1, 1, 16, 16, 16, dtype=torch.bool)
    known[..., :5] = True
    pipeline = Pipeline.from_pretrained(run)
    made, other = (
        edit(pipeline, part, known=known, given={"picture": name}).media for name in ("chair.png", "table.png")
    )
    assert torch.equal(made[..., :5], part[..., :5]) and torch.equal(other[..., :5], part[..., :5])
