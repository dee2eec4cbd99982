"""Mistakes end in one sentence, with an exit code and nothing written."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from sfumato import cli
from sfumato.errors import UserError
from tests.cli.tiny import files


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
