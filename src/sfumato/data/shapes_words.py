"""The language of the shapes: what a picture can hold, its captions, and how a caption is understood."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sfumato.errors import UserError

SIZES = ("small", "large")
SHAPES = ("circle", "square", "triangle", "cross")
RELATIONS = ("above", "below", "left of", "right of")  # of the first thing to the second; neighbours are opposites
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (240, 130, 30),
    "yellow": (235, 200, 20),
    "green": (40, 150, 60),
    "cyan": (40, 190, 200),
    "blue": (40, 80, 210),
    "purple": (140, 50, 180),
    "black": (30, 30, 30),
}
_ONE = ("a {a}", "{a}", "one {a}", "there is a {a}", "a picture of a {a}")
_TWO = (
    "a {a} {relation} a {b}",
    "a {b} {opposite} a {a}",
    "{a} {relation} {b}",
    "there is a {a} {relation} a {b}",
    "a picture of a {a} {relation} a {b}",
)
_THING = re.compile(rf"\b({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")
_RELATION = re.compile(rf"\b({'|'.join(RELATIONS)})\b")


@dataclass(frozen=True)
class Thing:
    """One shape or solid: "small red circle"."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Described:
    """One thing, or two and the relation of the first to the second."""

    things: tuple[Thing, ...]
    relation: str | None = None

    def captions(self) -> tuple[str, ...]:
        """All wordings, the canonical one first: "a small red circle above a large blue square"."""
        if self.relation is None:
            return tuple(phrase.format(a=self.things[0]) for phrase in _ONE)
        first, second = self.things
        turned = RELATIONS[RELATIONS.index(self.relation) ^ 1]
        return tuple(p.format(a=first, b=second, relation=self.relation, opposite=turned) for p in _TWO)

    def canonical(self) -> Described:
        """The same picture described with `above` or `left of`."""
        if self.relation is None or RELATIONS.index(self.relation) % 2 == 0:
            return self
        return Described(self.things[::-1], RELATIONS[RELATIONS.index(self.relation) - 1])


def understand(caption: str) -> Described:
    """What a caption asks for, in any of the wordings. Raises UserError for anything else."""
    text = " ".join(caption.lower().split())
    things = tuple(Thing(*found) for found in _THING.findall(text))
    relations = _RELATION.findall(text)
    if len(things) == 1 and not relations:
        return Described(things)
    if len(things) == 2 and len(relations) == 1:
        return Described(things, relations[0])
    raise UserError(
        f"caption '{caption}': describes no picture of shapes; say 'a small red circle above a large blue square'"
    )
