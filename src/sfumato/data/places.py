"""Files on this machine or anywhere that fsspec reaches (`s3://`, `gs://`, `memory://`, ...), read by offset.

The fsspec package comes with the extra `data`, and each protocol needs a package of its own (s3fs, gcsfs). An item that is
gone is a finding about the data. A connection that fails is not: it is tried again, and then the run stops, so that what is
trained on does not depend on the network.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, final

from sfumato.data.base import digest, file_digest
from sfumato.errors import SfumatoError, UserError
from sfumato.pictures import BadPicture

_TRIES = 3
_WAIT = 0.5  # seconds before the second try; doubled before each one after
_END = 4096
_SAMPLED = 64


class Place(Protocol):
    """A file: `name` is its last part, `str` its path or address."""

    @property
    def name(self) -> str: ...

    def open(self) -> BinaryIO:
        """A stream that can seek. Raises OSError."""

    def size(self) -> int:
        """In bytes."""

    def read(self, start: int, size: int) -> bytes:
        """Bytes from `start` on. Raises BadPicture if they are not there, SfumatoError if the connection fails."""


@final
@dataclass(frozen=True)
class Local:
    """A file of this machine."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> BinaryIO:
        return self.path.open("rb")

    def size(self) -> int:
        return self.path.stat().st_size

    def read(self, start: int, size: int) -> bytes:
        try:
            with self.path.open("rb") as stream:
                stream.seek(start)
                return _whole(stream.read(size), size)
        except OSError as error:
            raise BadPicture(error.strerror or "can't be opened") from None


@final
@dataclass(frozen=True)
class Remote:
    """A file of an fsspec file system."""

    system: Any
    path: str

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]

    def __str__(self) -> str:
        return str(self.system.unstrip_protocol(self.path))

    def open(self) -> BinaryIO:
        stream: BinaryIO = self.system.open(self.path, "rb")
        return stream

    def size(self) -> int:
        return int(self.system.info(self.path)["size"])

    def read(self, start: int, size: int) -> bytes:
        for attempt in range(_TRIES):
            try:
                return _whole(self.system.cat_file(self.path, start=start, end=start + size), size)
            except FileNotFoundError:
                raise BadPicture("is gone") from None
            except BadPicture:
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                if attempt + 1 < _TRIES:
                    time.sleep(_WAIT * 2**attempt)
        raise SfumatoError(
            f"{self}: can't be read after {_TRIES} tries ({reason}); run the same command again to go on"
        )


def _whole(found: bytes, size: int) -> bytes:
    if len(found) != size:
        raise BadPicture(f"cut short: {len(found)} of {size} bytes are there")
    return found


def is_address(text: str) -> bool:
    """Whether a path is an address such as `s3://bucket/folder`."""
    return "://" in text


def find_places(path: str | tuple[str, ...], suffix: str) -> list[Place]:
    """The files named: each a file, a folder of files with that suffix, or a pattern such as `data/train-*.parquet`."""
    found: list[Place] = []
    for text in (path,) if isinstance(path, str) else path:
        listed: Sequence[Place] = _remote(text, suffix) if is_address(text) else _local(text, suffix)
        if not listed:
            raise UserError(f"{text}: there is no such {suffix} file, or folder of them; give its path")
        found += listed
    if not found:
        raise UserError(f"path is empty; name a {suffix} file")
    return found


def _local(text: str, suffix: str) -> list[Local]:
    given = Path(text)
    if given.is_dir():
        return [Local(file) for file in sorted(given.glob(f"*{suffix}"))]
    if given.is_file():
        return [Local(given)]
    return [Local(file) for file in sorted(given.parent.glob(given.name))] if "*" in given.name else []


def _remote(text: str, suffix: str) -> list[Remote]:
    with reaching(text):
        from fsspec.core import url_to_fs

        system, path = url_to_fs(text)
        if "*" in path:
            listed = system.glob(path)
        elif system.isdir(path):
            listed = [name for name in system.ls(path, detail=False) if name.endswith(suffix)]
        else:
            listed = [path] if system.exists(path) else []
    return [Remote(system, name) for name in sorted(listed)]


@contextmanager
def reaching(text: str) -> Iterator[None]:
    """Turn what fsspec raises for an address into one sentence."""
    try:
        yield
    except ImportError as error:
        name = error.name or ""
        if name.partition(".")[0] == "fsspec":
            raise UserError(f"{text}: reading it needs fsspec; pip install 'sfumato[data]'") from None
        raise UserError(f"{text}: reading it needs one more package ({str(error).rstrip('.')}); install that") from None
    except ValueError as error:
        raise UserError(f"{text}: is not an address that fsspec knows ({error}); s3://, gs://, https:// are") from None
    except Exception as error:  # every file system has errors of its own
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{text}: can't be listed ({said}); check the address and your access to it") from None


def fingerprint_of(places: Sequence[Place]) -> str:
    """`file_digest`, for files anywhere: names and sizes of all, both ends of up to 64 of them."""
    local = [place.path for place in places if isinstance(place, Local)]
    if len(local) == len(places):
        return file_digest(local)
    sizes = [place.size() for place in places]
    parts: list[str | bytes] = [f"{place.name} {size}" for place, size in zip(places, sizes)]
    step = max(1, -(-len(places) // _SAMPLED))
    for place, size in list(zip(places, sizes))[::step]:
        parts += [place.read(start, min(_END, size)) for start in (0, max(0, size - _END))]
    return digest(*parts)
