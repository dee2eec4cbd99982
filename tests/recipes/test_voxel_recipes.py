"""Voxel recipes, the demo and the command line: what is trained, sampled into which file, and scored, with tiny budgets."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from sfumato import cli
from sfumato.core import X0
from sfumato.data import Digits, Solids, Voxels
from sfumato.data.voxel_files import write_stored
from sfumato.editing import edit
from sfumato.errors import UserError
from sfumato.pipeline import Pipeline
from sfumato.recipes import demo_voxels, load_recipe, prepare, solids, trainer
from sfumato.recipes.demo_voxels import run_voxel_demo
from sfumato.recipes.judges_voxels import voxel_judge_of
from sfumato.solid.vox import read_vox, write_vox
from sfumato.spec import Spec


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with voxel models and a run of them."""
    folder = tmp_path_factory.mktemp("voxels")
    data = Solids(count=40, pairs=0.0)
    index = np.arange(40)
    captions = [str(c) for c in data.columns(index)["caption"]]
    kinds = [data.describe(i).things[0].shape for i in range(40)]
    write_stored(folder / "models.npz", data.fetch(index).media.numpy(), caption=captions, category=kinds)
    settings = {"size": "xs", "samples": "16", "batch": "8", "evaluations": "0", "pictures": "1"}
    spec = load_recipe("voxels", {"data": str(folder / "models.npz"), **settings, "sampling.steps": "2"})
    trainer(spec, folder / "run", device="cpu").fit()
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return place / "run"


