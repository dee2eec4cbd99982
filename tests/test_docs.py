"""README and docs are run: every Python block of a page in order, and the README's own commands with a small budget."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.registry import members
from tests.children import Child

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ sfumato (.*?)(?:\s{2,}#.*)?$", re.MULTILINE)
SMALL = "samples=16 batch=8 evaluations=1 pictures=1"  # instead of minutes: a few steps show that a command runs


def run(arguments: list[str], folder: Path) -> str:
    child = Child(arguments, folder)
    assert child.wait() == 0, child.said
    return child.said


def small(command: str) -> list[str]:
    words = shlex.split(command)
    if words[0] == "train":
        words = [w for w in words if not w.startswith("minutes=")] + SMALL.split()
    less = {"size": "xs", "n": "2", "iterations": "3"}
    return [
        "-m",
        "sfumato",
        *(re.sub(rf"^({'|'.join(less)})=\w+$", lambda m: f"{m[1]}={less[m[1]]}", w) for w in words),
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of mixed sizes and a model of the digits, trained by the README's command."""
    folder = tmp_path_factory.mktemp("docs")
    pictures = folder / "path" / "to" / "pictures"
    pictures.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(20):
        size = (24 + i, 40 - i, 3)
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(pictures / f"{i}.png")
    run(small("train digits minutes=2"), folder)
    return folder


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda p: p.stem)
def test_python_blocks_run(page: Path, place: Path) -> None:
    code = place / f"{page.stem}_blocks.py"
    code.write_text("\n\n".join(BLOCK.findall(page.read_text(encoding="utf-8"))), encoding="utf-8")
    run([str(code)], place)


def test_the_readmes_commands_run(place: Path) -> None:
    commands = COMMAND.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(commands) >= 6
    for command in commands:
        run(small(command), place)
    assert (place / "seven.png").is_file() and (place / "preview.png").is_file() and any((place / "out").iterdir())
    assert "digits" in run(small("runs list"), place)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("family", ["solver", "grid"])
def test_every_solver_and_grid_is_on_its_page(family: str) -> None:
    page = (ROOT / "docs" / "solvers.md").read_text(encoding="utf-8")
    ours = {name for name, cls in members(family).items() if cls.__module__.startswith("sfumato.")}
    listed = set(re.findall(r"^\| (?:`[a-z0-9-]+`, )*`([a-z0-9-]+)`", page, re.MULTILINE))
    assert ours <= listed
