"""Tar shards in the WebDataset layout: `key.jpg` with `key.txt`, `key.cls` or `key.json` in the same shard.

Nothing is unpacked: members are read by offset, and their names are keys and never paths.
"""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, BinaryIO, final

from sfumato.data.columns import Columns, read_captions, read_labels, read_numbers
from sfumato.data.encoded import Encoded
from sfumato.data.folder import CAPTION_KEYS, LABEL_KEYS, MAX_TEXT
from sfumato.data.places import Place, find_places, fingerprint_of
from sfumato.errors import UserError
from sfumato.pictures import EXTENSIONS

MOST_MEMBERS = 5_000_000
_TEXTS = (".txt", ".caption")


@dataclass(frozen=True)
class _Part:
    """Bytes `start ... start + size` of a shard."""

    shard: Place
    start: int
    size: int

    def read(self) -> bytes:
        return self.shard.read(self.start, self.size)


@dataclass(frozen=True)
class _Sample:
    """sides: what lies beside the picture, by suffix; None for what is too long to be a text."""

    name: str
    picture: _Part
    sides: dict[str, bytes | None]


@final
@dataclass(frozen=True, kw_only=True)
class Tar(Encoded, name="tar"):
    """Pictures of tar shards, shard by shard in the order of their names.

    path: a .tar file, several, a folder of them, or a pattern such as `shards/train-*.tar`; or addresses of these that
    fsspec reads (`s3://bucket/train-*.tar`). Captions: `.txt`, one alternative per line, or `caption` / `text` in
    `.json`. Labels: `.cls`, or `label` / `class` in `.json`. numbers: numeric entries of `.json` to read.
    """

    path: str | tuple[str, ...]
    numbers: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return ", ".join(map(str, self._shards))

    def __len__(self) -> int:
        return len(self._samples)

    def open(self, index: int) -> BinaryIO:
        return io.BytesIO(self._samples[index].picture.read())

    def name_of(self, index: int) -> str:
        return self._samples[index].name

    def fingerprint(self) -> str:
        return fingerprint_of(self._shards)

    @cached_property
    def table(self) -> Columns:
        """Labels, captions and numbers of all samples."""
        rows = [self._row(sample) for sample in self._samples]
        for key in ("label", *self.numbers):
            without = [i for i, row in enumerate(rows) if row.get(key) is None]
            if without and (key != "label" or len(without) < len(rows)):
                raise UserError(
                    f"{self.name_of(without[0])}: has no '{key}', {len(without)} samples in all; give all or none"
                )
        captions = [row["caption"] for row in rows] if any(row["caption"] for row in rows) else None
        numbers = None
        if self.numbers:
            numbers = read_numbers([[row[n] for n in self.numbers] for row in rows], self.numbers, self.where)
        if not rows or rows[0].get("label") is None:
            return Columns(captions=captions, numbers=numbers, number_names=self.numbers)
        labels, names = read_labels([row["label"] for row in rows], self.where)
        return Columns(labels, names, captions, numbers, self.numbers)

    @cached_property
    def _shards(self) -> list[Place]:
        return find_places(self.path, ".tar")

    @cached_property
    def _samples(self) -> list[_Sample]:
        return [sample for shard in self._shards for sample in _index(shard)]

    def _row(self, sample: _Sample) -> dict[str, Any]:
        row: dict[str, Any] = {"caption": ()}
        if ".json" in sample.sides:
            try:
                stored = json.loads(_text(sample, ".json"))
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(f"{sample.name}: its .json can't be read ({error}); repair the shard") from None
            if not isinstance(stored, dict):
                raise UserError(f'{sample.name}: its .json is not an object; write {{"caption": ...}}')
            row |= {n: stored.get(n) for n in self.numbers}
            row["label"] = next((stored[k] for k in LABEL_KEYS if k in stored), None)
            row["caption"] = read_captions(next((stored[k] for k in CAPTION_KEYS if k in stored), None), sample.name)
        if ".cls" in sample.sides:
            text = _text(sample, ".cls").strip()
            row["label"] = int(text) if text.lstrip("-").isdigit() else text
        for suffix in _TEXTS:
            if suffix in sample.sides:
                row["caption"] = read_captions(_text(sample, suffix).splitlines(), sample.name)
        return row


def _text(sample: _Sample, suffix: str) -> str:
    raw = sample.sides[suffix]
    if raw is None:
        raise UserError(f"{sample.name}: its {suffix} is over 1 MiB, which is not a caption; repair the shard")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise UserError(f"{sample.name}: its {suffix} is not UTF-8 text; repair the shard") from None


def _index(shard: Place) -> list[_Sample]:
    """The samples of a shard in their order: where the pictures lie, and the texts themselves, in one pass."""
    groups: dict[str, dict[str, _Part | bytes | None]] = {}
    try:
        with shard.open() as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            count = end = 0
            while (member := archive.next()) is not None:
                count += 1
                if count > MOST_MEMBERS:
                    raise UserError(f"{shard}: has over {MOST_MEMBERS:,} members; split it into several shards")
                archive.members = []  # type: ignore[attr-defined]  # the archive keeps all headers otherwise
                _add(groups, shard, archive, member)
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        _check_end(shard, end)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"{shard}: is not a readable tar file ({error}); plain .tar only, unpack .tar.gz first"
        ) from None
    samples = []
    for key, parts in groups.items():
        images = [suffix for suffix, part in parts.items() if isinstance(part, _Part)]
        if len(images) > 1:
            raise UserError(f"{shard}: '{key}' has {len(images)} pictures ({', '.join(images)}); keep one per key")
        if images:
            picture = parts.pop(images[0])
            assert isinstance(picture, _Part)
            sides = {suffix: part for suffix, part in parts.items() if not isinstance(part, _Part)}
            samples.append(_Sample(f"{shard.name}/{key}", picture, sides))
    return samples


def _check_end(shard: Place, end: int) -> None:
    """After the last member come zeros: `tarfile` itself stops in silence at a header that is cut or damaged."""
    with shard.open() as stream:
        stream.seek(end)
        block = stream.read(tarfile.BLOCKSIZE)
    if any(block) or 0 < len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"damaged at byte {end:,}")


def _add(
    groups: dict[str, dict[str, _Part | bytes | None]], shard: Place, archive: tarfile.TarFile, member: tarfile.TarInfo
) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name:
        raise UserError(f"{shard}: the member '{member.name}' points outside the archive; make the shard again")
    if member.isdir():
        return
    if not member.isreg() or member.issparse():
        raise UserError(f"{shard}: the member '{member.name}' is a link or device; shards hold plain files only")
    stem, dot, suffix = name.name.partition(".")
    suffix = dot + suffix.lower()
    if not stem or suffix not in (*EXTENSIONS, *_TEXTS, ".cls", ".json"):
        return
    parts = groups.setdefault((name.parent / stem).as_posix(), {})
    if suffix in parts:
        raise UserError(f"{shard}: holds '{member.name}' twice; keep one")
    if suffix in EXTENSIONS:
        parts[suffix] = _Part(shard, member.offset_data, member.size)
        return
    side = archive.extractfile(member) if member.size <= MAX_TEXT else None
    parts[suffix] = None if side is None else side.read()
