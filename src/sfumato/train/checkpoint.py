"""The state of a run on disk: written whole, checked when read, the newest good one taken."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.errors import NoCheckpointError, UserError
from sfumato.files import (
    CorruptError,
    DiskFullError,
    disk_errors,
    make_folder,
    remove_leftovers,
    replacing_folder,
    verify_manifest,
    write_atomic,
)

FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that was read: `groups` of tensors by file name, and `trainer.json`."""

    folder: Path
    groups: dict[str, Tensors]
    info: dict[str, Any]


@final
class Checkpoints:
    """The folder `checkpoints/` of a run.

    step-00001200/{weights,ema,optimizer}.safetensors, trainer.json, MANIFEST.json
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def all(self) -> list[Path]:
        """Folders of checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [(int(m[1]), path) for path in self.folder.iterdir() if (m := _NAME.fullmatch(path.name))]
        return [path for _, path in sorted(found)]

    def save(self, step: int, groups: Mapping[str, Tensors], info: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then LATEST beside `checkpoints/`, then delete old ones. Raises DiskFullError."""
        final_path = self.folder / f"step-{step:08d}"
        make_folder(self.folder)
        remove_leftovers(self.folder)
        _check_space(self.folder, groups)
        with replacing_folder(final_path) as inside:
            for name, tensors in groups.items():
                save_file({k: v.detach().contiguous() for k, v in tensors.items()}, inside / f"{name}.safetensors")
            text = json.dumps({"format": FORMAT, **info}, indent=1, allow_nan=False)
            (inside / "trainer.json").write_text(text, encoding="utf-8")
        write_atomic(self.folder.parent / "LATEST", final_path.name + "\n")
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return final_path

    def newest_info(self) -> dict[str, Any] | None:
        """`trainer.json` of the newest checkpoint where it is intact. Quick: tensors are neither read nor checked."""
        for folder in reversed(self.all()):
            with suppress(CorruptError):
                verify_manifest(folder, ["trainer.json"])
                return _read_info(folder)
        return None

    def read(self, name: str) -> Loaded:
        """The checkpoint of that name, verified. Raises CorruptError."""
        folder = self.folder / name
        verify_manifest(folder)
        groups = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
        return Loaded(folder, groups, _read_info(folder))

    def load(self, warn: Callable[[str], None]) -> Loaded | None:
        """The newest checkpoint that verifies; None if there never was one.

        A damaged one is named to `warn` and moved aside to `*.corrupt`. Raises NoCheckpointError when all are damaged.
        """
        folders = self.all()
        for folder in reversed(folders):
            try:
                return self.read(folder.name)
            except CorruptError as error:
                aside = _set_aside(folder)
                warn(f"checkpoint {folder.name} is damaged ({error}); it is now {aside.name}, trying the one before")
        damaged = sorted(self.folder.glob("*.corrupt*")) if self.folder.is_dir() else []
        if damaged:
            raise NoCheckpointError(
                f"{self.folder}: none of its {len(damaged)} checkpoints is intact "
                f"({', '.join(path.name for path in damaged)}); run with --fresh to start over"
            )
        return None


def _read_info(folder: Path) -> dict[str, Any]:
    file = folder / "trainer.json"
    try:
        info: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CorruptError(file, "can't be read") from None
    if info.get("format") != FORMAT:
        raise UserError(
            f"{file} has the format {info.get('format')} and this version of sfumato reads {FORMAT}; "
            f"it was written by sfumato {info.get('versions', {}).get('sfumato', 'of another version')}: use that one"
        )
    return info


def _set_aside(folder: Path) -> Path:
    aside = folder.with_name(f"{folder.name}.corrupt")
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.corrupt{number}")
    with disk_errors(folder):
        return folder.rename(aside)


def _check_space(folder: Path, groups: Mapping[str, Tensors]) -> None:
    need = sum(v.numel() * v.element_size() for tensors in groups.values() for v in tensors.values())
    free = shutil.disk_usage(folder).free
    if free < need * 1.02:
        raise DiskFullError(
            f"{folder}: a checkpoint needs {need / 1e6:.1f} MB and {free / 1e6:.1f} MB are free; "
            f"free some space and run the same command again"
        )


def weights(module: nn.Module) -> Tensors:
    """Parameters and buffers of a module by name, shared ones once (safetensors stores no aliases)."""
    seen: set[tuple[int, torch.Size]] = set()
    found = {}
    for name, tensor in module.state_dict().items():
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
    for name in ours | stored:
        if name not in stored:
            raise UserError(f"{source} has no tensor '{name}', which this model needs")
        if name not in ours:
            raise UserError(f"{source} has the tensor '{name}', for which this model has no place")
        if ours[name].shape != stored[name].shape:
            raise UserError(
                f"{source}: '{name}' has shape {tuple(stored[name].shape)} and this model needs {tuple(ours[name].shape)}"
            )
    mine = own({name: stored[name] for name in ours})
    for name, tensor in ours.items():
        getattr(tensor, "_local_tensor", tensor).copy_(mine[name])
