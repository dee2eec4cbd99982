"""Names for classes: `class Heun(Solver, name="heun")` can be asked for as `heun` in a recipe or on the command line.

A family is opened by its base class, `class Solver(Registered, family="solver")`; subclasses with a `name` join it.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import ClassVar

from sfumato.errors import UserError, did_you_mean

_FAMILIES: dict[str, dict[str, type[Registered]]] = {}

# Where the built-in members of a family live; imported the first time that the family is looked up.
_HOMES: dict[str, str] = {
    "process": "sfumato.core",
    "parameterization": "sfumato.core",
    "times": "sfumato.core",
    "weighting": "sfumato.core",
    "objective": "sfumato.core",
    "coupling": "sfumato.core",
    "grid": "sfumato.core",
    "solver": "sfumato.samplers",
    "guidance": "sfumato.guidance",
    "threshold": "sfumato.guidance",
    "media": "sfumato.kinds",
    "network": "sfumato.nn",
    "autoencoder": "sfumato.nn",
    "bottleneck": "sfumato.nn",
    "critic": "sfumato.nn",
    "codec": "sfumato.codecs",
    "vocoder": "sfumato.codecs",
    "conditioner": "sfumato.conditioners",
    "data": "sfumato.data",
    "sampling": "sfumato.pipeline",
    "training": "sfumato.train",
    "alignment": "sfumato.train",
    "optimizer": "sfumato.train",
    "judge": "sfumato.evaluate",
    "recipe": "sfumato.recipes",
}


class Registered:
    """Base of everything that has a name in recipes. Subclassing registers; a name can be taken once."""

    family: ClassVar[str] = ""
    kind: ClassVar[str] = ""

    def __init_subclass__(cls, *, family: str | None = None, name: str | None = None, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if family is not None:
            cls.family = family
            _FAMILIES.setdefault(family, {})
        if name is None:
            return
        members = _FAMILIES[cls.family]
        old = members.get(name)
        # A dataclass with slots or a module that is run twice makes the same class again: not a clash.
        if old is not None and (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UserError(f"the {cls.family} name '{name}' is already taken by {old.__module__}.{old.__qualname__}")
        cls.kind = name
        members[name] = cls


def members(family: str) -> dict[str, type[Registered]]:
    """All registered classes of a family by name, built-in ones included."""
    if family in _HOMES:
        importlib.import_module(_HOMES[family])
    if family not in _FAMILIES:
        raise UserError(f"there is no family '{family}'; {did_you_mean(family, [*_FAMILIES, *_HOMES])}")
    return dict(_FAMILIES[family])


def families() -> list[str]:
    """Names of all families."""
    return sorted({*_HOMES, *_FAMILIES})


def find(family: str, name: str) -> type[Registered]:
    """The class registered as `name`; raises UserError with the nearest name."""
    known = members(family)
    if name not in known:
        raise UserError(f"there is no {family} '{name}'; {did_you_mean(name, known)}")
    return known[name]


def import_file(path: str | Path) -> None:
    """Run a user's Python file, so that the classes it defines register (`--import mine.py`)."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"--import {file}: there is no such file")
    module_name = f"sfumato_user_{file.stem}"
    module_spec = importlib.util.spec_from_file_location(module_name, file)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"--import {file}: not a Python file (.py)")
    module_spec.loader.exec_module(importlib.util.module_from_spec(module_spec))
