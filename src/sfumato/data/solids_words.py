"""The language of the solids: what a model can hold, its captions, and how a caption is understood."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sfumato.data.shapes_words import Thing
from sfumato.errors import UserError

SIZES = ("small", "large")
SHAPES = ("ball", "box", "pyramid", "ring")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 45, 40),
    "yellow": (235, 195, 40),
    "green": (50, 155, 65),
    "blue": (45, 90, 205),
    "white": (235, 235, 230),
    "black": (40, 40, 45),
}
_ONE = ("a {a}", "{a}", "one {a}", "there is a {a}")
_TWO = ("a {a} on a {b}", "a {b} under a {a}", "{a} on {b}", "there is a {a} on a {b}")
_THING = re.compile(rf"\b({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")
_RELATION = re.compile(r"\b(on|under)\b")


@dataclass(frozen=True)
class Stack:
    """One solid, or two, the first on the second."""

    things: tuple[Thing, ...]

    def captions(self) -> tuple[str, ...]:
        """All wordings, the canonical one first: "a small red ball on a large blue box"."""
        if len(self.things) == 1:
            return tuple(phrase.format(a=self.things[0]) for phrase in _ONE)
        return tuple(phrase.format(a=self.things[0], b=self.things[1]) for phrase in _TWO)


def understand(caption: str) -> Stack:
    """What a caption asks for, in any of the wordings. Raises UserError for anything else."""
    text = " ".join(caption.lower().split())
    things = tuple(Thing(*found) for found in _THING.findall(text))
    relations = _RELATION.findall(text)
    if len(things) == 1 and not relations:
        return Stack(things)
    if len(things) == 2 and len(relations) == 1:
        return Stack(things if relations[0] == "on" else things[::-1])
    raise UserError(f"caption '{caption}': describes no solids; say 'a small red ball on a large blue box'")
