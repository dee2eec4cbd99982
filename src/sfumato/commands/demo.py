"""`sfumato demo`: a model trained from nothing in minutes on two cores, sampled and scored."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sfumato.commands.words import check_keys, only_settings
from sfumato.errors import UserError, did_you_mean

# modality -> module and function: (runs, console, *, minutes) -> exit code
_DEMOS = {
    "image": ("sfumato.recipes.demo", "run_demo"),
    "audio": ("sfumato.recipes.demo_audio", "run_audio_demo"),
    "voxel": ("sfumato.recipes.demo_voxels", "run_voxel_demo"),
}


def demo(words: Sequence[str]) -> int:
    """Run the demo of `modality=` (image). Returns its exit code."""
    settings = only_settings(words)
    check_keys(settings, ("modality", "minutes"), "demo")
    modality = settings.get("modality", "image")
    if modality not in _DEMOS:
        raise UserError(f"modality={modality}: there is no such demo; {did_you_mean(modality, _DEMOS)}")
    minutes = None
    if "minutes" in settings:
        try:
            minutes = float(settings["minutes"])
        except ValueError:
            raise UserError(f"minutes={settings['minutes']}: must be a number of minutes") from None
    module, name = _DEMOS[modality]
    try:
        function: Any = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        raise UserError(f"modality={modality}: this demo is not in this version; use image or audio") from None
    return int(function(Path("runs"), Console(highlight=False), minutes=minutes))
