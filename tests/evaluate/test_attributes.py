"""Pairs of prompts that differ by one attribute, against makers of pictures that are right or deaf to one word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.core.random import keys
from sfumato.data import Shapes
from sfumato.data.shapes import _Plan, draw, held_out_combinations
from sfumato.data.shapes_words import COLOURS, RELATIONS, SHAPES, SIZES, Described, understand
from sfumato.errors import UserError
from sfumato.evaluate.attributes import ATTRIBUTES, Attribute, attribute_scores, pairs

DATA = Shapes(count=4000)


def drawn(described: Sequence[Described], seeds: Sequence[int]) -> torch.Tensor:
    """A picture of each description, its places chosen by its seed."""
    colours = tuple(COLOURS)
    things = [
        [[SIZES.index(t.size), colours.index(t.colour), SHAPES.index(t.shape)] for t in d.things] for d in described
    ]
    relation = [RELATIONS.index(d.relation or "") for d in described]
    plan = _Plan(keys(0, "test", list(seeds)), np.asarray(things), np.asarray(relation))
    return torch.from_numpy(draw(plan, np.arange(len(described)), 32))


def maker(hears: Callable[[Described], Described] = lambda d: d) -> Any:
    """Stands in for a pipeline: draws what it hears."""

    def call(prompts: list[str], *, seed: list[int], **_: Any) -> Any:
        return SimpleNamespace(media=drawn([hears(understand(p)) for p in prompts], seed))

    return call


def deaf_to(attribute: str, value: str) -> Callable[[Described], Described]:
    def hears(described: Described) -> Described:
        first, second = described.things
        return Described((replace(first, **{attribute: value}), second), described.relation)

    return hears


def values(scores: dict[str, Any]) -> dict[str, float]:
    return {name: score.value for name, score in scores.items()}


def test_right_pictures_score_one() -> None:
    found = values(attribute_scores(maker(), DATA, n=30))
    assert all(found[name] == found[f"{name}_whole"] == 1 for name in ATTRIBUTES)


@pytest.mark.parametrize(("attribute", "value"), [("colour", "red"), ("shape", "cross"), ("size", "small")])
def test_who_does_not_hear_a_word_fails_where_it_is_about_that_word(attribute: Attribute, value: str) -> None:
    """Deaf to an attribute of the first thing: each pair about it there fails, most about other attributes do not."""
    found = values(attribute_scores(maker(deaf_to(attribute, value)), DATA, n=30))
    about_second = sum(p.index == 1 and p.first.things[0] != p.first.things[1] for p in pairs(DATA, attribute, 30)) / 30
    assert found[attribute] <= about_second < 1
    assert all(found[name] > found[attribute] for name in ("colour", "shape", "size") if name != attribute)


def test_who_draws_one_relation_only_never_gets_both() -> None:
    found = values(attribute_scores(maker(lambda d: replace(d, relation="above")), DATA, n=30))
    assert found["relation"] == found["relation_whole"] == 0
    assert found["colour"] == found["shape"] == found["size"] == 1


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_pairs_differ_by_one_word_and_were_held_out(attribute: Attribute) -> None:
    unseen = held_out_combinations()
    for pair in pairs(DATA, attribute, 40):
        a, b = (caption.split() for caption in pair.captions)
        if attribute == "relation":
            assert pair.first.things == pair.second.things and pair.first.relation != pair.second.relation
        else:
            assert len(a) == len(b) and sum(x != y for x, y in zip(a, b)) == 1
        for described in (pair.first, pair.second):
            way = described.canonical()
            place = [(tuple(COLOURS).index(t.colour), SHAPES.index(t.shape)) for t in way.things]
            assert unseen[(RELATIONS.index(way.relation or "") // 2, *place[0], *place[1])]


def test_more_pairs_than_there_are() -> None:
    with pytest.raises(UserError, match="held-out pairs that differ by relation; set n below"):
        pairs(DATA, "relation", 4000)
