"""`sfumato data`, `show`, `doctor` and `runs` on tiny runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from sfumato import __version__
from tests.cli.tiny import files


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
