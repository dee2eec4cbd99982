"""The state of a run on disk: written whole, checked when read, the newest good one taken."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from sfumato.errors import NoCheckpointError, UserError
from sfumato.files import (
    CorruptError,
    DiskFullError,
    disk_errors,
    listed_files,
    make_folder,
    publish_folder,
    remove_leftovers,
    verify_manifest,
    write_atomic,
    write_manifest,
)
from sfumato.tensorfile import Slice, StoredTensors, Written, groups_of, part_name, write_tensors

FORMAT = (
    2  # 2: tensors may be in slices, one file for each process that wrote; what one process writes is still format 1
)
INFO = "trainer.json"
_NAME = re.compile(r"step-(\d{8,})")
Tensors = Mapping[str, Tensor]
Groups = Mapping[str, Mapping[str, Slice]]  # name of a file -> name of a tensor -> what this process has of it


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that was read: `groups` of tensors by name, and `trainer.json`."""

    folder: Path
    groups: Mapping[str, StoredTensors]
    info: dict[str, Any]


@final
class Checkpoints:
    """The folder `checkpoints/` of a run.

    step-00001200/{weights,ema,optimizer}.safetensors, trainer.json, MANIFEST.json

    Of several processes each writes `weights.00001-of-00004.safetensors`, and so on (`sfumato.tensorfile`).

    keep: the newest so many are kept. every: and of every so many steps the first. best: and the one whose `score` in
    trainer.json, the last held-out loss, is the lowest. reached: called at each point of a save that something may interrupt.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        *,
        every: int = 0,
        best: bool = False,
        reached: Callable[[str], None] = lambda point: None,
    ) -> None:
        self.folder = folder
        self.keep, self.every, self.best = keep, every, best
        self.reached = reached

    def all(self) -> list[Path]:
        """Folders of checkpoints, oldest first."""
        return [path for _, path in self._numbered()]

    def _numbered(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        return sorted((int(m[1]), path) for path in self.folder.iterdir() if (m := _NAME.fullmatch(path.name)))

    # ------------------------------------------------------------ writing

    def save(self, step: int, groups: Mapping[str, Tensors], info: Mapping[str, Any]) -> Path:
        """Write a checkpoint of whole tensors by this process alone, then LATEST, then delete old ones.

        Raises DiskFullError.
        """
        whole = {name: {k: Slice.whole(v) for k, v in tensors.items()} for name, tensors in groups.items()}
        inside = self.begin(step, size_of(whole))
        try:
            return self.publish(inside, step, describe(info), self.write(inside, whole))
        except BaseException:
            self.discard(inside)
            raise

    def begin(self, step: int, size: int) -> Path:
        """An empty folder for a checkpoint of `size` bytes, to be filled, then published or discarded."""
        make_folder(self.folder)
        remove_leftovers(self.folder)
        _check_space(self.folder, size)
        inside = self.folder / f".step-{step:08d}.{uuid.uuid4().hex[:8]}.tmp"
        self.reached("begin")
        with disk_errors(self.folder):
            inside.mkdir()
        return inside

    def write(self, inside: Path, groups: Groups, rank: int = 0, size: int = 1) -> dict[str, Written]:
        """Write what process `rank` of `size` has of each tensor. Returns what the manifest says of its files."""
        files = {}
        for name, tensors in groups.items():
            file = part_name(name, rank, size)
            with disk_errors(inside / file):  # also of nothing: who reads counts the files
                files[file] = write_tensors(inside / file, tensors, self.reached)
        return files

    def publish(self, inside: Path, step: int, text: str, files: Mapping[str, Written]) -> Path:
        """Give a filled folder its `trainer.json` and manifest and its place; then LATEST, then delete old ones."""
        final_path = self.folder / f"step-{step:08d}"
        self.reached("info")
        with disk_errors(final_path):
            (inside / INFO).write_text(text, encoding="utf-8")
            self.reached("manifest")
            write_manifest(inside, {name: (file.size, file.sha256) for name, file in files.items()})
        publish_folder(inside, final_path, self.reached)
        self.reached("latest")
        write_atomic(self.folder.parent / "LATEST", final_path.name + "\n")
        self.reached("latest written")
        self._prune()
        return final_path

    def discard(self, inside: Path) -> None:
        """Remove a folder that is not to be published."""
        shutil.rmtree(inside, ignore_errors=True)

    def _prune(self) -> None:
        found = self._numbered()
        kept = {path for _, path in found[-self.keep :]} | set(self._marked(found))
        for _, old in found:
            if old not in kept:
                self._drop(old)

    def truncate(self, step: int) -> None:
        """Delete checkpoints after `step`, of a way that the run has gone back on: none of them may be resumed from."""
        found = self._numbered()
        before = [path for number, path in found if number <= step]
        if before:
            write_atomic(self.folder.parent / "LATEST", before[-1].name + "\n")
        for _, path in found[len(before) :]:
            self._drop(path)

    def _drop(self, old: Path) -> None:
        self.reached("prune")
        aside = old.with_name(f".{old.name}.{uuid.uuid4().hex[:8]}.tmp")  # so that none is ever half there
        with suppress(OSError):
            old.rename(aside)
            self.reached("pruning")
            shutil.rmtree(aside, ignore_errors=True)
            self.reached("pruned")

    def _marked(self, found: Sequence[tuple[int, Path]]) -> list[Path]:
        """Those that are kept for good."""
        marked, last = [], 0
        for step, path in found if self.every else ():
            if step // self.every > last:
                marked.append(path)
                last = step // self.every
        if self.best:
            scores = {path: score for _, path in found if (score := _score(path)) is not None}
            marked += sorted(scores, key=lambda path: scores[path])[:1]
        return marked

    # ------------------------------------------------------------ reading

    def newest_info(self) -> dict[str, Any] | None:
        """`trainer.json` of the newest checkpoint where it is intact. Quick: tensors are neither read nor checked."""
        for folder in reversed(self.all()):
            with suppress(CorruptError):
                verify_manifest(folder, [INFO])
                return _read_info(folder)
        return None

    def verify(self, name: str, rank: int = 0, size: int = 1) -> None:
        """Check every `size`-th file of a checkpoint, from number `rank` on. Raises CorruptError naming the file."""
        folder = self.folder / name
        verify_manifest(folder, [])
        verify_manifest(folder, listed_files(folder)[rank::size])

    def read(self, name: str, verify: bool = True) -> Loaded:
        """The checkpoint of that name, verified. Raises CorruptError."""
        folder = self.folder / name
        if verify:
            verify_manifest(folder)
        groups = {group: StoredTensors(folder, group) for group in groups_of(folder)}
        return Loaded(folder, groups, _read_info(folder))

    def load(self, warn: Callable[[str], None]) -> Loaded | None:
        """The newest checkpoint that verifies; None if there never was one.

        A damaged one is named to `warn` and moved aside to `*.corrupt`. Raises NoCheckpointError when all are damaged.
        """
        for name in self.candidates():
            try:
                return self.read(name)
            except CorruptError as error:
                warn(self.set_aside(name, str(error)))
        self.require_none()
        return None

    def candidates(self) -> list[str]:
        """Names of checkpoints to be tried, newest first; what a killed process had moved aside is back in its place."""
        remove_leftovers(self.folder)
        return [path.name for path in reversed(self.all())]

    def set_aside(self, name: str, reason: str) -> str:
        """Rename a damaged checkpoint to `*.corrupt`; a sentence about it."""
        aside = _set_aside(self.folder / name)
        return f"checkpoint {name} is damaged ({reason}); it is now {aside.name}, trying the one before"

    def require_none(self) -> None:
        """Raise NoCheckpointError if there were checkpoints, all of which are damaged."""
        damaged = sorted(self.folder.glob("*.corrupt*")) if self.folder.is_dir() else []
        if damaged:
            raise NoCheckpointError(
                f"{self.folder}: none of its {len(damaged)} checkpoints is intact "
                f"({', '.join(path.name for path in damaged)}); run with --fresh to start over"
            )


def describe(info: Mapping[str, Any], size: int = 1) -> str:
    """The text of `trainer.json`, of a checkpoint that `size` processes write."""
    return json.dumps({"format": 1 if size == 1 else FORMAT, **info}, indent=1, allow_nan=False)


def size_of(groups: Groups) -> int:
    """Bytes of what a process writes."""
    return sum(s.tensor.numel() * s.tensor.element_size() for tensors in groups.values() for s in tensors.values())


def _read_info(folder: Path) -> dict[str, Any]:
    file = folder / INFO
    try:
        info: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CorruptError(file, "can't be read") from None
    if info.get("format") not in range(1, FORMAT + 1):
        raise UserError(
            f"{file} has the format {info.get('format')} and this version of sfumato reads 1 to {FORMAT}; "
            f"it was written by sfumato {info.get('versions', {}).get('sfumato', 'of another version')}: use that one"
        )
    return info


def _score(folder: Path) -> float | None:
    try:
        score = _read_info(folder).get("score")
    except (CorruptError, UserError):
        return None
    return None if score is None else float(score)


def _set_aside(folder: Path) -> Path:
    aside = folder.with_name(f"{folder.name}.corrupt")
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.corrupt{number}")
    with disk_errors(folder):
        return folder.rename(aside)


def _check_space(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < need * 1.02:
        raise DiskFullError(
            f"{folder}: a checkpoint needs {need / 1e6:.1f} MB and {free / 1e6:.1f} MB are free; "
            f"free some space and run the same command again"
        )


def weights(module: nn.Module) -> Tensors:
    """Parameters and buffers of a module by name, shared ones once (safetensors stores no aliases)."""
    seen: set[tuple[int, torch.Size]] = set()
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    again = {name for name, p in named if first.setdefault(id(p), name) != name}
    found = {}
    for name, tensor in module.state_dict().items():
        if name in again:
            continue
        whole = not hasattr(tensor, "_local_tensor")  # slices of sharded tensors have no address in common
        key = (tensor.data_ptr() if whole else 0, tensor.shape)
        if whole and tensor.numel() and key in seen:
            continue
        seen.add(key)
        found[name] = tensor
    return found


@torch.no_grad()
def load_weights(
    module: nn.Module, stored: Tensors, source: str, own: Callable[[Tensors], Tensors] = lambda whole: whole
) -> None:
    """Copy tensors into a module in place; raises UserError naming the first one that does not fit.

    own: of whole tensors, what this process holds (`Parallel.own`).
    """
    ours = weights(module)
    for name in [*ours, *stored]:
        if name not in stored:
            raise UserError(f"{source} has no tensor '{name}', which this model needs")
        if name not in ours:
            raise UserError(f"{source} has the tensor '{name}', for which this model has no place")
        shape = stored.shape(name) if isinstance(stored, StoredTensors) else tuple(stored[name].shape)
        if tuple(ours[name].shape) != shape:
            raise UserError(f"{source}: '{name}' has shape {shape} and this model needs {tuple(ours[name].shape)}")
    mine = own(stored)
    for name, tensor in ours.items():
        getattr(tensor, "_local_tensor", tensor).copy_(mine[name])
