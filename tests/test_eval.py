"""`sfumato eval`: what it prints, keeps and refuses, on a tiny run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfumato import cli
from sfumato.data import Digits
from sfumato.evaluate import OdeLikelihood, VariationalBound, held_out_loss, nll
from sfumato.pipeline import Pipeline

TINY = ["network.width=8", "batch=16", "samples=32", "train.pictures=0", "train.evaluations=0", "steps=2"]
QUICK = ["n=8", "evaluations=4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/digits`, asked by label, and `runs/line`, 1-D arrays asked by nothing."""
    folder = tmp_path_factory.mktemp("eval")
    np.save(folder / "line.npy", np.random.default_rng(0).normal(3, 20, (64, 2, 16)).astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        label = ["conditioner=label", "conditioner.width=16"]
        assert cli.run(["train", "image", "data=digits", "name=digits", *label, *TINY]) == 0
        assert cli.run(["train", "image", "data=line.npy", "name=line", *TINY]) == 0
    return folder


@pytest.fixture
def do(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `sfumato eval ...` beside a copy of the runs: (exit code, standard output, standard error)."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run(["eval", *words])
        return (code, *capsys.readouterr())

    return call


def test_one_object_and_the_same_in_the_run_folder(do: Any) -> None:
    code, out, _ = do("digits", *QUICK, "metrics=nll,bound,held_out", "times=2", "seed=3", "--json")
    assert code == 0
    found = json.loads(out)
    assert list(found) == ["run", "data", "n", "metrics", "features", "settings"]
    assert (found["run"], found["data"], found["n"]) == ("runs/digits", "digits", 8)
    assert found["features"] == {"name": None, "sha256": None}
    assert json.loads(Path("runs/digits/eval.json").read_text()) == found
    pipeline, data = Pipeline.from_pretrained("runs/digits"), Digits().split("held_out")
    expected = {
        "nll": nll(pipeline, data, 8, OdeLikelihood(evaluations=4), seed=3).score,
        "bound": nll(pipeline, data, 8, VariationalBound(times=2), seed=3).score,
    }
    for name, score in expected.items():
        assert set(found["metrics"][name]) == {"value", "interval", "real"}
        assert found["metrics"][name]["value"] == pytest.approx(score.value, rel=1e-5)
        assert found["metrics"][name]["interval"] == pytest.approx(list(score.interval or ()), rel=1e-4)
    loss = held_out_loss(pipeline.model, data, 8, seed=3).loss
    assert found["metrics"]["held_out"]["value"] == pytest.approx(loss, rel=1e-5)
    assert found["settings"]["nll"]["evaluations"] == 4 and found["settings"]["nll"]["unit"] == "bits/dim"
    assert found["settings"]["fingerprint"] == Digits().fingerprint()


def test_arrays_are_scored_in_nats_and_words(do: Any) -> None:
    code, out, _ = do("runs/line", "metrics=bound", "times=2", "n=3")
    assert code == 0
    assert out.startswith("runs/line: 3 held-out items of line, ")
    assert "nats/dim" in out and "kept in runs/line/eval.json" in out


def test_scores_of_samples_name_their_judge(do: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.commands import eval as verb
    from sfumato.recipes.judges import judge_of

    quick = judge_of(Digits(), Path("judge"), epochs=1)
    monkeypatch.setattr(verb, "judge_of", lambda data, folder: quick)
    code, out, _ = do("digits", "metrics=fd,near_copies", "each=2", "class_scores.steps=2", "--json")
    found = json.loads(out)
    assert code == 0 and set(found["metrics"]) == {"fd", "near_copies"}
    assert found["features"] == {"name": "judge of digits", "sha256": quick.weights_sha256}
    assert found["metrics"]["near_copies"]["real"] == pytest.approx(0.05, abs=0.01)
    assert found["settings"]["class_scores"]["samples"] == 20


def test_a_model_folder_needs_data_and_is_left_alone(do: Any) -> None:
    shutil.move("runs/digits/model", "alone")
    before = sorted(Path("alone").iterdir())
    code, _, err = do("alone", *QUICK)
    assert code == 2 and "give data=PATH or data=NAME" in err
    code, out, _ = do("alone", *QUICK, "metrics=nll", "data=digits", "--json")
    assert code == 0 and json.loads(out)["run"] == "alone"
    assert sorted(Path("alone").iterdir()) == before


def test_fresh_training_removes_the_scores(do: Any) -> None:
    from sfumato.train import Run

    assert do("digits", *QUICK)[0] == 0
    assert "eval.json" in Run("runs/digits").clear()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["metrics=nlll"], "metrics=nlll: there is no such metric; did you mean 'nll'?"),
        (["metrics="], "name at least one of held_out, nll"),
        (["drawss=2"], "`sfumato eval` has no setting 'drawss'; did you mean 'draws'?"),
        (["metrics=nll", "times=3"], "times= is a setting of metrics=bound, which is not asked for"),
        (["metrics=nll,bound", "logsnr_max=3"], "could mean nll.logsnr_max or bound.logsnr_max; write the whole name"),
        (["n=360"], "n=360: the held-out part has 359 items"),
        (["n=0"], "set n between 1 and that"),
        (["n=many"], "n=many: must be a whole number"),
        (["batch=0"], "batch=0: must be at least 1"),
        (["divergence=exct"], "divergence = 'exct': input should be 'auto', 'exact' or 'hutchinson'"),
        (["evaluations=10"], "give a multiple of 4"),
        (["probes=0"], "probes = 0"),
        (["metrics=bound", "bound.steps=1"], "steps = 1: a chain needs at least 2"),
        (["data=shapes"], "the data has image items of (3, 32, 32); give the data that it was trained on"),
        (["data.held_out=0.1"], "there is no setting 'data.held_out'"),
        (["a seven"], "'a seven' is not a setting"),
    ],
)
def test_mistakes_are_one_sentence(do: Any, words: list[str], said: str) -> None:
    code, out, err = do("digits", *words)
    assert code == 2 and not out
    assert said in err and err.count("\n") == 1 and err.startswith("error: ")
    assert not Path("runs/digits/eval.json").exists()


def test_a_run_that_is_not_there(do: Any) -> None:
    code, _, err = do("digtis")
    assert code == 2 and "there is no such model or run" in err
