"""How emoji are asked for: the caption of a picture, other words for the same, and the words that say how it was moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sfumato.data.emoji_table import Row

LONGEST = 64  # bytes of a caption in training: batches of one length are recorded once on a GPU
_PLAIN, _BARE, _KEYWORDS, _ALONE = 0.45, 0.55, 0.62, 0.67  # shares of the wordings, added up
MIRRORED, MOVED = "mirrored", "off centre"


def style_words(style: str) -> str:
    """`fluent-flat` as it is written in captions: `fluent flat`."""
    return style.replace("-", " ")


def subject(row: Row) -> str:
    """`waving hand, dark skin tone`: what is shown, without the design."""
    return f"{row.name}, {row.tone} skin tone" if row.tone else row.name


def caption(row: Row, style: str | None = None) -> str:
    """`waving hand, dark skin tone, noto emoji`: the one caption that names everything. style: another design."""
    return f"{subject(row)}, {style_words(style or row.style)} emoji"


def reworded(row: Row, draws: Sequence[float], moved: Sequence[str] = ()) -> str:
    """A caption that says the same in other words: a function of four numbers of [0, 1).

    45% the plain one; 10% without the design; 7% keywords in place of the name; 5% the design alone; the rest with an
    article, the design in front, or keywords behind; all but the plain one in small letters. What would be longer than
    `LONGEST` bytes leaves out the design. moved: words for what was done to the picture, which are never left out.
    """
    kind, which, order, more = draws
    style = f"{style_words(row.style)} emoji"
    said = subject(row)
    kept = list(moved)
    if kind < _PLAIN:
        return _fitting([], row, kept)
    if kind < _BARE:
        bare = ", ".join([said, *kept]).lower()
        named = ", ".join([f"{said} emoji", *kept]).lower()
        return bare if more < 0.5 or len(named.encode()) > LONGEST else named
    chosen = _some(row.keywords, which)
    if kind < _KEYWORDS and len(chosen) > 1:
        tone = [f"{row.tone} skin tone"] if row.tone else []
        return _fitting([", ".join([" ".join(chosen), *tone, *kept, style]).lower()], row, kept)
    if _KEYWORDS <= kind < _ALONE:
        return ", ".join([*kept, style])
    article = "an" if row.name[:1].lower() in "aeiou" else "a"
    named = f"{article} {said}" if order < 0.5 else said
    longer = f"{named}, {', '.join(chosen)}" if chosen and more < 0.4 else named
    front = order * 10 % 1 < 0.5
    forms = [_placed(text.lower(), style, kept, front) for text in (longer, named)]
    return _fitting(forms, row, kept)


def jumbled(row: Row, number: float, words: Sequence[str]) -> Row:
    """The same with other words in its name, and without key words: a function of one number of [0, 1).

    In half of all cases every word, in the others each with probability 1/2 and one at least, is replaced by one of
    `words`, half of these with their letters shuffled: words that nobody knows. A row stays as it is if its name is blank,
    or where there would be no room for the words that say how it was moved.
    """
    name = row.name.split()
    if not name:
        return row
    rng = np.random.default_rng(int(number * 2.0**52))
    gone = rng.random(len(name)) < (1.0 if rng.random() < 0.5 else 0.5)
    gone[rng.integers(len(name))] = True
    for at in np.flatnonzero(gone).tolist():
        word = words[int(rng.integers(len(words)))]
        name[at] = "".join(rng.permutation(list(word))) if rng.random() < 0.5 else word
    made = replace(row, name=" ".join(name), keywords=())
    return made if may_be_moved(made) else row


def _placed(said: str, style: str, kept: Sequence[str], front: bool) -> str:
    return ", ".join([f"{style} of {said}", *kept] if front else [said, *kept, style])


def _fitting(forms: Sequence[str], row: Row, kept: Sequence[str]) -> str:
    """The first form that is not too long, or the plain caption, or that without the design."""
    bare = ", ".join([subject(row), *kept])
    plain = f"{bare}, {style_words(row.style)} emoji"
    return next((form for form in (*forms, plain) if len(form.encode()) <= LONGEST), bare)


def may_be_moved(row: Row) -> bool:
    """Whether there is room in a caption for the words that say so."""
    return len(", ".join([subject(row), MIRRORED, MOVED]).encode()) <= LONGEST


def _some(keywords: Sequence[str], which: float) -> list[str]:
    """One to three keywords, from a place that `which` chooses."""
    if not keywords:
        return []
    first = int(which * len(keywords))
    count = 1 + int(which * 7919 % 3)
    return [keywords[(first + i) % len(keywords)] for i in range(min(count, len(keywords)))]