def said(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = cli.run([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_run_has_models_to_turn_about(run: Path) -> None:
    report = (run / "report.html").read_text()
    assert report.count('<canvas class="voxels"') == 2  # one for each held-out caption
    assert "script-src 'sha256-" in report
    view = json.loads((run / "samples" / "view.json").read_text())
    assert view["kind"] == "voxels"
    assert sorted(run.glob("samples/step-*.png"))


def test_the_suffix_decides_the_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = said(capsys, "sample", run, "a red ball", "n=1", "-o", "one.vox")
    assert code == 0, error
    made = Pipeline.from_pretrained(run)("a red ball", output_type="pt").media[0].numpy()
    assert np.array_equal(read_vox(Path("one.vox"))[3], made[3])
    assert said(capsys, "sample", run, "a red ball", "n=2", "-o", "two.png")[0] == 0
    assert said(capsys, "sample", run, "a red ball", "n=2", "-o", "two.npy")[0] == 0
    assert np.load("two.npy").shape == (2, 4, 16, 16, 16)


def test_meshes_by_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trimesh = pytest.importorskip("trimesh")
    arguments = ["sample", run, "a red ball", "n=1", "guidance=0", "seed=3"]
    full = Pipeline.from_pretrained(run)("a red ball", guidance_scale=0, seed=3, output_type="pt").media[0, 3].any()
    code, _, error = said(capsys, *arguments, "surface=smooth", "-o", "one.glb")
    if not full:
        assert code == 2
        assert "empty" in error
        return
    assert code == 0, error
    assert trimesh.load("one.glb", force="mesh").is_watertight


def test_a_folder_has_a_file_a_sample_and_goes_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "sample", run, "a red ball", "n=3", "-o", "out", "--json")[0] == 0
    files = sorted(Path("out").glob("*.vox"))
    assert len(files) == 3
    assert Path("out/grid.png").is_file()
    files[1].unlink()
    again = json.loads(said(capsys, "sample", run, "a red ball", "n=3", "-o", "out", "--json")[1])
    assert (again["written"], again["already_there"]) == (1, 2)
    assert files[1].is_file()


def test_a_partial_shape_is_completed_and_stays(run: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = Pipeline.from_pretrained(run)
    part = Solids(count=3, pairs=0.0).fetch([1]).media
    known = torch.zeros(1, 1, 16, 16, 16, dtype=torch.bool)
    known[..., :5] = True
    made = edit(pipeline, part, known=known, prompt="a red ball", n=2).media
    assert torch.equal(made[..., :5], part[..., :5].expand(2, -1, -1, -1, -1))
    assert not torch.equal(made[..., 5:], part[..., 5:].expand(2, -1, -1, -1, -1))
    small = part[0, :, 4:12, 4:12, :9].numpy()  # smaller than the model's grid: it is put in the middle
    Path("part.vox").write_bytes(write_vox(small))
    code, _, error = said(
        capsys, "sample", run, "a red ball", "n=1", "init=part.vox", "keep=z:0:0.3", "-o", "whole.vox"
    )
    assert code == 0, error
    assert np.array_equal(read_vox(Path("whole.vox"))[3, ..., :5], part[0, 3, ..., :5].numpy())
    for keep in ("z", "w:0:1", "z:0.5:0.2", "z:0:2", "z:a:b"):
        code, _, error = said(capsys, "sample", run, "a red ball", "init=part.vox", f"keep={keep}")
        assert code == 2
        assert "AXIS:FROM:TO" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "a.glb", "n=2"], "holds one sample"),
        (["-o", "a.jpg", "n=1"], "are written as"),
        (["-o", "a.glb", "n=1", "surface=round"], "cubes or closed or smooth"),
        (["format=gif"], "written as vox"),
    ],
)
def test_what_can_t_be_written(run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    code, _, error = said(capsys, "sample", run, "a red ball", *arguments)
    assert code == 2
    assert words in error


def test_eval_says_all_scores_beside_real_ones(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Voxels(path=str(run.parent / "models.npz"))
    voxel_judge_of(data, Path("judge"), epochs=1, width=2, device="cpu")
    settings = ["each=1", "points=16", "n=2", "voxels.steps=1", "judge=judge"]
    code, out, error = said(capsys, "eval", run, "--json", "metrics=voxels", *settings)
    assert code == 0, error
    found = json.loads(out)
    names = {f"{kind}_{space}" for kind in ("mmd", "cov", "nna") for space in ("iou", "cd")}
    assert names | {"category_accuracy", "single_component", "watertight", "near_copies"} == set(found["metrics"])
    assert all(score["real"] is not None for score in found["metrics"].values())
    assert found["features"]["sha256"]


def test_recipes_fit_the_network_to_the_size_of_the_grid(place: Path) -> None:
    models = {"data": str(place / "models.npz"), "size": "xs"}
    tokens = [load_recipe("voxels", {**models, "data.size": side}).network.patch for side in ("16", "32", "64")]
    assert tokens == [2, 4, 8]
    spec = load_recipe("voxels", {**models, "data.size": "32", "network": "unet"})
    made = prepare(spec.override("data.data.size", "32"))
    assert isinstance(made.task.model.denoiser.parameterization, X0)
    assert made.task.model.codec.shape == (32, 16, 16, 16)
    shipped = Pipeline.load("voxels")
    ships = load_recipe("voxels", {"data": str(place / "models.npz")})
    assert shipped.spec.network == ships.network.override("patch", 4) and shipped.sampling == ships.sampling.build()
    assert shipped.spec.codec == ships.codec and shipped.spec.conditioner == ships.conditioner
    with pytest.raises(UserError, match="is for voxel models"):
        load_recipe("voxels", {"data": "digits"})


def test_the_demo_trains_reads_and_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = solids(minutes=0.02).override("train.evaluations", 0).override("sampling.steps", 2)
    monkeypatch.setattr(demo_voxels, "solids", lambda **dials: quick)

    def once() -> list[str]:
        console = Console(file=io.StringIO(), width=80)
        code = run_voxel_demo(tmp_path, console, minutes=0.02, each=4)
        lines: list[str] = console.file.getvalue().strip().splitlines()  # type: ignore[attr-defined]
        assert code == 1  # a second of training does not reach the score
        return lines

    first = once()
    assert "Score:" in first[-2]
    folder = tmp_path / "demo-voxel"
    assert read_vox(folder / "solid.vox").shape == (4, 16, 16, 16)
    assert json.loads((folder / "summary.json").read_text())["samples"] == 8
    metrics = (folder / "metrics.jsonl").read_text()
    again = once()
    assert again[-4:] == first[-4:]
    assert (folder / "metrics.jsonl").read_text() == metrics


def test_the_recipe_of_the_demo_is_what_it_says() -> None:
    spec = solids(minutes=1)
    assert isinstance(spec, Spec)
    assert spec.data.build().pairs == 0
    assert torch.is_tensor(next(prepare(spec).task.model.parameters()))
    assert Digits().info.kind == "image"
