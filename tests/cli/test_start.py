"""The command line before anything is asked of it: what is imported, and how quickly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sfumato import __version__


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
