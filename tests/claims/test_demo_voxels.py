"""What `sfumato demo modality=voxel` claims, read from the summary it leaves (it is run first if there is none)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_figures_of_the_voxel_demo_lie_in_their_bands() -> None:
    file = ROOT / "runs" / "demo-voxel" / "summary.json"
    if not file.is_file():
        subprocess.run([sys.executable, "-m", "sfumato", "demo", "modality=voxel"], cwd=ROOT, check=True)
    summary = json.loads(file.read_text(encoding="utf-8"))
    assert summary["trained_seconds"] <= 180
    assert summary["shown"] >= 0.8
    assert summary["single_component"] >= 0.9
    assert summary["samples"] == 200
