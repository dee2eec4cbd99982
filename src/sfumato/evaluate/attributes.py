"""Whether pictures follow single words: pairs of prompts that differ by one attribute, read back from the pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal, final

import numpy as np

from sfumato.core.random import keys
from sfumato.data import Shapes
from sfumato.data.shapes import held_out_combinations
from sfumato.data.shapes_reader import Seen, read_many, relation_of, shows
from sfumato.data.shapes_words import COLOURS, RELATIONS, SHAPES, SIZES, Described, Thing
from sfumato.errors import UserError
from sfumato.evaluate.accuracy import Share
from sfumato.evaluate.scores import Score
from sfumato.pipeline import Pipeline

Attribute = Literal["colour", "shape", "size", "relation"]
ATTRIBUTES: tuple[Attribute, ...] = ("colour", "shape", "size", "relation")
_VALUES: dict[str, tuple[str, ...]] = {"colour": tuple(COLOURS), "shape": SHAPES, "size": SIZES}
_BATCH = 256


@final
@dataclass(frozen=True)
class Pair:
    """Two descriptions that differ by the value of one attribute, in thing `index` (of the relation, in none)."""

    first: Described
    second: Described
    attribute: Attribute
    index: int

    @property
    def captions(self) -> tuple[str, str]:
        """How both are asked for."""
        return self.first.captions()[0], self.second.captions()[0]


def pairs(data: Shapes, attribute: Attribute, n: int) -> list[Pair]:
    """n pairs of held-out combinations: neither description's colours, shapes and relation were ever trained on together.

    From held-out pictures in order, the change chosen by a hash. Raises UserError if there are fewer.
    """
    unseen = held_out_combinations()
    found: list[Pair] = []
    for index in np.flatnonzero(data.held_out_mask()).tolist():
        first = data.describe(index)
        options = [pair for pair in _changes(first, attribute) if _held_out(pair.second, unseen)]
        if options:
            chance = int(keys(0, f"pair/{attribute}", [index])[0] >> np.uint64(11))
            found.append(options[chance % len(options)])
        if len(found) == n:
            return found
    raise UserError(
        f"n = {n}: these data have {len(found)} held-out pairs that differ by {attribute}; set n below that"
    )


def _changes(first: Described, attribute: Attribute) -> Iterator[Pair]:
    if attribute == "relation":
        alike = [(thing.colour, thing.shape) for thing in first.things]
        for value in RELATIONS:
            if value != first.relation and alike[0] != alike[1]:  # else nobody can tell which is which
                yield Pair(first, replace(first, relation=value), attribute, 0)
        return
    for index, thing in enumerate(first.things):
        for value in _VALUES[attribute]:
            changed = replace(thing, **{attribute: value})
            things = tuple(changed if i == index else other for i, other in enumerate(first.things))
            if changed != thing and things[0] != things[1]:
                yield Pair(first, Described(things, first.relation), attribute, index)


def _held_out(described: Described, unseen: np.ndarray) -> bool:
    way = described.canonical()
    colours = tuple(COLOURS)
    (a, b), relation = way.things, RELATIONS.index(way.relation or "")
    place = (colours.index(a.colour), SHAPES.index(a.shape), colours.index(b.colour), SHAPES.index(b.shape))
    return bool(unseen[relation // 2][place])


def shows_attribute(seen: Sequence[Seen], asked: Described, attribute: Attribute, index: int) -> bool:
    """Whether a picture of exactly as many things shows what is asked for in this attribute.

    Things are matched so that most of the attributes asked for agree; then thing `index` must have the attribute's value, or
    both the relation.
    """
    if len(seen) != len(asked.things):
        return False
    order = max(permutations(seen), key=lambda order: sum(_agreeing(s, t) for s, t in zip(order, asked.things)))
    if attribute == "relation":
        return relation_of(order[0], order[1]) == asked.relation
    found: str | None = getattr(order[index], attribute)
    wanted: str = getattr(asked.things[index], attribute)
    return found == wanted


def _agreeing(seen: Seen, thing: Thing) -> int:
    return (seen.size == thing.size) + (seen.colour == thing.colour) + (seen.shape == thing.shape)


def attribute_scores(
    pipeline: Pipeline,
    data: Shapes,
    *,
    n: int = 200,
    seed: int = 0,
    guidance: float | None = None,
    steps: int | None = None,
) -> dict[str, Score]:
    """For each attribute, the share of n pairs of prompts whose two pictures both show their own value of it.

    Both prompts of a pair have one seed, so the same noise. `colour`, `shape`, `size`, `relation`: that attribute alone;
    `..._whole`: both pictures show all of their captions. No real value: pictures of such pairs were not drawn.
    """
    scores: dict[str, Score] = {}
    for attribute in ATTRIBUTES:
        chosen = pairs(data, attribute, n)
        prompts = [caption for pair in chosen for caption in pair.captions]
        seeds = [seed + i for i in range(n) for _ in range(2)]
        made = pipeline(
            prompts,
            seed=seeds,
            guidance_scale=guidance,
            num_inference_steps=steps,
            batch_size=_BATCH,
            output_type="pt",
        )
        seen = read_many(made.media.numpy())
        both = [
            shows_attribute(seen[2 * i], pair.first, attribute, pair.index)
            and shows_attribute(seen[2 * i + 1], pair.second, attribute, pair.index)
            for i, pair in enumerate(chosen)
        ]
        whole = [shows(seen[2 * i], prompts[2 * i]) and shows(seen[2 * i + 1], prompts[2 * i + 1]) for i in range(n)]
        for name, right in ((attribute, both), (f"{attribute}_whole", whole)):
            share = Share(sum(right), n)
            scores[name] = Score(share.value, share.interval, None, f"share of {n} held-out pairs that differ by it")
    return scores
