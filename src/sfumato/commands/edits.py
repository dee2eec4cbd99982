"""`sfumato sample ... init=FILE strength=0.6 keep=0:0.4 seconds=2`: what a sample begins with, and how long a sound is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.commands.edits_voxels import kept_cells
from sfumato.core import DataInfo
from sfumato.editing import Edit
from sfumato.errors import UserError
from sfumato.files import sha256
from sfumato.given import read_sound
from sfumato.kinds import kind_of

KEYS = ("init", "strength", "keep", "seconds")
SECONDS = "seconds"
_LONGEST = 60.0


def timed(settings: Mapping[str, str], info: DataInfo) -> dict[str, str]:
    """The settings, with the length of a sound also as the number that a model is asked by, where it is."""
    asked = dict(settings)
    if SECONDS in asked and info.numbers == (SECONDS,) and "number" not in asked:
        asked["number"] = asked[SECONDS]
    return asked


def read_edit(settings: Mapping[str, str], info: DataInfo) -> tuple[Edit | None, dict[str, Any]]:
    """What samples begin with, and the settings to be compared with those of samples that are there. Raises UserError."""
    given = {key: settings[key] for key in KEYS if key in settings}
    if not given:
        return None, {}
    size = _size(settings, info)
    if "init" not in settings:
        for key in ("strength", "keep"):
            if key in settings:
                raise UserError(f"{key}={settings[key]} needs something to begin with; give init=FILE")
        return Edit(size=size), given
    file = Path(settings["init"])
    media = _read(file, info, size)
    known = _known(settings["keep"], media, info) if "keep" in settings else None
    strength = _number(settings, "strength", 1.0 if known is not None else 0.6)
    shown = {**given, "strength": strength, "init": sha256(file)}
    return Edit(media[None], known, strength, size), shown


def _number(settings: Mapping[str, str], key: str, usual: float) -> float:
    try:
        return float(settings.get(key, usual))
    except ValueError:
        raise UserError(f"{key}={settings[key]}: must be a number") from None


def _size(settings: Mapping[str, str], info: DataInfo) -> tuple[int, ...] | None:
    if SECONDS not in settings:
        return None
    if info.kind != "audio":
        raise UserError(
            f"seconds={settings[SECONDS]}: is for sounds, and this model makes {kind_of(info).noun}; leave it out"
        )
    seconds = _number(settings, SECONDS, 0.0)
    if not 0 < seconds <= _LONGEST:
        raise UserError(
            f"seconds={settings[SECONDS]}: must be above 0 and at most {_LONGEST:g}; continue a sound for more"
        )
    return (max(1, round(seconds * info.rate)),)


def _read(file: Path, info: DataInfo, size: tuple[int, ...] | None) -> Tensor:
    """The media of a file, in the form that the model makes."""
    if not file.is_file():
        raise UserError(f"init={file}: there is no such file")
    if info.kind != "audio":
        media = kind_of(info).read(file, info)
        if media is None or tuple(media.shape) != tuple(info.shape):
            found = "not read back" if media is None else f"of shape {tuple(media.shape)}"
            raise UserError(
                f"init={file}: is {found}, and this model makes {tuple(info.shape)}; give media of that shape"
            )
        return media
    return read_sound(file, info, "init", max(info.shape[1], size[0] if size else 0))


def _known(text: str, media: Tensor, info: DataInfo) -> Tensor:
    """`0:0.4` or `0:0.2,0.6:1`: the seconds of a sound that stay, as a mask (1, 1, T); of voxels see `kept_cells`."""
    if info.kind == "voxels":
        return kept_cells(text, info.shape[1:])
    if info.kind != "audio":
        raise UserError(
            f"keep={text}: names seconds of a sound, and this model makes {kind_of(info).noun}; use sfumato.editing"
        )
    known = torch.zeros(1, 1, media.shape[1], dtype=torch.bool)
    for part in text.split(","):
        first, colon, last = part.partition(":")
        try:
            start, stop = float(first or 0), float(last) if last else media.shape[1] / info.rate
        except ValueError:
            colon, start, stop = "", 0.0, 0.0
        if not colon or not 0 <= start < stop:
            raise UserError(f"keep={text}: write the seconds that stay as FROM:TO, such as 0:0.4, several with commas")
        known[..., round(start * info.rate) : round(stop * info.rate)] = True
    return known
