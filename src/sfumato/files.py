"""Writing to disk so that a reader sees the old content or the new, never half of it, and notices every changed byte.

A file or folder is written under a temporary name beside its place, flushed to the disk, and renamed. A folder carries
`MANIFEST.json` with the size and sha256 of each of its files: a flipped byte in a safetensors file loads without an
error, so only the manifest can tell.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sfumato.errors import SfumatoError, UserError

MANIFEST = "MANIFEST.json"
PICKLES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"})  # files that run code when they are loaded
_CHUNK = 1 << 20


class DiskFullError(SfumatoError):
    """There was no space left to write a file."""


class UnwritableError(SfumatoError):
    """A file could not be written for a reason that may pass, such as a disk of the network that does not answer."""


class CorruptError(SfumatoError):
    """A file is not what its manifest says it is."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals while writing `path` into sentences."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            _explain(path, error.errno, error)
        raise
    except Exception as error:  # safetensors wraps the system's errors in one of its own, with the number in the text
        if type(error).__name__ == "SafetensorError" and (found := re.search(r"\(os error (\d+)\)", str(error))):
            _explain(path, int(found[1]), error)
        raise


def _explain(path: Path, number: int, error: Exception) -> None:
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise DiskFullError(f"{path}: no space left on the disk; free some and run the same command again") from error
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        raise UserError(f"{path}: can't be written ({os.strerror(number)}); choose another folder") from error
    if number in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        raise UserError(f"{path}: can't be written, something else is in its place; choose another name") from error


def make_folder(path: Path) -> Path:
    """Create a folder and its parents; raises UserError where that is not allowed."""
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_atomic(path: Path, content: bytes | str, *, sync: bool = True) -> None:
    """Replace a file as a whole: after a crash it holds the old content or the new.

    sync: wait until the disk has it. Without, a crash of the machine (not of the program) may leave a file cut short, at a
    tenth of the time: for many small files whose readers can tell.
    """
    raw = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with disk_errors(path):
            with temporary.open("wb") as stream:
                stream.write(raw)
                stream.flush()
                if sync:
                    os.fsync(stream.fileno())
            temporary.replace(path)
            if sync:
                _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_folder(final: Path) -> Iterator[Path]:
    """Fill the folder that is handed out; on leaving, it gets a manifest and takes the place of `final`.

    After an error nothing of it is left and `final` is as it was.
    """
    make_folder(final.parent)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with disk_errors(final):
            temporary.mkdir()
            yield temporary
            write_manifest(temporary)
        publish_folder(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def publish_folder(temporary: Path, final: Path, reached: Callable[[str], None] = lambda point: None) -> None:
    """Flush a finished folder to the disk and rename it into place, replacing what was there.

    reached: called before, between and after the renames, with the name of the point.
    """
    with disk_errors(final):
        for file in _files(temporary):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        for folder in {file.parent for file in _files(temporary)} | {temporary}:
            _sync_folder(folder)
        old = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.old")
        reached("rename")
        if final.exists():
            final.rename(old)  # a rename does not replace a folder that holds files
            reached("moved aside")
        temporary.rename(final)
        reached("renamed")
        _sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half-written in `folder`; what it had moved aside goes back to its place."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if found := re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.(tmp|old)", entry.name):
            final = entry.with_name(found[1])
            if found[2] == "old" and not final.exists():
                entry.rename(final)
            elif entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def write_manifest(folder: Path, known: Mapping[str, tuple[int, str]] | None = None) -> None:
    """Write MANIFEST.json: {"files": {name: {"size": bytes, "sha256": hexadecimal}}, "sha256": of all before it}.

    known: (size, sha256) of files that need not be read again. Raises SfumatoError if one of them is not there in that size.
    """
    known = known or {}
    files = {}
    for file in _files(folder):
        name, size = file.relative_to(folder).as_posix(), file.stat().st_size
        if name != MANIFEST:
            files[name] = {"size": size, "sha256": known[name][1] if name in known else sha256(file)}
    for name, (size, _) in known.items():
        if files.get(name, {}).get("size") != size:
            raise SfumatoError(
                f"{folder / name} was written by another process and is not to be seen here as it wrote it; "
                f"the folder must be on a disk that all processes share"
            )
    content: dict[str, Any] = {"format": 1, "files": files}
    write_atomic(folder / MANIFEST, json.dumps({**content, "sha256": _digest(content)}, indent=1))


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, indent=1).encode()).hexdigest()


def verify_manifest(folder: Path, names: Collection[str] | None = None) -> None:
    """Raise CorruptError naming the first listed file that is missing or changed, UserError for a pickle.

    names: check these files only, which is quick where the others are large.
    """
    if not folder.is_dir():
        raise CorruptError(folder, "there is no such folder")
    for file in _files(folder):
        refuse_pickle(file)
    listed = _read_manifest(folder)
    for name in listed if names is None else names:
        if name not in listed:
            raise CorruptError(folder / MANIFEST, f"does not list {name}")
        _verify(folder / name, listed[name])


def _verify(file: Path, entry: Mapping[str, Any]) -> None:
    try:
        if not file.is_file():
            raise CorruptError(file, "is missing")
        if file.stat().st_size != entry["size"]:
            raise CorruptError(file, f"has {file.stat().st_size} bytes and should have {entry['size']}")
        if sha256(file) != entry["sha256"]:
            raise CorruptError(file, "has changed since it was written (its sha256 differs)")
    except OSError as error:
        raise CorruptError(file, f"can't be read ({error.strerror})") from None


def listed_files(folder: Path) -> list[str]:
    """Names of the files that the manifest of a folder lists. Raises CorruptError."""
    return sorted(_read_manifest(folder))


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise CorruptError(manifest, "is missing")
    try:
        text = manifest.read_text(encoding="utf-8")
        content = json.loads(text)
        listed = content["files"]
        for name, entry in listed.items():
            path = Path(name)
            if path.is_absolute() or ".." in path.parts or not {"size", "sha256"} <= set(entry):
                raise ValueError(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CorruptError(manifest, "is not a manifest that can be read") from None
    body = {key: value for key, value in content.items() if key != "sha256"}
    changed = "sha256" in content and (content["sha256"] != _digest(body) or text != json.dumps(content, indent=1))
    if changed or set(body) - {"format", "files"}:
        raise CorruptError(manifest, "has changed since it was written (its own sha256 differs)")
    return dict(listed)


def refuse_pickle(file: Path) -> None:
    """Raise UserError for a file of a kind that runs code when it is loaded."""
    if file.suffix.lower() in PICKLES:
        raise UserError(
            f"{file}: a pickle can run any code when it is loaded and is not read here; convert it to .safetensors"
        )


def try_lock(handle: int) -> bool:
    """Lock an open file against other processes, if no other one has; the lock ends when the file is closed."""
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks of this kind, so nothing is held
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_locked(file: Path) -> bool:
    """Whether a process holds the lock of a file now."""
    try:
        with file.open("rb") as stream:
            return not try_lock(stream.fileno())
    except FileNotFoundError:
        return False


def sha256(file: Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the system can (Windows has no such call)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
