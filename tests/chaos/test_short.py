"""Short forms of the rows of faults; `make chaos` runs them in full."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.__main__ import ROWS
from tests.chaos.lives import forks


@forks
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, pytest.param(7, marks=pytest.mark.slow), 8])
def test_row(tmp_path: Path, number: int) -> None:
    row = ROWS[number](tmp_path, False)
    if row.verdict == "skipped":
        pytest.skip(row.figure)
    assert row.problems == []
