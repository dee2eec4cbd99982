"""`sfumato demo`: a model trained from nothing in minutes on two cores, sampled and scored."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sfumato.commands.words import check_keys, only_settings
from sfumato.errors import UserError, did_you_mean

_ASKED = ("a red apple, fluent emoji", "ghost, fluent emoji", "man biking, twemoji emoji", "sun with face, noto emoji")

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
    runs, console = Path("runs"), Console(highlight=False)
    if modality == "image":
        _show_emoji(runs, console)
    return int(function(runs, console, minutes=minutes))


def _show_emoji(runs: Path, console: Console) -> None:
    """The first lines: what the model that ships draws, in seconds; once."""
    from sfumato import media
    from sfumato.modelfolder import shipped
    from sfumato.pipeline import Pipeline
    from sfumato.recipes.demo import program

    file = runs / "emoji.png"
    if file.exists() or "emoji" not in shipped():
        return
    began = time.perf_counter()
    out = Pipeline.from_pretrained("emoji")(list(_ASKED), seed=0)
    runs.mkdir(exist_ok=True)
    media.save_png(out.grid(), file)
    console.print(
        f"{len(_ASKED)} emoji by the model that ships, in {time.perf_counter() - began:.0f} s: {file}\n"
        f'Others: {program()} sample emoji "{_ASKED[0]}"\n'
    )
