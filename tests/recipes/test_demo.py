"""The demo: what it writes and says, and that a second call trains nothing."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from sfumato.data import Digits
from sfumato.errors import Interrupted
from sfumato.pipeline import Pipeline
from sfumato.recipes import demo
from sfumato.recipes.judges import judge_of
from sfumato.train import Trainer

MINUTES, EACH = 0.02, 4


@pytest.fixture
def quick_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(runs: Path):  # type: ignore[no-untyped-def]
        return judge_of(Digits(), runs / "judges" / "digits", epochs=1, width=4)

    monkeypatch.setattr(demo, "digits_judge", made)


def run(runs: Path) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    assert demo.run_demo(runs, console, minutes=MINUTES, each=EACH) == 0
    return console.file.getvalue().strip().splitlines()  # type: ignore[attr-defined,no-any-return]


def test_trains_scores_and_says_so_once(tmp_path: Path, quick_judge: None, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run(tmp_path)
    folder = tmp_path / "demo"
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("trained_seconds", "prompt_accuracy", "judge_accuracy", "near_copy_rate", "held_out_near_copy_rate"):
        assert isinstance(summary[name], float), name
    for name in ("deviation_of_real", "coverage_pixels_of_real", "coverage_features_of_real"):
        assert summary[name] >= 0, name
    assert 0.5 * 60 * MINUTES < summary["trained_seconds"] < 60 * MINUTES + 10
    assert summary["held_out_near_copy_rate"] == pytest.approx(0.05, abs=0.003)
    assert summary["samples"] == 10 * EACH
    assert summary["guidance"] > 1
    # The last four lines: what and how long, where, how good, what next; nothing in them is wrapped.
    what, where, score, following = said[-4:]
    assert re.fullmatch(r"Trained: text to image on the real digits in \d+ min \d\d s\.", what)
    assert str(folder / "digits.png") in where
    assert (folder / "digits.png").is_file()
    assert f"{summary['prompt_accuracy']:.1%} of {10 * EACH} samples" in score
    assert f'sfumato sample {folder} "a handwritten seven"' in following
    # The picture, the report with its scores, and a model that can be asked.
    with Image.open(folder / "digits.png") as sheet:
        assert sheet.height > sheet.width  # ten rows of four
    report = (folder / "report.html").read_text()
    assert "prompt_accuracy" in report
    assert "without guidance" in report
    assert Pipeline.from_pretrained(folder)("a handwritten seven", num_inference_steps=2).media.shape == (1, 1, 8, 8)

    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("a second demo trained again"))
    again = run(tmp_path)
    assert "already" in again[0]
    assert again[-4:] == said[-4:]


def test_an_interrupted_demo_goes_on(tmp_path: Path, quick_judge: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after training, before the scores: the next call scores and does not train again. So does a lost picture."""
    with monkeypatch.context() as patch:

        def stop(*arguments: object, **more: object) -> None:
            raise Interrupted("stopped")

        patch.setattr(demo, "class_scores", stop)
        with pytest.raises(Interrupted):
            run(tmp_path)
    assert not (tmp_path / "demo" / "summary.json").exists()
    metrics = (tmp_path / "demo" / "metrics.jsonl").read_text()
    assert "Score:" in run(tmp_path)[-2]
    (tmp_path / "demo" / "digits.png").unlink()
    run(tmp_path)
    assert (tmp_path / "demo" / "digits.png").is_file()
    assert (tmp_path / "demo" / "metrics.jsonl").read_text() == metrics
