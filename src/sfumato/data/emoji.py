"""Emoji of several designs with captions: what the model that ships was trained on."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.core.media import Batch, Column
from sfumato.data.base import Draws, Indices, digest, expand
from sfumato.data.columns import Columns
from sfumato.data.emoji_table import Row, read_table
from sfumato.data.emoji_words import MIRRORED, MOVED, caption, jumbled, may_be_moved, reworded
from sfumato.data.memory import InMemory
from sfumato.errors import UserError, did_you_mean
from sfumato.pictures import BadPicture, Look, decode

STYLES = ("noto", "noto-blob", "twemoji", "fluent", "fluent-flat")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
_FEWEST = 4  # designs that a name must have for one of them to be held out: three are left to learn it from
_TONED_SHARE = 0.2  # of the names held out of a design with skin tones, those that have some
_FLIP, _MOVE = 0.25, 0.15  # shares of the draws
_LEFT_ALONE = ("symbols", "flags", "")  # groups whose pictures mean something else in the mirror
_DIRECTED = frozenset(
    ["left", "right", "leftwards", "rightwards", "left-facing", "right-facing", "clockwise", "counterclockwise"]
)

Part = Literal["known", "new"]


@final
@dataclass(frozen=True, kw_only=True)
class Emoji(InMemory, name="emoji"):
    """Pictures of emoji, `size` x `size` on white, each with a caption such as "red apple, fluent emoji".

    path: a table with the columns of `emoji_table.read_table`. styles: the designs that are read, all others are left out.
    hold: how many names of each design are held out though the name is known from three other designs or more; chosen by
    a hash of name and design, no name twice, a fifth of them with skin tones where a design has these. With the table's own
    test part, whose names are held out in every design, they are the held-out items: `part("known")`, `part("new")`.

    A draw words the caption in another way (`emoji_words.reworded`), mirrors a quarter of the pictures that may be
    mirrored, and moves 15% by up to `shift` pixels; both are said in the caption, so that a model learns not to do it
    unasked. swap: share of the draws in whose caption words of the name are others (`emoji_words.jumbled`): a name that
    says little leaves the design to the words that name it, and unknown words spoil less. All pictures are held in
    memory: 12 KiB each at 64 x 64.
    """

    path: str
    styles: tuple[str, ...] = STYLES
    size: int = 64
    hold: int = 60
    shift: int = 4
    swap: float = 0.0

    def __post_init__(self) -> None:
        for name, value, least in (("size", self.size, 1), ("hold", self.hold, 0), ("shift", self.shift, 0)):
            if value < least:
                raise UserError(f"{name} = {value}: must be at least {least}")
        if not 0 <= self.swap < 1:
            raise UserError(f"swap = {self.swap}: must be at least 0 and less than 1")
        _ = self.rows

    @property
    def where(self) -> str:
        return self.path

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The pictures of the chosen designs, in the order of the table."""
        table = read_table(Path(self.path))
        there = sorted({row.style for row in table})
        for style in self.styles:
            if style not in there:
                raise UserError(f"{self.path}: has no pictures of the style '{style}'; {did_you_mean(style, there)}")
        return tuple(row for row in table if row.style in self.styles)

    @cached_property
    def media(self) -> NDArray[Any]:
        look = Look(self.size, self.size, 3)

        def picture(row: Row) -> NDArray[np.uint8]:
            try:
                return decode(io.BytesIO(row.raw), look)
            except BadPicture as error:
                raise UserError(f"{self.path}: the picture of '{caption(row)}' can't be read ({error})") from None

        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(picture, self.rows)))

    @cached_property
    def table(self) -> Columns:
        """The plain captions."""
        return Columns(captions=[(caption(row),) for row in self.rows])

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        index = np.asarray(indices, np.int64)
        media = self.media[index]
        if draws is not None:
            mirrored, moves = self._moved(index, draws)
            media[mirrored] = media[mirrored][..., ::-1]
            for i in np.flatnonzero(moves.any(1)).tolist():
                media[i] = _rolled(media[i], *moves[i].tolist())
        return Batch(torch.from_numpy(media), self.columns(index, draws))

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        index = np.asarray(indices, np.int64)
        if draws is None:
            return self.table.take(index)
        mirrored, moves = self._moved(index, draws)
        numbers = np.stack([expand(draws, f"words {k}") for k in range(4)], 1).tolist()
        told = self._told(index, draws)
        said = [
            reworded(row, u, [w for w, there in ((MIRRORED, m), (MOVED, bool(any(d)))) if there])
            for row, u, m, d in zip(told, numbers, mirrored.tolist(), moves.tolist())
        ]
        return {"caption": said}

    def held_out_mask(self) -> NDArray[np.bool_]:
        return self._mask

    def part(self, name: Part) -> NDArray[np.int64]:
        """Indices of held-out items: of `known` names in a design held out for them, or of `new` names."""
        if name not in ("known", "new"):
            raise UserError(f"there is no part '{name}' of the emoji; known: known, new")
        test = np.asarray([row.test for row in self.rows], np.bool_)
        return np.flatnonzero(test if name == "new" else self._mask & ~test)

    @cached_property
    def _mask(self) -> NDArray[np.bool_]:
        pairs = held_out_pairs(self.rows, self.hold)
        return np.asarray([row.test or (row.name, row.style) in pairs for row in self.rows], np.bool_)

    def fingerprint(self) -> str:
        """Of every picture, word and setting."""
        said = "\n".join(f"{caption(r)}|{'|'.join(r.keywords)}|{r.group}|{r.test}" for r in self.rows)
        whole = hashlib.sha256(b"".join(row.raw for row in self.rows)).digest()
        return digest(whole, said, f"{self.size} {self.hold} {self.shift}" + (f" {self.swap}" if self.swap else ""))

    def _told(self, index: NDArray[np.int64], draws: NDArray[np.float64]) -> list[Row]:
        """The rows whose captions are told: a share `swap` of them with other words in the name."""
        rows = [self.rows[i] for i in index.tolist()]
        if self.swap:
            numbers = expand(draws, "other")
            for at in np.flatnonzero(expand(draws, "swap") < self.swap).tolist():
                rows[at] = jumbled(rows[at], float(numbers[at]), self._words)
        return rows

    @cached_property
    def _words(self) -> tuple[str, ...]:
        """The words of all names that are trained on."""
        names = {row.name for row, held_out in zip(self.rows, self._mask) if not held_out}
        return tuple(sorted({word for name in names for word in name.split()}))

    def _moved(
        self, index: NDArray[np.int64], draws: NDArray[np.float64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """(B,) whether each picture is mirrored, and (B, 2) how far it is moved down and across."""
        mirrored = (expand(draws, "flip") < _FLIP) & self._may_mirror[index]
        far = np.stack([expand(draws, axis) for axis in ("down", "across")], 1)
        moves = np.floor(far * (2 * self.shift + 1)).astype(np.int64) - self.shift
        moves[(expand(draws, "move") >= _MOVE) | ~self._may_move[index]] = 0
        return mirrored, moves

    @cached_property
    def _may_mirror(self) -> NDArray[np.bool_]:
        may = [r.group not in _LEFT_ALONE and not _DIRECTED & set(r.name.lower().split()) for r in self.rows]
        return np.asarray(may, np.bool_) & self._may_move

    @cached_property
    def _may_move(self) -> NDArray[np.bool_]:
        return np.asarray([may_be_moved(row) for row in self.rows], np.bool_)


def held_out_pairs(rows: Sequence[Row], hold: int) -> frozenset[tuple[str, str]]:
    """(name, design) pairs to hold out: `hold` of each design, as far as there are so many, no name twice.

    A function of the names, designs and tones alone: pairs are taken in the order of a hash of both.
    """
    styles: dict[str, set[str]] = {}
    toned: set[tuple[str, str]] = set()
    for row in rows:
        if not row.test:
            styles.setdefault(row.name, set()).add(row.style)
            if row.tone:
                toned.add((row.name, row.style))
    taken: set[str] = set()
    pairs: list[tuple[str, str]] = []
    toned_first = sorted({row.style for row in rows}, key=lambda s: (-sum(style == s for _, style in toned), s))
    for style in toned_first:
        fitting = [name for name, found in styles.items() if style in found and len(found) >= _FEWEST]
        fitting.sort(key=partial(_key, style=style))
        first = [name for name in fitting if (name, style) in toned][: int(_TONED_SHARE * hold)]
        plain = [name for name in fitting if name not in taken and (name, style) not in toned]
        chosen = [name for name in first if name not in taken]
        chosen += plain[: hold - len(chosen)]
        taken |= set(chosen)
        pairs += [(name, style) for name in chosen]
    return frozenset(pairs)


def _key(name: str, style: str) -> bytes:
    return hashlib.sha256(f"{name}|{style}".encode()).digest()


def _rolled(picture: NDArray[np.uint8], down: int, across: int) -> NDArray[np.uint8]:
    """(C, H, W) moved, white where nothing comes from."""
    made = np.full_like(picture, 255)
    height, width = picture.shape[1:]
    rows, columns = _overlap(down, height), _overlap(across, width)
    made[:, rows[1], columns[1]] = picture[:, rows[0], columns[0]]
    return made


def _overlap(by: int, size: int) -> tuple[slice, slice]:
    """What of an axis stays in sight: (where it was, where it is)."""
    return slice(max(0, -by), size - max(0, by)), slice(max(0, by), size + min(0, by))
