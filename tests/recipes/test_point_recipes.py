"""Point clouds: from training to files and scores, with a tiny budget; the model of a recipe treats them as sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato import cli
from sfumato.data import Points, Solids
from sfumato.errors import UserError
from sfumato.evaluate.points import point_scores
from sfumato.kinds.points import read_ply
from sfumato.pipeline import Pipeline
from sfumato.recipes import load_recipe, prepare, trainer
from sfumato.recipes.load import read_recipe
from sfumato.spec import dump_yaml
from tests.tiny import tiny_pipeline

SMALL = {"data": "solids", "points": "32", "samples": "24", "batch": "8", "evaluations": "1", "pictures": "1"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("points")
    spec = load_recipe("points", {**SMALL, "data.count": "60", "sampling.steps": "2", "network.depth": "1"})
    trainer(spec, folder / "run", device="cpu").fit()
    return folder / "run"


def said(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = cli.run([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_denoiser_of_the_recipe_permutes_as_its_input_does(run: Path) -> None:
    model = Pipeline.from_pretrained(run).model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # off the zero initialisation, so that everything mixes
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        x = torch.randn(2, 6, 32, generator=generator)
        order = torch.randperm(32, generator=generator)
        cond = model.condition({"caption": ["a large red ball", "a small blue ring"]})
        t = torch.tensor([0.3, 0.8], dtype=torch.float64)
        straight, permuted = model.denoiser(x, t, cond), model.denoiser(x[..., order], t, cond)
    assert torch.allclose(permuted, straight[..., order], atol=1e-5)
    assert not torch.allclose(straight[..., order], straight, atol=1e-2)


def test_samples_are_clouds_in_files(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = said(capsys, "sample", run, "a large red ball", "n=1", "-o", tmp_path / "ball.ply")
    assert code == 0, error
    made = Pipeline.from_pretrained(run)("a large red ball", output_type="pt").media[0].numpy()
    back = read_ply(tmp_path / "ball.ply")
    assert np.array_equal(back[:3], made[:3]) and np.abs(back[3:] - made[3:]).max() <= 0.5 / 255 + 1e-6
    assert said(capsys, "sample", run, "a large red ball", "n=3", "-o", tmp_path / "out")[0] == 0
    assert len(list((tmp_path / "out").glob("*.ply"))) == 3 and (tmp_path / "out" / "grid.png").is_file()


def test_eval_says_all_scores_beside_real_ones(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, error = said(capsys, "eval", run, "--json", "clouds=4", "points.steps=1")
    assert code == 0, error
    found = json.loads(out)
    assert set(found["metrics"]) == {f"{k}_{space}" for k in ("mmd", "cov", "nna") for space in ("cd", "ink")}
    assert all(score["real"] is not None for score in found["metrics"].values())
    assert found["settings"]["points"]["samples"] == 4
    assert said(capsys, "eval", run, "clouds=1")[0] == 2


def test_scores_are_those_of_the_sets(run: Path) -> None:
    """Samples that are the held-out clouds: nothing is missed, all is covered, and twins are always told wrong."""
    data = Points(data=Solids(count=200), points=16)
    held_out = data.split("held_out")
    n = min(5, len(held_out))
    truth = held_out.fetch(np.arange(n) * len(held_out) // n)

    class Copies:
        model: Any = type("Model", (), {"conditioner": None})

        def __call__(self, **call: Any) -> Any:
            assert call["n"] == n
            return type("Output", (), {"media": truth.media, "settings": {}})

    found = point_scores(Copies(), data, n=n).metrics  # type: ignore[arg-type]
    assert found["mmd_cd"].value == pytest.approx(0, abs=1e-6)
    assert found["cov_cd"].value == 1 and found["nna_cd"].value == 0
    assert "nna_ink" not in found
    assert found["mmd_cd"].real is not None and found["mmd_cd"].real > 0


def test_the_recipe_reads_back_and_says_what_it_is_for(tmp_path: Path) -> None:
    spec = load_recipe("points", {"data": "solids", "size": "s", "colours": "false"})
    (tmp_path / "recipe.yaml").write_text(dump_yaml(spec))
    assert read_recipe(tmp_path / "recipe.yaml") == spec
    assert prepare(spec).task.model.codec.shape == (3, 256)
    with pytest.raises(UserError, match="drawn from voxel models"):
        load_recipe("points", {"data": "digits"})
    with pytest.raises(UserError, match="point scores are for point clouds"):
        point_scores(tiny_pipeline(), Solids(count=20))
