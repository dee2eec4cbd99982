"""What `make demo` claims, read from the summary it leaves (it is run first if there is none)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    file = ROOT / "runs" / "demo" / "summary.json"
    if not file.is_file():
        subprocess.run([sys.executable, "-m", "sfumato", "demo"], cwd=ROOT, check=True)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("trained_seconds", 60, 180),
        ("judge_accuracy", 0.97, 1.0),
        ("prompt_accuracy", 0.95, 1.0),
        ("prompt_accuracy_guidance_1", 0.88, 1.0),
        ("near_copy_rate", 0.0, 0.10),
        ("held_out_near_copy_rate", 0.04, 0.06),
        ("deviation_of_real", 0.88, 1.1),
        ("coverage_pixels_of_real", 0.9, 1.05),
        ("coverage_features_of_real", 0.9, 1.05),
        ("samples", 1000, 1000),
    ],
)
def test_figures_of_the_demo_lie_in_their_bands(summary: dict[str, Any], name: str, low: float, high: float) -> None:
    assert low <= summary[name] <= high


def test_guidance_is_mild(summary: dict[str, Any]) -> None:
    """The accuracy is not bought with variety."""
    assert 1 < summary["guidance"] <= 2
