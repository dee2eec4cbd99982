"""The check of fast paths against plain ones: it runs, and a path that is wrong is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import equal
from benchmarks.equal import Case, Way, compare, wrong

CPU = torch.device("cpu")
EXACT = torch.linspace(1, 2, 50)


def _case(fast: float) -> Case:
    off: dict[Way, float] = {"exact": 0.0, "plain": 0.01, "fast": fast}
    return Case("made", lambda way: EXACT * (1 + off[way]))


@pytest.mark.parametrize(("fast", "named"), [(0.01, 0), (0.0139, 0), (0.0141, 1), (-0.0141, 1), (float("nan"), 1)])
def test_a_fast_path_may_be_as_far_as_the_plain_one_and_a_fifth(fast: float, named: int) -> None:
    row = compare(_case(fast), CPU)
    assert row.peer == pytest.approx(0.01, rel=1e-4) and row.settings["allowed"] == pytest.approx(0.014, rel=1e-4)
    assert len(wrong([row])) == named


def test_trained_weights_are_measured_by_the_way_they_went() -> None:
    start = EXACT - 0.1
    case = Case("made", lambda way: EXACT + {"exact": 0.0, "plain": 0.01, "fast": 0.02}[way], lambda: start)
    row = compare(case, CPU)
    assert (row.ours, row.peer) == (pytest.approx(0.2, rel=1e-4), pytest.approx(0.1, rel=1e-4))


def test_it_runs_and_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["equal", "--device", "cpu", "--only", "unet.output", "unet.gradients", "dit.train", "--json"]
    monkeypatch.setattr(sys, "argv", [*words, str(tmp_path / "equal.json")])
    equal.main()
    rows = json.loads((tmp_path / "equal.json").read_text(encoding="utf-8"))
    assert [row["case"] for row in rows] == [
        "equal.unet.output.b512",
        "equal.unet.gradients.b512",
        "equal.dit.train.b32",
    ]
    assert all(0 < row["peer"] < 0.1 and row["ours"] == row["peer"] for row in rows)  # on a CPU both are as written
    monkeypatch.setattr(equal, "cases", lambda device: [_case(0.5)])
    monkeypatch.setattr(sys, "argv", ["equal", "--device", "cpu"])
    with pytest.raises(SystemExit, match=r"equal\.made: the fast path is 0\.5 from float32, 0\.014 are allowed"):
        equal.main()
