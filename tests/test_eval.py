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
    assert found["settings"]["class_scores"]["judge"] == quick.weights_sha256


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two judges of the digits, `conv8` and `wrn10-1`, hardly trained."""
    from sfumato.recipes.judges import train_judge
    from sfumato.recipes.judges_pictures import Schooling, train_picture_judge

    folder = tmp_path_factory.mktemp("judges")
    train_judge(Digits(), epochs=1, width=8).save(folder / "conv8")
    how = Schooling(epochs=1, batch=64, rate=0.02, shift=1, flip=False, cut=0)
    train_picture_judge(Digits(), schooling=how, device="cpu", depth=10, widen=1).save(folder / "wrn10-1")
    return folder


FEATURES = ["metrics=features", "samples=30", "features.steps=2", "--json"]
SCORES = ("fd", "fd_held_out", "kid", "precision", "recall", "density", "coverage")


def test_scores_in_the_features_of_two_judges(do: Any, judges: Path) -> None:
    """The report says how many, of what, in whose features; the figures are those of the functions."""
    from sfumato.evaluate import Judge, JudgeExtractor, draw, feature_scores

    made = [Judge.load(judges / name) for name in ("conv8", "wrn10-1")]
    code, out, err = do("digits", *FEATURES, f"extractor={judges / 'conv8'},{judges / 'wrn10-1'}", "real=500", "seed=2")
    assert code == 0, err
    found = json.loads(out)
    assert set(found["metrics"]) == {f"{score}_{judge.name}" for score in SCORES for judge in made}
    assert all(metric["interval"] and metric["real"] is not None for metric in found["metrics"].values())
    assert not any("fid" in name for name in found["metrics"])
    beside = {"name": "wrn10-1", "sha256": made[1].weights_sha256, "resize": "none"}
    assert found["features"] == {
        "name": "conv8", "sha256": made[0].weights_sha256, "resize": "none", "beside": [beside],
    }  # fmt: skip
    settings = found["settings"]["features"]
    assert (found["n"], settings["samples"], settings["training_items"], settings["held_out_items"]) == (
        30,
        30,
        500,
        359,
    )
    assert settings["sampling"]["num_inference_steps"] == 2 and settings["sampling"]["asked_by"] == ["label"]
    pipeline = Pipeline.from_pretrained("runs/digits")
    drawn = draw(pipeline, Digits(), 30, seed=2, steps=2)
    expected = feature_scores(Digits(), drawn.batches, [JudgeExtractor(judge) for judge in made], most_real=500).metrics
    for name, score in expected.items():
        assert found["metrics"][name]["value"] == pytest.approx(score.value, rel=1e-6, abs=1e-9)
    assert json.loads(Path("runs/digits/eval.json").read_text()) == found


def test_a_judge_serves_features_and_classes_and_words_say_what(do: Any, judges: Path) -> None:
    code, out, _ = do("digits", "metrics=features", f"judge={judges / 'conv8'}", "samples=20", "steps=2")
    assert code == 0 and out.startswith("runs/digits: 20 samples of digits, ")
    assert "fd_conv8" in out and "20 samples to 1,438 training items, interval: bootstrap, 50 resamples" in out
    both = ["metrics=features,near_copies", "each=2", "features.steps=2", "class_scores.steps=2", "samples=20"]
    code, out, _ = do("digits", *both, f"judge={judges / 'conv8'}", "--json")
    found = json.loads(out)
    assert code == 0 and {"near_copies", "fd_conv8"} <= set(found["metrics"])
    assert found["settings"]["class_scores"]["judge"] == found["features"]["sha256"]


def test_by_default_the_judge_of_the_data_and_as_many_samples_as_are_held_out(
    do: Any, judges: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfumato.commands import eval as verb
    from sfumato.evaluate import Judge

    asked: list[Path] = []
    monkeypatch.setattr(verb, "judge_of", lambda data, folder: (asked.append(folder), Judge.load(judges / "conv8"))[1])
    code, out, _ = do("digits", "metrics=features", "steps=1", "batch=400", "--json")
    assert code == 0 and json.loads(out)["n"] == 359 and asked == [Path("runs/judges/digits")]


def test_two_reports_side_by_side(do: Any, judges: Path) -> None:
    extractor = f"extractor={judges / 'conv8'}"
    for steps, file in ((1, "a.json"), (3, "b.json")):
        code, out, _ = do("digits", *FEATURES[:2], "--json", extractor, f"steps={steps}")
        assert code == 0
        Path(file).write_text(out)
    code, out, _ = do("--compare", "a.json", "b.json", "--json")
    found = json.loads(out)
    assert code == 0 and set(found["metrics"]) == {f"{score}_conv8" for score in SCORES}
    fd = found["metrics"]["fd_conv8"]
    assert fd["ratio"] == pytest.approx(fd["first"]["value"] / fd["second"]["value"])
    assert found["settings"] == {"num_inference_steps": [1, 3]}
    code, out, _ = do("--compare", "a.json", "runs/digits")  # the run holds the second report
    assert code == 0 and "fd_conv8" in out and "num_inference_steps: 1 and 3" in out
    assert do("--compare", "a.json", "digits")[1].replace("digits", "runs/digits").split() == out.split()
    assert do("digits", "metrics=features", "samples=25", "steps=1", extractor)[0] == 0
    code, out, err = do("--compare", "a.json", "digits")
    assert code == 2 and not out and err.count("\n") == 1
    assert "fd_conv8 can't be compared: the number of samples is 30 in a.json and 25 in digits" in err
    assert do("digits", "metrics=features", "samples=30", "steps=1", f"extractor={judges / 'wrn10-1'}")[0] == 0
    code, _, err = do("--compare", "a.json", "digits")
    assert code == 2 and "the extractor is conv8 in a.json and wrn10-1 in digits" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--compare", "a.json", "nowhere"], "a.json: is not a report of `sfumato eval`"),
        (["--compare", "nowhere", "a.json"], "nowhere: there is no report and no run with one"),
        (["--compare", "b.json", "a.json"], "b.json: is not a report of `sfumato eval`, it holds no metrics"),
        (["digits", "--compare", "a.json", "b.json"], "--compare takes two reports and nothing else, not digits too"),
        ([], "`sfumato eval` needs a run or a model folder, or --compare with two reports"),
    ],
)
def test_what_can_not_be_compared(do: Any, words: list[str], said: str) -> None:
    Path("a.json").write_text("{")
    Path("b.json").write_text("{}")
    code, out, err = do(*words)
    assert code == 2 and not out and said in err and err.count("\n") == 1


def test_arrays_have_no_features_to_be_scored_in(do: Any, judges: Path) -> None:
    code, _, err = do("line", "metrics=features")
    assert code == 2 and "line has no labels to train a judge of; give extractor=FOLDER" in err
    code, _, err = do("line", "metrics=features", f"judge={judges / 'conv8'}", "samples=30", "steps=1", "k=1")
    assert code == 2 and "features are those of pictures" in err


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
        (["metrics=features", "extractor=nowhere"], "extractor=nowhere: there is no judge in this folder"),
        (["metrics=features", "judge=nowhere"], "nowhere: there is no judge here"),
        (["metrics=features", "samples=1"], "samples=1: must be at least 2"),
        (["metrics=features", "samples=6"], "k=5: with 6 samples and 359 held-out items it must be below 5"),
        (
            ["metrics=nll", "judge=x"],
            "judge=x is a setting of metrics=features, class_scores and voxels, none of which",
        ),
        (["metrics=nll", "extractor=x"], "extractor= is a setting of metrics=features, which is not asked for"),
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
