"""`sfumato data preview`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sfumato import media
from sfumato.commands.say import say, say_json
from sfumato.commands.words import only_settings, whole_number
from sfumato.data import open_data, summary
from sfumato.data import preview as contact_sheet
from sfumato.errors import UserError


def preview(source: str, words: Sequence[str], *, out: Path, as_json: bool) -> None:
    """Write a contact sheet and say what is in the data."""
    settings = only_settings(words)
    n, seed = whole_number(settings, "n", 32), whole_number(settings, "seed", 0)
    split = settings.get("split", "all")
    if out.suffix.lower() != ".png":
        raise UserError(f"-o {out}: the preview is a picture; give it a name that ends in .png")
    spec = open_data(source)
    for key, value in settings.items():
        if key not in ("n", "seed", "split"):
            spec = spec.override(key, value)
    data = spec.build()
    if split not in ("all", "train", "held_out"):
        raise UserError(f"split={split}: use train, held_out or all")
    shown = data if split == "all" else data.split("train" if split == "train" else "held_out")
    media.save_png(contact_sheet(shown, n, seed), out, {"data": source})
    if as_json:
        info = shown.info
        content = {"shape": info.shape, "kind": info.kind, "labels": info.labels, "captions": info.captions}
        more = {"numbers": info.numbers, "problems": data.problems, "picture": str(out)}
        say_json({"data": spec.to_dict(), "items": len(shown), **content, **more})
        return
    say(f"{source}: {data.kind}")
    say(summary(shown, seed))
    say(f"picture: {out}")
    say(f"next: sfumato train image data={source}")
