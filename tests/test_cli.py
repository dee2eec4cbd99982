"""The command line: every verb on a tiny run, exit codes, and mistakes that end in one sentence with nothing written."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato import __version__, cli
from sfumato.errors import UserError
from sfumato.kinds import Picture

TINY = [
    "network.width=8", "conditioner.width=16", "conditioner.depth=1", "conditioner.heads=2", "conditioner.length=32",
    "batch=16", "train.pictures=0", "train.evaluations=1", "steps=2",
]  # fmt: skip
TRAIN = ["train", "image", "data=digits", "conditioner.length=40", *[s for s in TINY if "length" not in s]]


class Said:
    """What a command printed and returned."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def do(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run a command line in this process."""

    def call(*words: str | Path) -> Said:
        capsys.readouterr()
        code = cli.run([str(word) for word in words])
        return Said(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/digits`, trained on 64 samples, and `runs/labels`, asked by label."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.run([*TRAIN, "samples=64"]) == 0
        labels = ["conditioner=label", "conditioner.width=16", "network.width=8", "batch=16", "samples=32"]
        quick = ["train.pictures=0", "train.evaluations=0", "steps=2"]
        assert cli.run(["train", "image", "data=digits", "name=labels", *labels, *quick]) == 0
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


# ---------------------------------------------------------------- without torch


@pytest.mark.parametrize(
    "code",
    [
        "import sfumato",
        "from sfumato import cli; assert cli.run(['--help']) == 0",
        "from sfumato import cli; assert cli.run(['train', '--help']) == 0",
        "from sfumato import cli; assert cli.run(['trian']) == 2",
        "from sfumato import cli; assert cli.run(['train']) == 2",
        "from sfumato import cli; assert cli.run(['runs', 'list']) == 0",
        "from sfumato import cli; assert cli.run(['runs', 'rm', 'none', '--yes']) == 2",
    ],
)
def test_torch_is_not_loaded_where_it_is_not_needed(code: str, tmp_path: Path) -> None:
    check = f"import sys; {code}; assert 'torch' not in sys.modules, 'torch was loaded'"
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_importing_sfumato_takes_less_than_a_third_of_a_second() -> None:
    code = "import time; t = time.process_time(); import sfumato; print(time.process_time() - t)"
    took = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3)]
    assert min(took) < 0.3


def test_python_m_sfumato_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "sfumato", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"sfumato {__version__}\n")


def test_nobody_reading_on_is_no_error(trained: Path) -> None:
    reader = f"{sys.executable} -m sfumato show solvers | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", reader], cwd=trained, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------- train


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


# ---------------------------------------------------------------- sample


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


# ---------------------------------------------------------------- the other verbs


def test_data_preview_writes_a_sheet_and_says_what_is_in_it(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    said = do("data", "preview", "digits", "n=6", "-o", "sheets/p.png")
    assert (
        said.code == 0
        and "1,797 items of 1 x 8 x 8" in said.out
        and "next: sfumato train image data=digits" in said.out
    )
    assert Image.open(here / "sheets/p.png").format == "PNG"
    plain = json.loads(do("data", "preview", "shapes", "size=24", "count=64", "split=held_out", "--json").out)
    assert plain["shape"] == [3, 24, 24] and plain["captions"] is True


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["solvers"], "heun: Heun's trapezoidal method"),
        (["solver", "ddim"], "eta  0.0"),
        (["samplers"], "    order 4, 4 evaluations a step, deterministic"),
        (["sampler", "ddpm"], "    order 1, 1 evaluation a step, draws noise"),
        (["processes"], "discrete-vp: The chain of DDPM"),
        (["networks"], "unet: U-Net with residual blocks"),
        (["data"], "folder: Pictures below a folder"),
        (["trainings"], "checkpoint_minutes"),
        (["recipes"], "image: Pictures or arrays of any shape"),
        (["recipe", "image"], "needs data= to show its settings"),
        (["recipe", "image", "data=digits", "size=m"], "width: 128"),
        (["recipe", "labels"], "type: label"),
        (["runs/digits"], "network           unet(width=8"),
        (["digits"], "asked by          text"),
    ],
)
def test_show(here: Path, do, words: list[str], expected: str) -> None:  # type: ignore[no-untyped-def]
    said = do("show", *words)
    assert said.code == 0 and expected in said.out
    assert json.loads(do("show", *words, "--json").out)


def test_doctor_names_versions_device_and_extras(do) -> None:  # type: ignore[no-untyped-def]
    said = do("doctor")
    assert said.code == 0 and f"sfumato {__version__}, Python" in said.out and "extra parquet" in said.out
    plain = json.loads(do("doctor", "--json").out)
    assert plain["packages"]["torch"] and plain["threads"] >= 1 and isinstance(plain["problems"], list)


def test_doctor_says_how_to_install_what_is_missing(do, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    from sfumato.commands import doctor

    monkeypatch.setattr(doctor, "_EXTRAS", {"parquet": ("no_such_module", "parquet files as data")})
    assert 'not installed: parquet files as data; pip install "sfumato[parquet]"' in do("doctor").out


def test_runs_are_listed_shown_compared_and_deleted(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    said = do("runs", "list")
    assert re.search(r"digits +finished +64 +\d\.\d{4}", said.out) and "labels" in said.out
    assert {row["name"] for row in json.loads(do("runs", "list", "--json").out)} == {"digits", "labels"}
    shown = do("runs", "show", "digits")
    assert (
        re.search(r"state +finished", shown.out)
        and "64 samples, 4 steps" in shown.out
        and "type: diffusion" in shown.out
    )
    assert json.loads(do("runs", "show", "digits", "--json").out)["samples"] == 64
    different = json.loads(do("runs", "diff", "digits", "labels", "--json").out)
    assert different["train.samples"] == [64, 32] and different["conditioner.type"] == ["text", "label"]
    assert "seed" not in different
    assert "have the same settings" in do("runs", "diff", "digits", "runs/digits").out
    assert do("runs", "rm", "labels", "--yes").code == 0
    assert not (here / "runs/labels").exists() and (here / "runs/digits").exists()


def test_a_run_whose_process_is_gone_reads_as_stopped(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    state = here / "runs/digits/state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "state": "running", "progress": 0.25}))
    assert re.search(r"digits +stopped 25%", do("runs", "list").out)
    with (here / "runs/digits/.lock").open("w") as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        assert re.search(r"digits +running 25%", do("runs", "list").out)
        said = do("runs", "rm", "digits", "--yes")
        assert said.code == 2 and "is being trained by another process" in said.err
    assert (here / "runs/digits/model").is_dir()


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp", "..", ".", "", "runs/../../x", "digits/model", "link"])
def test_only_runs_are_deleted(here: Path, do, name: str) -> None:  # type: ignore[no-untyped-def]
    (here / "elsewhere").mkdir()
    (here / "elsewhere/recipe.yaml").write_text("type: diffusion\n")
    (here / "runs/link").symlink_to(here / "elsewhere")
    before = files(here)
    assert do("runs", "rm", name, "--yes").code == 2
    assert files(here) == before


def test_deleting_asks(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    said = do("runs", "rm", "digits")
    assert said.code == 2 and "add --yes where nobody can answer" in said.err and (here / "runs/digits").is_dir()


# ---------------------------------------------------------------- mistakes


def mistakes() -> list[tuple[list[str], str]]:
    sample = ["sample", "digits"]
    return [
        (["trian"], "there is no verb 'trian'; did you mean 'train'?"),
        (["runs", "lits"], "there is no 'runs' verb 'lits'; did you mean 'list'?"),
        (["train"], "missing argument"),
        (["train", "image", "--dry"], "no such option: --dry"),
        (["train", "imaeg"], "there is no recipe 'imaeg'; did you mean 'image'?"),
        (["train", "image", "digits"], "'digits' is not a setting; settings are written key=value"),
        (["train", "image"], "recipe 'image' needs data="),
        (["train", "image", "data=nowhere"], "data = 'nowhere': there is no such file, folder or built-in set"),
        (["train", "image", "data=empty"], "empty: holds no pictures"),
        (["train", "image", "data=weights.pt"], "data = 'weights.pt': .npz, .npy, .parquet and .tar files are read"),
        (["train", "image", "data=objects.npy"], "objects.npy"),
        (["train", "image", "data=broken"], "broken"),
        (["train", "image", "data=digits", "widht=3"], "did you mean 'width' (network.width)?"),
        (["train", "image", "data=digits", "lr=fast"], "train.lr = 'fast': input should be a valid number"),
        (["train", "image", "data=digits", "lr=1", "lr=2"], "lr= is given twice, as 1 and 2"),
        (
            ["train", "image", "data=digits", "name=../x"],
            "name=../x: the name of a run is one folder of runs/, such as x",
        ),
        (["train", "image", "data=digits", "parameterization=eps"], "'eps' divides by alpha, which is 0 at t = 1"),
        (["train", "image", "data=digits", "batch=0"], "train.batch = 0: must be at least 1"),
        (["train", "image", "data=digits", "minutes=0"], "train.minutes = 0.0: must be above 0"),
        (["train", "image", "data=digits", "name=x", "train.minutes=none"], "minutes"),
        (["train", "image", "data=digits", "network=dit", "network.heads=7"], "heads"),
        (["train", "image", "data=digits", "network.attention=9"], "attention level 9 does not exist"),
        (["train", "image", "data=digits", "init=nowhere", "name=x"], "nowhere: there is no such model or run"),
        (["train", "image", "data=digits", "init=weights.pt", "name=x"], "a pickle can run any code when it is loaded"),
        (
            ["train", "image", "data=digits", "--device", "gpu9"],
            "device=gpu9: this machine or this build of torch has no",
        ),
        (["train", "wrong.yaml"], "wrong.yaml:5: network.widht: unet has no setting 'widht'; did you mean 'width'?"),
        (["train", "type.yaml"], "type.yaml:5: network.width = 'wide': input should be a valid integer"),
        (
            ["train", "empty"],
            "there is no recipe 'empty'" if False else "empty: not a run folder, it has no recipe.yaml",
        ),
        (["sample", "nowhere"], "nowhere: there is no such model or run; `sfumato runs list` shows the runs"),
        (["sample", "weights.pt"], "weights.pt: a pickle can run any code when it is loaded and is not read here"),
        (["sample", "empty", "x"], "empty: not a model or run folder"),
        ([*sample], "asked by prompt=, and prompt= is missing; give it a text, or guidance=0"),
        ([*sample, "x", "label=3"], "label= can't be given to this model; ask it by prompt="),
        ([*sample, "x" * 41], "is 41 bytes long and this model reads 40: shorten it"),
        ([*sample, "x", "steps=0"], "at least 1, not 0; set steps= to 1 or more"),
        ([*sample, "x", "steps=ten"], "steps = 'ten': input should be a valid integer"),
        ([*sample, "x", "guidance=-3"], "guidance=-3.0 is not a scale; 1 is no guidance"),
        ([*sample, "x", "guidance=much"], "guidance=much: must be a number, or several with commas"),
        ([*sample, "x", "n=0"], "n=0: the number of samples of each prompt must be at least 1"),
        ([*sample, "x", "n=two"], "n=two: must be a whole number"),
        ([*sample, "x", "seed=-4"], "seed=-4: must lie in 0 ... 2^62 - 1"),
        ([*sample, "x", "seed=5:5"], "seed=5:5: there is no seed in this range; write first:last+1"),
        ([*sample, "x", "seed=a:b"], "seed=a:b: must be a whole number, a range such as 0:1000, or several"),
        ([*sample, "x", "y", "seed=0:3"], "3 seeds for 2 samples (2 prompts, n=1); give one seed or 2"),
        ([*sample, "x", "batch=0"], "batch=0: must be at least 1"),
        ([*sample, "x", "dtype=int4"], "dtype=int4: not a type to compute in; use fp32, bf16, fp16, int8"),
        ([*sample, "x", "solver=hun"], "solver: there is no solver 'hun'; did you mean 'heun'?"),
        ([*sample, "x", "solver.eat=1", "solver=ddim"], "there is no setting 'solver.eat'; did you mean 'solver.eta'?"),
        ([*sample, "x", "step=3"], "`sfumato sample` has no setting 'step'; did you mean 'steps'?"),
        ([*sample, "x", "-o", "x.jpg"], "-o x.jpg: samples are written as .png or .npy, or into a folder"),
        ([*sample, "x", "-o", "wrong"], "-o wrong: a file is in its place; choose another folder"),
        (["sample", "labels", "label=12"], "label=12: outside 0..9, this model knows 10 classes"),
        (["sample", "labels", "label=seven"], "label='seven': there is no such class; known: 0, 1"),
        (["sample", "labels", "seven"], "prompt= can't be given to this model; ask it by label="),
        (["data", "preview", "nowhere"], "data = 'nowhere': there is no such file"),
        (["data", "preview", "digits", "n=0"], "n = 0: must be at least 1 picture"),
        (["data", "preview", "digits", "-o", "x.jpg"], "the preview is a picture; give it a name that ends in .png"),
        (["data", "preview", "digits", "split=test"], "split=test: use train, held_out or all"),
        (
            ["show", "solvres"],
            "there is nothing to show by the name 'solvres', no run or model either; did you mean 'solvers'?",
        ),
        (["show", "solver", "hun"], "there is no solver 'hun'; did you mean 'heun'?"),
        (["show", "recipe", "image", "x", "y"], "takes one name, file or run"),
        (["runs", "show", "digist"], "there is no run 'digist'; did you mean 'digits'?"),
        (["runs", "diff", "digits", "label"], "there is no run 'label'; did you mean 'labels'?"),
        (["runs", "rm", "digist", "--yes"], "there is no run 'digist'; did you mean 'digits'?"),
        (["--import", "none.py", "runs", "list"], "--import none.py: there is no such file"),
        (["runs", "list", "--import"], "--import needs a file"),
    ]


@pytest.mark.parametrize(("words", "said"), mistakes(), ids=lambda v: " ".join(v)[:50] if isinstance(v, list) else "")
def test_a_mistake_is_one_sentence_and_code_2_and_nothing_is_written(
    here: Path, do, words: list[str], said: str
) -> None:  # type: ignore[no-untyped-def]
    (here / "empty").mkdir()
    (here / "wrong").write_text("a file")
    (here / "weights.pt").write_bytes(pickle.dumps({"a": 1}))
    np.save(here / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (here / "broken").mkdir()
    (here / "broken/a.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    head = "title: a\ndata: digits\nnetwork:\n  type: unet\n"
    (here / "wrong.yaml").write_text(head + "  widht: 3\n")
    (here / "type.yaml").write_text(head + "  width: wide\n")
    before, folders = files(here), sorted(str(p) for p in here.rglob("*"))
    result = do(*words)
    assert result.code == 2, result.err
    assert said in result.err.replace("\n", " ") and "Traceback" not in result.err
    assert len(result.err.strip().splitlines()) == 1 and result.err.startswith("error: ")
    assert files(here) == before and sorted(str(p) for p in here.rglob("*")) == folders


def test_a_full_disk_or_read_only_folder_leaves_nothing_half_written(  # type: ignore[no-untyped-def]
    here: Path, do, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    for words in (["sample", "digits", "7", "n=1", "-o", "one.png"], ["data", "preview", "digits", "n=2"]):
        said = do(*words)
        assert said.code in (1, 2) and "no space left" in said.err.lower() and len(said.err.splitlines()) == 1
    monkeypatch.undo()
    assert sorted(e.name for e in here.iterdir()) == ["runs"]
    monkeypatch.chdir(here)

    def read_only(self: Path, *arguments: object, **more: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    said = do("sample", "digits", "7", "n=1", "-o", "out")
    assert said.code == 2 and "out: can't be written (Read-only file system); choose another folder" in said.err
    monkeypatch.undo()
    assert sorted(e.name for e in here.iterdir()) == ["runs"]


def test_debug_shows_the_traceback_wherever_it_stands(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    for words in (["--debug", "sample", "digits"], ["sample", "digits", "--debug"]):
        said = do(*words)
        assert (
            said.code == 2
            and "Traceback" in said.err
            and said.err.strip().endswith("guidance=0 for samples of anything")
        )


def test_what_nobody_thought_of_is_a_sentence_too(do, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    from sfumato.commands import doctor

    def fail(**settings: object) -> None:
        raise ZeroDivisionError("by nothing\nat all")

    monkeypatch.setattr(doctor, "doctor", fail)
    said = do("doctor")
    assert (said.code, said.err) == (
        1,
        "error: ZeroDivisionError: by nothing; run the command again with --debug to see where\n",
    )
    monkeypatch.setattr(doctor, "doctor", lambda **settings: (_ for _ in ()).throw(MemoryError()))
    assert "out of memory; lower batch=" in do("doctor").err


def test_a_file_of_the_user_brings_a_recipe_and_a_network(here: Path, do) -> None:  # type: ignore[no-untyped-def]
    (here / "mine.py").write_text(
        "import torch\n"
        "from sfumato.core import Network\n"
        "from sfumato.data import Digits\n"
        "from sfumato.recipes import Recipe, recipe\n"
        "from sfumato.spec import Spec\n"
        "from sfumato.train import Training\n"
        "class Plain(Network, name='plain'):\n"
        "    def __init__(self, shape, cond, *, width: int = 3):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(shape[0], shape[0], width, padding='same')\n"
        "    def forward(self, x, noise, cond=None):\n"
        "        return self.conv(x)\n"
        "@recipe('mine')\n"
        "def mine(*, width: int = 3):\n"
        "    'Mine.'\n"
        "    quick = Training(samples=32, batch=16, pictures=0, evaluations=0)\n"
        "    return Spec(Recipe, title='mine', data=Spec(Digits), network=Spec(Plain, width=width), train=quick)\n"
    )
    said = do("train", "mine", "width=5", "--json", "--import", "mine.py")
    assert said.code == 0 and json.loads(said.out)["samples"] == 32
    assert do("--import=mine.py", "sample", "mine", "n=1", "steps=1", "-o", "one.png").code == 0
    assert "plain" in do("show", "networks", "--import", "mine.py").out


def test_errors_have_exit_codes() -> None:
    from sfumato.errors import Interrupted, NoCheckpointError, SfumatoError

    for error, code in ((SfumatoError, 1), (UserError, 2), (NoCheckpointError, 3), (Interrupted, 75)):
        assert cli._explain(error("x"))[1] == code
    assert cli._explain(KeyboardInterrupt()) == ("stopped", 130)
