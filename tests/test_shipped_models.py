"""The models that come with the package: small, whole, free of the place that they were made in, and asked from anywhere."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from sfumato import modelfolder
from sfumato.cli import run
from sfumato.evaluate.judge import Judge
from sfumato.files import verify_manifest
from sfumato.kinds import kind_of
from sfumato.pipeline import Pipeline
from sfumato.solid.grid import component_sizes

MIB = 1 << 20
LIMITS = {"speech": 5 * MIB, "voxels": 5 * MIB}  # of the files that sampling reads
JUDGES = {"speech": ("judges/label", "judges/speakers"), "voxels": ("judge",)}
SHAPES = {"speech": (1, 8192), "voxels": (4, 32, 32, 32)}
PROMPTS = {"speech": "theo says seven", "voxels": "a pine tree"}
LICENCES = {
    "speech": ("CC BY-SA 4.0", "Zohar Jackson", "https://github.com/Jakobovski/free-spoken-digit-dataset"),
    "voxels": ("CC BY 4.0", "Mike Judge", "CC0 1.0", "Quaternius", "KayKit", "Kenney"),
}
names = pytest.mark.parametrize("name", LIMITS)


@names
def test_a_model_that_ships_is_small_whole_and_listed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = modelfolder.SHIPPED / name
    assert name in modelfolder.shipped()
    assert sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) <= LIMITS[name]
    judges = [folder / judge for judge in JUDGES[name]]
    assert sum(file.stat().st_size for judge in judges for file in judge.iterdir()) <= MIB
    for part in (folder, *judges):
        verify_manifest(part)
    assert run(["models", "--json"]) == 0
    assert name in [row["name"] for row in json.loads(capsys.readouterr().out) if row["from"] == "ships"]


@names
def test_its_card_names_the_sources_and_its_settings_no_place(name: str) -> None:
    folder = modelfolder.SHIPPED / name
    card = " ".join((folder / "README.md").read_text(encoding="utf-8").split())
    for words in (*LICENCES[name], "## Scores", "## Limits", f"`sfumato eval {name} data="):
        assert words in card
    config = modelfolder.read_config(folder)
    assert "weights" not in config["model"]["codec"] and "/" not in json.dumps(config)
    assert f"{config['trained']['samples']:,} samples" in card and config["trained"]["machine"] in card


@names
def test_two_steps_from_any_folder_give_the_shape_that_it_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline = Pipeline.load(name)
    made = pipeline(PROMPTS[name], n=2, seed=4, num_inference_steps=2, output_type="pt").media
    assert made.shape == (2, *SHAPES[name]) and made.dtype == getattr(torch, kind_of(pipeline.model.info).dtype)
    assert not torch.equal(made[0], made[1])
    again = pipeline(PROMPTS[name], seed=5, num_inference_steps=2, output_type="pt").media
    torch.testing.assert_close(again[0].float(), made[1].float(), atol=1e-3 if name == "speech" else 1.0, rtol=0)


def test_its_judges_hear_the_digit_and_the_voice_that_were_asked_for() -> None:
    judges = {c: Judge.load(modelfolder.SHIPPED / "speech" / "judges" / c) for c in ("label", "speakers")}
    voices, words = judges["speakers"].classes, judges["label"].classes
    assert len(voices) == 6 and words[7] == "seven"
    prompts = [f"{voice} says {words[i]}" for i, voice in enumerate(voices)]
    made = Pipeline.load("speech")(prompts, seed=0, output_type="pt").media
    assert made.abs().amax() <= 1
    assert judges["label"].predict(made).tolist() == judges["speakers"].predict(made).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_tree_in_one_file_opens_and_is_watertight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trimesh = pytest.importorskip("trimesh")
    monkeypatch.chdir(tmp_path)
    assert run(["sample", "voxels", "a pine tree", "surface=smooth", "steps=4", "-o", "tree.glb"]) == 0
    scene = trimesh.load(io.BytesIO(Path("tree.glb").read_bytes()), file_type="glb")
    assert all(mesh.is_watertight for mesh in scene.geometry.values()) and len(scene.geometry) == 1
    made = Pipeline.load("voxels")("a pine tree", seed=0, num_inference_steps=4, output_type="pt").media
    there = made[0, 3] > 127
    assert component_sizes(there[None])[0][0] > 50
    assert Judge.load(modelfolder.SHIPPED / "voxels" / "judge").predict(made).shape == (1,)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["speech"], "prompt= is missing"),
        (["speech", "theo says seven " * 8], "is 127 bytes long and this model reads 48"),
        (["speech", "theo says seven", "seconds=0"], "seconds=0: must be above 0"),
        (["voxels", "a pine tree", "-o", "tree.mp3"], "samples are written as"),
        (["voxels", "a pine tree", "a house", "-o", "tree.glb"], "holds one sample, and 2 are asked for"),
    ],
)
def test_what_it_cannot_be_asked_is_the_users_mistake(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["sample", *words]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())
