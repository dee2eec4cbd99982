"""`sfumato sample` from tiny runs: files, folders, what was cut short."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.kinds import Picture
from tests.cli.tiny import files


def test_sample_writes_pictures_that_say_what_they_are(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    said = do("sample", "runs/digits", "a handwritten seven", "3", "n=2", "seed=5", "guidance=2", "-o", "out")
    assert said.code == 0 and "4 samples in" in said.out and "out/grid.png" in said.out
    names = sorted(file.name for file in (here / "out").iterdir())
    assert names == [
        "000005-a-handwritten-seven.png", "000006-a-handwritten-seven.png", "000007-3.png", "000008-3.png",
        "grid.png", "samples.json",
    ]  # fmt: skip
    with Image.open(here / "out" / names[1]) as picture:
        assert (
            picture.size == (8, 8) and picture.text["prompt"] == "a handwritten seven" and picture.text["seed"] == "6"
        )
        settings = json.loads(picture.text["settings"])
    assert settings["guidance_scale"] == 2.0 and settings["steps"] == 2 and settings["solver"]["type"] == "exp-adams"
    from sfumato import Pipeline

    again = Pipeline.from_pretrained("runs/digits")("a handwritten seven", seed=6, guidance_scale=2).media[0, 0]
    assert np.array_equal(np.asarray(Image.open(here / "out" / names[1])), again.numpy())


def test_sampling_goes_on_where_it_stopped(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    command = ["sample", "digits", "seven", "seed=0:6", "batch=4", "-o", "out", "--json"]
    first = json.loads(do(*command).out)
    assert (first["written"], first["already_there"], first["n"]) == (6, 0, 6)
    before = files(here / "out")
    (here / "out/000002-seven.png").unlink()
    whole = (here / "out/000004-seven.png").read_bytes()
    (here / "out/000004-seven.png").write_bytes(whole[:-20])  # a copy cut short
    second = json.loads(do(*command).out)
    assert (second["written"], second["already_there"]) == (2, 4)
    assert files(here / "out") == before
    more = json.loads(do("sample", "digits", "seven", "seed=0:8", "-o", "out", "--json").out)
    assert (more["written"], more["already_there"]) == (2, 6)
    other = do(*command, "steps=3")
    assert other.code == 2 and "out holds samples of other settings (steps: 2 -> 3); choose another folder" in other.err


def test_without_o_samples_of_other_settings_get_a_folder_of_their_own(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    outs = [
        json.loads(do("sample", "digits", "7", "n=1", "--json", *more).out)["out"] for more in ([], ["steps=3"], [])
    ]
    assert outs == ["samples/digits", "samples/digits-2", "samples/digits"]


def test_ctrl_c_while_sampling_keeps_what_is_there(here: Path, do, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    real, calls = Picture.encode, [0]

    def save(*arguments, **more):  # type: ignore[no-untyped-def]
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    monkeypatch.setattr(Picture, "encode", save)
    said = do("sample", "digits", "7", "n=4", "-o", "out")
    assert said.code == 75 and "2 of 4 samples are in out; run the same command to go on" in said.err
    monkeypatch.undo()
    assert json.loads(do("sample", here / "runs/digits", "7", "n=4", "-o", here / "out", "--json").out)["written"] == 2


def test_one_file(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    assert do("sample", "digits", "7", "n=1", "-o", "one.png").code == 0
    assert Image.open(here / "one.png").size == (8, 8)
    assert do("sample", "digits", "7", "3", "n=3", "-o", "sheets/many.png").code == 0
    sheet = Image.open(here / "sheets/many.png")
    assert sheet.width > 3 * 8 and sheet.text["prompt"] == "7; 3"
    assert do("sample", "digits", "7", "n=3", "-o", "all.npy").code == 0
    assert np.load(here / "all.npy").shape == (3, 1, 8, 8)
    assert sorted(e.name for e in here.iterdir()) == ["all.npy", "one.png", "runs", "sheets"]


def test_a_model_of_classes_shows_all_of_them_and_takes_names(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    said = json.loads(do("sample", "labels", "n=1", "--json").out)
    assert said["n"] == 10 and said["files"][3].endswith("000003-3.png")
    some = json.loads(do("sample", "labels", "label=7,2", "n=2", "-o", "out", "--json").out)
    assert [Path(name).stem for name in some["files"]] == ["000000-7", "000001-7", "000002-2", "000003-2"]
    assert do("sample", "labels", "guidance=0", "n=1", "-o", "any.png").code == 0


def test_arrays_are_written_as_npy(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    np.save(here / "waves.npy", np.random.default_rng(0).normal(size=(40, 1, 16)).astype(np.float32))
    quick = ["network.width=8", "batch=8", "samples=16", "train.pictures=0", "train.evaluations=0", "steps=2"]
    assert do("train", "image", "data=waves.npy", "layout=first", *quick).code == 0
    said = json.loads(do("sample", "waves", "n=3", "-o", "out", "--json").out)
    assert [Path(name).name for name in said["files"]] == ["000000.npy", "000001.npy", "000002.npy"]
    assert np.load(here / "out/000001.npy").shape == (1, 16) and (here / "out/grid.png").is_file()
    assert json.loads(do("sample", "waves", "n=3", "-o", "out", "--json").out)["written"] == 0


def test_settings_of_solver_and_guidance_by_their_paths(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    said = do(
        "sample", "digits", "7", "n=1", "solver=ddim", "solver.eta=1", "guidance.rescale=0.5", "-o", "o", "--json"
    )
    settings = json.loads(said.out)["settings"]
    assert settings["solver"] == {"type": "ddim", "eta": 1.0} and settings["guidance"]["rescale"] == 0.5
    off = json.loads(do("sample", "digits", "7", "n=1", "guidance=none", "-o", "p", "--json").out)
    assert off["settings"]["guidance"] is None
