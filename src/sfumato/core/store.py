"""Tensors on disk under keys of everything that they depend on.

    key = sha256 of (the item's digest, the settings of the transform, the sha256 of the encoder's weights, dtype, ...)

An entry for other content, another encoder, setting or type has another key, so it can't be found, let alone returned. Each
entry is a file with the sha256 of its content, written under a temporary name and renamed: one that was cut short or changed
is made again. Entries are never overwritten with other content, so several processes may share a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from sfumato.files import make_folder, write_atomic

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_MAGIC = b"sfumato tensor 1\n"


def key_of(item: str, parts: Mapping[str, str]) -> str:
    """The key of an entry: 64 hexadecimal digits. item: its digest. parts: all else that the value depends on."""
    written = json.dumps([item, sorted(parts.items())], ensure_ascii=False)
    return hashlib.sha256(written.encode()).hexdigest()


@final
@dataclass(frozen=True)
class Store:
    """Tensors by key below a folder, 256 sub-folders of files."""

    folder: Path

    def file(self, key: str) -> Path:
        """Where an entry lies."""
        return self.folder / key[:2] / f"{key}.tensor"

    def read(self, key: str) -> Tensor | None:
        """The entry, bit for bit as it was written; None if there is none, or it is damaged."""
        try:
            raw = self.file(key).read_bytes()
        except OSError:
            return None
        magic, sha, rest = raw[: len(_MAGIC)], raw[len(_MAGIC) : len(_MAGIC) + 32], raw[len(_MAGIC) + 32 :]
        if magic != _MAGIC or hashlib.sha256(key.encode() + rest).digest() != sha:
            return None
        head, _, body = rest.partition(b"\n")
        named = json.loads(head)
        kind = DTYPES[named["dtype"]]
        flat = torch.frombuffer(bytearray(body), dtype=kind) if body else torch.empty(0, dtype=kind)
        return flat.reshape(named["shape"])

    def write(self, key: str, value: Tensor) -> None:
        """Keep a tensor of one of the types of `DTYPES`."""
        name = str(value.dtype).removeprefix("torch.")
        bits = value.detach().cpu().contiguous()
        body = bits.reshape(-1).view(torch.uint8).numpy().tobytes()
        rest = json.dumps({"dtype": name, "shape": list(value.shape)}).encode() + b"\n" + body
        make_folder(self.file(key).parent)
        write_atomic(self.file(key), _MAGIC + hashlib.sha256(key.encode() + rest).digest() + rest, sync=False)
