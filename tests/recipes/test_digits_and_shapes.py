"""The built-in recipes: complete, small enough, and readable back from YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sfumato.core import CondShape
from sfumato.recipes import Recipe, load_recipe, prepare
from sfumato.spec import Spec, dump_yaml, parse, read_yaml


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_recipe_reads_back_equal(name: str, tmp_path: Path) -> None:
    spec = load_recipe(name)
    (tmp_path / "recipe.yaml").write_text(dump_yaml(spec))
    plain, marks = read_yaml(tmp_path / "recipe.yaml")
    assert parse(Recipe, plain, marks=marks) == spec


@pytest.mark.parametrize(
    ("name", "setting", "value", "expected"),
    [
        ("digits", "minutes", "0.5", 0.5),
        ("shapes", "minutes", "3", 3.0),
    ],
)
def test_minutes_are_the_budget(name: str, setting: str, value: str, expected: float) -> None:
    assert load_recipe(name, {setting: value}).build().train.minutes == expected


def test_dials_set_the_network() -> None:
    assert load_recipe("digits", {"width": "48"}).network.width == 48
    small, large = (load_recipe("shapes", {"size": size}) for size in ("xs", "m"))
    assert small.network.width < large.network.width
    assert small.train.lr > large.train.lr


@pytest.mark.parametrize(("name", "longest"), [("digits", 64), ("shapes", 80)])
def test_every_caption_fits_the_prompt(name: str, longest: int) -> None:
    """All wordings of all items, in bytes, within the length that the text conditioner reads."""
    data = load_recipe(name, {} if name == "digits" else {"data.count": "2000"}).data.build()
    table = data.table
    assert max(len(c.encode()) for i in range(len(data)) for c in table.captions[i]) <= longest


@pytest.mark.parametrize(("name", "batch"), [("digits", 4), ("shapes", 2)])
def test_model_learns_from_the_first_step(name: str, batch: int) -> None:
    """Every weight has a gradient after two steps: none is left out of the graph."""
    prepared = prepare(load_recipe(name, {} if name == "digits" else {"data.count": "500"}))
    task, data = prepared.task, prepared.data.split("train")
    from sfumato.core import Draws

    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        indices = list(range(step * batch, (step + 1) * batch))
        task.loss(data.fetch(indices), Draws(0, step * batch, batch)).value.backward()
        optimizer.step()
    silent = [n for n, p in task.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []
    assert isinstance(prepared.spec.conditioner, Spec)
    assert prepared.task.model.conditioner.shape == CondShape(  # type: ignore[union-attr]
        vector=prepared.spec.conditioner.width, tokens=prepared.spec.conditioner.width
    )
