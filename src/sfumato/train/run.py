"""A run folder: everything that one training leaves on disk.

runs/<name>/{recipe.yaml, env.json, data.json, state.json, metrics.jsonl, samples/, checkpoints/, LATEST,
             report.html, model/}
"""

from __future__ import annotations

import inspect
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, final

from sfumato import __version__
from sfumato.errors import UserError
from sfumato.files import disk_errors, is_locked, make_folder, remove_leftovers, try_lock, write_atomic
from sfumato.registry import Registered
from sfumato.spec import Spec, as_spec, dump_yaml, parameters
from sfumato.train.checkpoint import Checkpoints
from sfumato.train.settings import FREE_TO_CHANGE, Training

State = Literal["running", "finished", "interrupted", "stopped", "failed"]
_OWN = (
    "recipe.yaml", "env.json", "data.json", "state.json", "scores.json", "metrics.jsonl", "samples", "checkpoints",
    "LATEST", "report.html", "model", "averages",
    "tensorboard", "wandb", "trackers.json", "summary.json", "digits.png", "nearest.png", "eval.json",
    ".lock",
)  # fmt: skip


@final
class Run:
    """The paths of a run and what is common to all of it. Making one touches nothing; `open` does."""

    def __init__(self, folder: str | Path, recipe: Spec[Any] | None = None) -> None:
        self.folder = Path(folder)
        self.recipe = recipe

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def metrics(self) -> Path:
        """metrics.jsonl: one JSON object a line."""
        return self.folder / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Pictures drawn during training."""
        return self.folder / "samples"

    @property
    def model(self) -> Path:
        """The model folder: averaged weights, ready to sample from."""
        return self.folder / "model"

    @property
    def report(self) -> Path:
        """report.html."""
        return self.folder / "report.html"

    def checkpoints(self, keep: int = 2, *, every: int = 0, best: bool = False) -> Checkpoints:
        """The folder of checkpoints, and which ones are kept in it."""
        return Checkpoints(self.folder / "checkpoints", keep, every=every, best=best)

    def open(self) -> None:
        """Make the folder, write recipe.yaml and env.json, and clear away what a killed process left half-written."""
        make_folder(self.folder)
        remove_leftovers(self.folder)
        if self.recipe is not None:
            write_atomic(self.folder / "recipe.yaml", dump_yaml(self.recipe))
        self.write("env.json", environment())

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run, atomically."""
        make_folder((self.folder / name).parent)
        write_atomic(self.folder / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def read(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run; empty if it is not there or can't be read."""
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def set_state(self, state: State, **more: Any) -> None:
        """Write state.json: what `sfumato runs list` shows."""
        self.write("state.json", {"state": state, **more, "updated": round(time.time(), 1), "process": os.getpid()})

    def state(self) -> dict[str, Any]:
        """state.json; a run that says `running` and whose process is gone reads as `stopped`."""
        content = self.read("state.json")
        if content.get("state") == "running" and not self.is_locked():
            content["state"] = "stopped"
        return content

    def clear(self) -> list[str]:
        """Delete what a run writes, and nothing else (`--fresh`). Returns the names of what was deleted."""
        removed = []
        with self.lock(), disk_errors(self.folder):
            for name in _OWN:
                entry = self.folder / name
                if name == ".lock" or not (entry.exists() or entry.is_symlink()):
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
                removed.append(name)
        return removed

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise UserError naming each setting (dotted path -> value) that differs from those of the newest checkpoint."""
        info = self.checkpoints().newest_info()
        if info is not None:
            self.compare(info, settings)

    def compare(self, info: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """The same, for the `trainer.json` that was read.

        A setting that did not exist when the run was made has its default: a new default does what was done before it.
        """
        spec = self.recipe if self.recipe is not None else Spec(Training)
        defaults = _plain(_defaults(spec, "" if self.recipe is not None else "train."))
        old, new = {**defaults, **info["settings"]}, _plain(settings)
        changed = [
            f"{path}: {_show(old, path)} -> {_show(new, path)}"
            for path in sorted(info["settings"].keys() | new.keys())
            if old.get(path, _ABSENT) != new.get(path, _ABSENT) and not _free(path)
        ]
        if changed:
            raise UserError(
                f"the run '{self.folder}' was made with other settings ({'; '.join(changed)}); go back to them, "
                f"start over with --fresh, choose another name=, or start from its weights with init={self.folder}"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run against a second process that would train in the same folder."""
        make_folder(self.folder)
        with disk_errors(self.folder), (self.folder / ".lock").open("w") as stream:
            if not try_lock(stream.fileno()):
                raise UserError(
                    f"the run '{self.folder}' is being trained by another process; stop it or choose another name="
                )
            yield

    def is_locked(self) -> bool:
        """Whether a process trains in this folder now."""
        return is_locked(self.folder / ".lock")


_ABSENT = object()


def _show(settings: Mapping[str, Any], path: str) -> str:
    return json.dumps(settings[path], ensure_ascii=False) if path in settings else "not set"


def _defaults(spec: Spec[Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a spec and of those in it at their defaults, by dotted path; what has none is not there."""
    found: dict[str, Any] = {}
    for key, (_, usual) in parameters(spec.cls).items():
        value = getattr(spec, key, None)
        value, usual = (as_spec(v) if isinstance(v, Registered) else v for v in (value, usual))
        if isinstance(value, Spec):
            found |= _defaults(value, f"{prefix}{key}.")
        if isinstance(usual, Spec):
            found |= dict(usual.leaves(f"{prefix}{key}."))
        elif usual is not inspect.Parameter.empty:
            found[f"{prefix}{key}"] = usual
    return found


def _free(path: str) -> bool:
    """Whether a setting may change on a resume: the budget, how often things are written, what pictures are drawn with.

    The data may lie elsewhere: its fingerprint is compared, not its path. How much of it may be unreadable says when to stop.
    """
    head, _, rest = path.partition(".")
    return (
        path in ("title", "data.path", "data.broken")
        or head == "sampling"
        or (head == "train" and rest in FREE_TO_CHANGE)
    )


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(settings), default=str))
    return plain


def environment() -> dict[str, Any]:
    """Versions and machine, for env.json."""
    import numpy as np
    import torch

    return {
        "sfumato": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
