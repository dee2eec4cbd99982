"""Tensors in safetensors files: whole, or in slices that several processes write side by side.

`weights.safetensors` holds whole tensors. `weights.00001-of-00004.safetensors` is what process 1 of 4 wrote: some tensors
as wholes, of others the rows start ... start + n of their first axis. `slices` in the file's metadata says which:
{name: [start, shape of the whole]}. So each file is an ordinary safetensors file, any number of processes can read what any
other number wrote, each only the rows that it needs, and nothing has to be unpickled for it (the index of
torch.distributed.checkpoint is a pickle, and neither it nor safetensors notices a flipped byte: `files.write_manifest`).

Format: https://huggingface.co/docs/safetensors. Written here rather than by the safetensors package so that the hash for the
manifest is computed on the way, and not by reading the file again; and so that a tensor of a GPU comes to the host when its
turn comes, not all of them at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sfumato.files import CorruptError

SUFFIX = ".safetensors"
_PART = re.compile(r"(.+?)(?:\.(\d{5})-of-(\d{5}))?\.safetensors")
_CHUNK = 1 << 24  # bytes written and hashed at once
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@final
@dataclass(frozen=True)
class Slice:
    """Rows start ... start + len(tensor) of a tensor of `shape`; the whole of it where the shapes are equal."""

    tensor: Tensor
    shape: tuple[int, ...]
    start: int = 0

    @classmethod
    def whole(cls, tensor: Tensor) -> Slice:
        """All of a tensor."""
        return cls(tensor, tuple(tensor.shape))


@final
@dataclass(frozen=True)
class Written:
    """What a manifest says of a file."""

    size: int
    sha256: str


def part_name(group: str, rank: int, size: int) -> str:
    """The file that process `rank` of `size` writes of a group of tensors."""
    return f"{group}{SUFFIX}" if size == 1 else f"{group}.{rank:05d}-of-{size:05d}{SUFFIX}"


def write_tensors(
    path: Path, tensors: Mapping[str, Slice], reached: Callable[[str], None] = lambda point: None
) -> Written:
    """Write a safetensors file and flush it to the disk; its size and sha256 were computed on the way.

    reached: called before and after the writing and the flushing, with the name of the point.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].tensor.element_size(), name))  # so each is aligned
    header: dict[str, Any] = {}
    parts = {n: [s.start, list(s.shape)] for n, s in tensors.items() if tuple(s.tensor.shape) != s.shape}
    if parts:
        header["__metadata__"] = {"slices": json.dumps(parts)}
    at = 0
    for name in order:
        tensor = tensors[name].tensor
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    reached("write")
    with path.open("wb", buffering=0) as stream:
        for piece in _pieces(len(text).to_bytes(8, "little") + text, (tensors[name].tensor for name in order)):
            digest.update(piece)
            while len(piece):
                piece = piece[stream.write(piece) :]
        reached("written")
        os.fsync(stream.fileno())
        reached("synced")
    return Written(8 + len(text) + at, digest.hexdigest())


def _pieces(head: bytes, tensors: Iterator[Tensor]) -> Iterator[memoryview]:
    yield memoryview(head)
    for tensor in tensors:
        raw = memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        for at in range(0, len(raw), _CHUNK):
            yield raw[at : at + _CHUNK]


@final
class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a group in a folder, read when they are asked for: as wholes by name, or by rows.

    Raises CorruptError that names the file when the files do not belong together or rows are missing.
    """

    def __init__(self, folder: Path, group: str) -> None:
        self.files = _parts(folder, group)
        self._where: dict[str, list[tuple[int, int, Any]]] = {}  # name -> (first row, number of rows, file)
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in self.files:
            try:
                self._index(file)
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                raise CorruptError(file, f"is not a safetensors file that can be read ({error})") from None
        for name, pieces in self._where.items():
            pieces.sort(key=lambda piece: piece[0])
            self._check(self.files[0], name)

    def _index(self, file: Path) -> None:
        handle: Any = safe_open(file, "pt")
        slices = json.loads((handle.metadata() or {}).get("slices", "{}"))
        for name in handle.keys():  # noqa: SIM118 - not a dictionary
            own = tuple(handle.get_slice(name).get_shape())
            start, shape = slices.get(name, (0, own))
            if self._shapes.setdefault(name, tuple(shape)) != tuple(shape):
                raise ValueError(f"'{name}' has another shape than in another part")
            rows = own[0] if own else 1
            if rows or not math.prod(shape):
                self._where.setdefault(name, []).append((start, rows, handle))

    def _check(self, file: Path, name: str) -> None:
        at, shape = 0, self._shapes[name]
        for start, rows, _ in self._where[name]:
            at = start + rows if start == at else -1
        if at != (shape[0] if shape else 1):
            raise CorruptError(file, f"and the files beside it do not hold all rows of '{name}'")

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        return self._shapes[name]

    def __getitem__(self, name: str) -> Tensor:
        pieces = self._where[name]
        found = [handle.get_tensor(name) for _, _, handle in pieces]
        return found[0] if len(found) == 1 else torch.cat(found)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start ... stop - 1 along the first axis; no others are read."""
        pieces = self._where[name]
        found = []
        for first, rows, handle in pieces:
            low, high = max(start, first), min(stop, first + rows)
            if low < high:
                found.append(handle.get_slice(name)[low - first : high - first])
        if not found:
            return pieces[0][2].get_slice(name)[0:0]  # type: ignore[no-any-return]
        return found[0] if len(found) == 1 else torch.cat(found)


def groups_of(folder: Path) -> list[str]:
    """Names of the groups of tensors in a folder."""
    return sorted({found[1] for path in folder.iterdir() if (found := _PART.fullmatch(path.name))})


def _parts(folder: Path, group: str) -> Sequence[Path]:
    """The files of a group: one, or those of all processes."""
    found = {path: m for path in sorted(folder.iterdir()) if (m := _PART.fullmatch(path.name)) and m[1] == group}
    sizes = {m[3] for m in found.values()}
    if len(sizes) > 1 or (sizes and len(found) != int(next(iter(sizes)) or 1)):
        raise CorruptError(
            folder, f"has {len(found)} files of '{group}', which do not belong together or are not all there"
        )
    if not found:
        raise CorruptError(folder / f"{group}{SUFFIX}", "is missing")
    return list(found)
