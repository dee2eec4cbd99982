"""`sfumato train` on a tiny run: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.cli.tiny import TRAIN, files


def test_train_writes_a_run_and_says_how_to_go_on(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    shutil.rmtree(here / "runs" / "digits")
    said = do(*TRAIN, "samples=64")
    assert said.code == 0
    for expected in (
        "data    digits: 1,438 items of 1 x 8 x 8 to train on, 359 held out",
        "asked by prompt",
        "budget  64 samples, batches of 16",
        "trained for",
        "on 64 samples, loss",
        "runs/digits/report.html",
        "next      sfumato sample runs/digits 'a handwritten",
    ):
        assert expected in said.out
    names = {entry.name for entry in (here / "runs" / "digits").iterdir()}
    assert {"recipe.yaml", "env.json", "metrics.jsonl", "checkpoints", "report.html", "model"} <= names
    command = re.search(r"next +(sfumato .*)", said.out)
    assert command is not None
    import shlex

    assert do(*shlex.split(command[1])[1:], "n=1", "-o", "x.png").code == 0


def test_the_same_command_again_resumes_or_says_that_it_is_finished(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    weights = (here / "runs/digits/model/model.safetensors").read_bytes()
    again = do(*TRAIN, "samples=64")
    assert again.code == 0
    assert "the run 'runs/digits' is finished; raise its minutes= or samples= to go on" in again.err.replace("\n", " ")
    assert (here / "runs/digits/model/model.safetensors").read_bytes() == weights
    more = do("train", "runs/digits", "samples=96", "--json")
    assert more.code == 0 and json.loads(more.out)["samples"] == 96
    assert "going on from 64 samples" in more.err
    by_name = do("train", "labels", "samples=48", "--json")
    assert json.loads(by_name.out)["run"] == "runs/labels" and json.loads(by_name.out)["samples"] == 48


def test_fresh_deletes_what_the_run_wrote_and_says_so(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    (here / "runs/digits/notes.txt").write_text("mine")
    said = do(*TRAIN, "samples=32", "seed=9", "--fresh")
    assert said.code == 0
    assert re.search(r"--fresh: removed .*checkpoints.* of runs/digits", said.out)
    assert "on 32 samples" in said.out and (here / "runs/digits/notes.txt").read_text() == "mine"


def test_other_settings_are_each_named_and_the_run_is_left_alone(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    before = files(here)
    said = do(*TRAIN, "samples=64", "seed=9", "lr=0.5")
    assert said.code == 2 and "seed: 0 -> 9" in said.err and re.search(r"train\.lr: [\d.]+ -> 0\.5", said.err)
    assert "--fresh" in said.err and "name=" in said.err and "init=runs/digits" in said.err
    assert files(here) == before


def test_init_starts_a_new_run_from_the_weights_of_another(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    said = do(*TRAIN, "samples=32", "init=runs/digits", "name=tuned", "--json")
    assert said.code == 0 and json.loads(said.out)["run"] == "runs/tuned"
    assert "init: runs/digits" in (here / "runs/tuned/recipe.yaml").read_text()
    itself = do(*TRAIN, "samples=32", "init=runs/digits", "--fresh")
    assert itself.code == 2 and "a run can't start from itself" in itself.err
    assert (here / "runs/digits/model/config.json").is_file()


def test_a_dry_run_shows_settings_and_costs_and_writes_nothing(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    before = files(here)
    said = do(*TRAIN, "samples=640", "--dry-run")
    assert said.code == 0 and files(here) == before
    for expected in (
        "type: diffusion",
        "width: 8",
        "memory  about",
        "s a step",
        "for 640 samples",
        "nothing was written",
    ):
        assert expected in said.out
    plain = json.loads(do(*TRAIN, "samples=640", "--dry-run", "--json").out)
    assert plain["samples"] == 640 and plain["parameters"] > 1000 and plain["settings"]["network"]["width"] == 8


def test_a_recipe_file_trains(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    text = (here / "runs/digits/recipe.yaml").read_text().replace("title: digits", "title: from file")
    (here / "mine.yaml").write_text(text)
    said = do("train", "mine.yaml", "samples=32", "--json")
    assert said.code == 0 and json.loads(said.out)["run"] == "runs/from-file"


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sfumato", *TRAIN, "samples=2000000"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "runs/digits/metrics.jsonl"
    until = time.monotonic() + 60
    while not (metrics.is_file() and metrics.stat().st_size) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    said = re.search(r"saved at ([\d,]+) samples; run the same command to go on", err)
    assert said is not None and "Traceback" not in err
    state = json.loads((tmp_path / "runs/digits/state.json").read_text())
    assert state["state"] == "interrupted" and state["samples"] == int(said[1].replace(",", ""))
