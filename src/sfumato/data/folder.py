"""Folders of files that are items: classes by sub-folder, captions beside the files or in metadata. Here: of pictures."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from sfumato.data.base import file_digest
from sfumato.data.columns import Columns, read_captions, read_labels, read_numbers
from sfumato.data.encoded import Encoded
from sfumato.errors import UserError
from sfumato.pictures import EXTENSIONS, BadPicture

METADATA = ("metadata.jsonl", "metadata.csv")
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "val", "valid", "validation", "held_out")
CAPTION_KEYS = ("caption", "captions", "text", "prompt")
LABEL_KEYS = ("label", "labels", "class", "category")
MAX_TEXT = 1 << 20
_OTHER_PICTURES = (".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".svg", ".jxl")


@dataclass
class _Listing:
    """What lies below a folder: paths relative to it."""

    items: list[str] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)
    others: Counter[str] = field(default_factory=Counter)


def columns_beside(path: str, names: Sequence[str], *, split: bool) -> Columns:
    """Captions from `name.txt` beside each file, classes from the first sub-folder (split: the first below train or test)."""
    texts = [Path(path, name).with_suffix(".txt") for name in names]
    options = [read_captions(read_text(t).splitlines(), str(t)) if t.is_file() else () for t in texts]
    captions = options if any(options) else None
    inside = [name.split("/")[split:] for name in names]
    if any(len(parts) < 2 for parts in inside) or len({parts[0] for parts in inside}) < 2:
        return Columns(captions=captions)
    labels, classes = read_labels([parts[0] for parts in inside], path)
    return Columns(labels, classes, captions)


class Listed:
    """What the names below a folder, the texts beside its files and its metadata say of the files: a part of data sets.

    Classes: the first sub-folder, if every file lies in one and there are two or more. Captions: `name.txt` beside the
    file, one alternative per line; or `metadata.jsonl` / `metadata.csv` with `file_name` and `caption` (or `text`),
    `label`, and the columns named in `numbers`. Sub-folders called train and test (or val, validation) are the split.
    Links to folders are followed, once each.
    """

    path: str
    numbers: tuple[str, ...]
    suffixes: ClassVar[tuple[str, ...]]  # of the files that are items
    others: ClassVar[tuple[str, ...]]  # of files that could be some, and are not read
    nouns: ClassVar[tuple[str, str]]  # one of the items, several
    formats: ClassVar[tuple[str, str]]  # what others are best converted to, all that are read

    def name_of(self, index: int) -> str:
        return self._names[index]

    def fingerprint(self) -> str:
        root = Path(self.path)
        return file_digest([*(root / name for name in self._names), *self._metadata_files], root)

    def _remarks(self) -> list[str]:
        """What is doubtful about the listing, one sentence each."""
        said = []
        if self._listing.others:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self._listing.others.items()))
            said.append(f"{kinds} files are not read; convert them to {self.formats[0]}")
        captions = self.table.captions
        if captions is not None:
            without = sum(not options for options in captions)
            if without:
                said.append(f"{without} of {len(self._names)} {self.nouns[1]} have no caption")
        return said

    def own_split(self) -> NDArray[np.bool_] | None:
        if not self._parts:
            return None
        return np.asarray([name.partition("/")[0] in TEST_NAMES for name in self._names], np.bool_)

    @cached_property
    def table(self) -> Columns:
        """Labels, captions and numbers, from metadata where there is some, else from names and text files."""
        rows = self._metadata()
        if rows is None:
            if self.numbers:
                raise UserError(
                    f"{self.path}: numbers = {', '.join(self.numbers)} needs a metadata.jsonl or metadata.csv"
                )
            labels, names = self._classes()
            return Columns(labels, names, self._captions())
        return self._from_metadata(rows)

    @cached_property
    def _listing(self) -> _Listing:
        root = Path(self.path)
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "there is no such folder"
            raise UserError(f"{root}: {what}; give a folder of {self.nouns[1]}")
        listing = _Listing()
        for name in walk(root):
            suffix = f".{name.rpartition('.')[2].lower()}"
            if suffix in self.suffixes:
                listing.items.append(name)
            elif suffix == ".txt":
                listing.texts.add(name)
            elif suffix in self.others:
                listing.others[suffix] += 1
        if not listing.items:
            others = listing.others
            some = f" ({others.total()} {'/'.join(sorted(others))} files are not read)" if others else ""
            raise UserError(f"{root}: holds no {self.nouns[1]}{some}; put {self.formats[1]} files there")
        listing.items.sort()
        return listing

    @property
    def _names(self) -> list[str]:
        """Paths of the items, relative to the folder."""
        return self._listing.items

    @cached_property
    def _parts(self) -> tuple[str, ...]:
        """The split sub-folders (train, test, ...), if the items lie in nothing else."""
        tops = {name.partition("/")[0] if "/" in name else "" for name in self._names}
        if tops <= {*TRAIN_NAMES, *TEST_NAMES} and tops & {*TRAIN_NAMES} and tops & {*TEST_NAMES}:
            return tuple(sorted(tops))
        return ()

    def _classes(self) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
        level = 1 if self._parts else 0
        inside = [name.split("/")[level:] for name in self._names]
        if any(len(parts) < 2 for parts in inside) or len({parts[0] for parts in inside}) < 2:
            return None, ()
        return read_labels([parts[0] for parts in inside], self.path)

    def _captions(self) -> list[tuple[str, ...]] | None:
        listed = []
        for name in self._names:
            beside = name.rpartition(".")[0] + ".txt"
            text = Path(self.path, beside)
            listed.append(
                read_captions(read_text(text).splitlines(), str(text)) if beside in self._listing.texts else ()
            )
        return listed if any(listed) else None

    @cached_property
    def _metadata_files(self) -> list[Path]:
        root = Path(self.path)
        found = [
            f for folder in (root, *(root / p for p in self._parts)) for n in METADATA if (f := folder / n).is_file()
        ]
        for folder in {f.parent for f in found}:
            if sum(f.parent == folder for f in found) > 1:
                raise UserError(f"{folder}: has both metadata.jsonl and metadata.csv; keep one")
        return found

    def _metadata(self) -> dict[str, dict[str, Any]] | None:
        """The row of every item that a metadata file names."""
        known = set(self._names)
        rows: dict[str, dict[str, Any]] = {}
        for file in self._metadata_files:
            for number, row in _rows(file):
                name = row.get("file_name")
                if not isinstance(name, str) or not name:
                    raise UserError(f"{file}:{number}: has no file_name; every row names its {self.nouns[0]}")
                if Path(name).is_absolute() or ".." in Path(name).parts:
                    raise UserError(
                        f"{file}:{number}: file_name '{name}' points outside the folder; give a path inside it"
                    )
                picture = (file.parent / name).relative_to(self.path).as_posix()
                if picture in rows:
                    raise UserError(f"{file}:{number}: '{name}' has a row already; keep one")
                if picture not in known:
                    raise UserError(
                        f"{file}:{number}: there is no {self.nouns[0]} '{name}'; add the file or delete the row"
                    )
                rows[picture] = row
        return rows if self._metadata_files else None

    def _from_metadata(self, rows: dict[str, dict[str, Any]]) -> Columns:
        where = str(self._metadata_files[0])
        keys = {key for row in rows.values() for key in row}
        caption = next((k for k in CAPTION_KEYS if k in keys), None)
        label = next((k for k in LABEL_KEYS if k in keys), None)
        for column in (*([label] if label else []), *self.numbers):
            if column not in keys:
                raise UserError(f"{where}: has no column '{column}'; its columns are {', '.join(sorted(keys))}")
            without = [name for name in self._names if rows.get(name, {}).get(column) in (None, "")]
            if without:
                raise UserError(f"{where}: '{without[0]}' has no '{column}', {len(without)} in all")
        listed = [rows.get(name, {}) for name in self._names]
        captions = [read_captions(row.get(caption), where) for row in listed] if caption else self._captions()
        labels, names = read_labels(_whole([row[label] for row in listed]), where) if label else self._classes()
        numbers = (
            read_numbers([[row[n] for n in self.numbers] for row in listed], self.numbers, where)
            if self.numbers
            else None
        )
        return Columns(labels, names, captions, numbers, self.numbers)


@final
@dataclass(frozen=True, kw_only=True)
class Folder(Listed, Encoded, name="folder"):
    """Pictures below a folder, in the order of their names; see `Listed` for classes, captions, numbers and the split."""

    suffixes = EXTENSIONS
    others = _OTHER_PICTURES
    nouns = ("picture", "pictures")
    formats = ("PNG, JPEG or WebP", "PNG, JPEG, WebP, GIF or BMP")

    path: str
    numbers: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return self.path

    def __len__(self) -> int:
        return len(self._names)

    def open(self, index: int) -> BinaryIO:
        try:
            return Path(self.path, self._names[index]).open("rb")
        except OSError as error:
            raise BadPicture(error.strerror or "can't be opened") from None

    @property
    def problems(self) -> tuple[str, ...]:
        return (*super().problems, *self._remarks())


def read_text(file: Path) -> str:
    """A small UTF-8 text file."""
    if file.stat().st_size > MAX_TEXT:
        raise UserError(f"{file}: over 1 MiB is not a caption; give one caption per line")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not UTF-8 text; save it as UTF-8") from None


def _whole(values: list[Any]) -> list[Any]:
    """Labels of a CSV file are text: whole numbers when all of them are."""
    if all(isinstance(v, str) and v.lstrip("-").isdigit() for v in values):
        return [int(v) for v in values]
    if any(isinstance(v, str) for v in values):
        return [str(v) for v in values]
    return values


def walk(root: Path) -> Iterator[str]:
    """All files below a folder, relative to it. A folder that a link leads to again is left out, and so is a hidden one."""
    seen = set()
    for folder, inside, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inside.clear()
            continue
        seen.add(real)
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        inner = Path(folder).relative_to(root).as_posix()
        prefix = "" if inner == "." else f"{inner}/"
        yield from (prefix + name for name in files if not name.startswith("."))


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of a metadata file."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            if file.suffix == ".csv":
                reader = csv.DictReader(stream)
                for row in reader:
                    if None in row:
                        raise UserError(f"{file}:{reader.line_num}: has more fields than the first line; quote commas")
                    yield reader.line_num, row
                return
            for number, line in enumerate(stream, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise UserError(f"{file}:{number}: is not a JSON object; one object per line")
                    yield number, row
    except (json.JSONDecodeError, csv.Error, RecursionError) as error:
        raise UserError(f"{file}: not readable ({error}); one JSON object per line, or CSV with a header") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not UTF-8 text; save it as UTF-8") from None
