"""Plain vectors (N, D) from a file to samples, and the new settings of the mathematics from the command line's words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato import media
from sfumato.core import Draws
from sfumato.data import Arrays
from sfumato.errors import UserError
from sfumato.pipeline import Pipeline
from sfumato.recipes.build import prepare, trainer
from sfumato.recipes.load import load_recipe
from sfumato.train import Silent


@pytest.fixture
def points(tmp_path: Path) -> Path:
    """5,000 points around (30, -2) and (34, -2), the coordinates of very different size."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random(5000) < 0.5, 30.0, 34.0) + 0.3 * rng.normal(size=5000)
    file = tmp_path / "points.npy"
    np.save(file, np.stack([x, -2 + 0.01 * rng.normal(size=5000)], 1).astype(np.float32))
    return file


def recipe(points: Path, **settings: str):  # type: ignore[no-untyped-def]
    named = {k.replace("__", "."): v for k, v in settings.items()}
    return load_recipe("image", {"data": str(points), "batch": "64", "evaluations": "1", "pictures": "1", **named})


def test_two_clusters_are_learned(points: Path, tmp_path: Path) -> None:
    """With the perceptron that the recipe chooses: half of the samples about each cluster, in the data's own units."""
    spec = recipe(points, samples="20000")
    assert spec.network.cls.kind == "mlp" and spec.build().data.build().info.shape == (2,)
    trainer(spec, tmp_path / "run", device="cpu", display=Silent()).fit()
    made = Pipeline.from_pretrained(tmp_path / "run")(
        n=500, num_inference_steps=20, batch_size=500, output_type="pt"
    ).media
    assert made.shape == (500, 2)
    first, second = made.double().T
    near = torch.minimum((first - 30).abs(), (first - 34).abs())
    assert (near < 1.2).double().mean() > 0.85 and 0.35 < (first > 32).double().mean() < 0.65
    assert second.mean().item() == pytest.approx(-2, abs=0.003) and second.std().item() == pytest.approx(0.01, rel=0.4)


@pytest.mark.parametrize(
    "settings",
    [
        {"process": "shifted", "process__process": "cosine", "process__s": "2", "parameterization": "v"},
        {"process": "learned", "parameterization": "eps", "objective": "elbo"},
        {"process": "vp", "objective": "hybrid", "objective__steps": "20"},
        {"process": "sub-vp", "parameterization": "eps", "objective__weighting": "likelihood"},
        {"objective__coupling": "ot"},
        {"objective": "sliced"},
        {"objective": "implicit"},
    ],
    ids=lambda s: "-".join(s.values()),
)
def test_every_setting_trains_and_comes_back(points: Path, tmp_path: Path, settings: dict[str, str]) -> None:
    """Its loss falls on a fixed batch, and the model folder has the process it was trained with."""
    spec = recipe(points, network__width="16", samples="256", **settings)
    prepared = prepare(spec)
    task, draws = prepared.task, Draws(0, 0, 64)
    batch = prepared.data.fetch(np.arange(64))
    optimizer = torch.optim.Adam(task.parameters(), lr=3e-3)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = task.loss(batch, draws)
        loss.value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        values.append(loss.value.item())
    assert values[-1] < values[0] - 0.05 * abs(values[0])
    trainer(spec, tmp_path / "run", device="cpu", display=Silent()).fit()
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    assert pipeline.spec == prepared.spec
    t = torch.linspace(0, 1, 9).double()
    if settings.get("process") != "learned":
        assert torch.equal(pipeline.model.denoiser.process.sigma(t), task.process.sigma(t))
    again = Pipeline.from_pretrained(tmp_path / "run")
    assert torch.equal(pipeline(n=2, output_type="pt").media, again(n=2, output_type="pt").media)


def test_a_shift_of_a_shift_is_a_users_error(points: Path) -> None:
    with pytest.raises(UserError, match="shifted twice"):
        prepare(recipe(points, process="shifted", process__process="shifted"))


def test_short_items_are_vectors_and_long_ones_signals(tmp_path: Path) -> None:
    for n, layout, shape in ((4, "auto", (4,)), (5, "auto", (1, 5)), (5, "first", (5,)), (4, "none", (1, 4))):
        file = tmp_path / f"{n}.npy"
        np.save(file, np.arange(6 * n, dtype=np.float32).reshape(6, n))
        data = Arrays(path=str(file), layout=layout)  # type: ignore[arg-type]
        assert data.info.shape == shape
        assert torch.equal(data.fetch([2]).media.flatten(), torch.arange(2.0 * n, 3.0 * n))


def test_points_are_drawn_where_they_are() -> None:
    """The dots of a square's corners lie at the corners of the picture, the second coordinate upwards."""
    image = np.asarray(media.scatter(np.array([[29.0, -1.0], [31.0, -1.0], [31.0, 1.0]]), side=101).convert("L")) < 200
    assert image[4, 96] and image[96, 4] and image[96, 96] and not image[4, 4]
    assert media.to_image(np.array([1.0, -1.0, 0.5])).size == (192, 96)
    with pytest.raises(UserError, match="vectors"):
        media.scatter(np.zeros((2, 3, 4)))
