"""`sfumato data preview`, `check` and `pack`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sfumato import media
from sfumato.commands.say import duration, say, say_json, size
from sfumato.commands.words import only_settings, whole_number
from sfumato.data import Data, Report, open_data, summary
from sfumato.data import check as read_all
from sfumato.data import pack as write_packed
from sfumato.data import preview as contact_sheet
from sfumato.data.check import name_of
from sfumato.errors import UserError
from sfumato.spec import Spec, parameters

_LISTED = 20


def preview(source: str, words: Sequence[str], *, out: Path, as_json: bool) -> None:
    """Write a contact sheet and say what is in the data."""
    settings = only_settings(words)
    n, seed = whole_number(settings, "n", 32), whole_number(settings, "seed", 0)
    split = settings.get("split", "all")
    if out.suffix.lower() != ".png":
        raise UserError(f"-o {out}: the preview is a picture; give it a name that ends in .png")
    spec = opened(source, settings, ("n", "seed", "split"))
    data = spec.build()
    if data.info.encoded:
        raise UserError(
            f"{source}: holds latents, which are not to be looked at; preview the data that they were made of"
        )
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


def check(source: str, words: Sequence[str], *, as_json: bool) -> int:
    """Read every item and say what is wrong. Returns the exit code: 0 if nothing is."""
    settings = only_settings(words)
    spec = opened(source, settings, ())
    for key, value in (("broken", 1.0), ("cache", 0.0), ("buckets", 0)):  # find all, keep nothing
        if key in parameters(spec.cls):
            spec = spec.with_(**{key: value})
    data = spec.build()
    began = time.monotonic()
    report = read_all(data)
    if as_json:
        say_json({"data": source, **report.to_dict(), "problems": data.problems})
        return 0 if report.good else 1
    say(f"{source}: {report.items:,} items, {report.held_out:,} held out; read in {duration(time.monotonic() - began)}")
    for line in _findings(report, data):
        say(line)
    say("nothing is wrong" if report.good else "this needs repair before training")
    return 0 if report.good else 1


def _findings(report: Report, data: Data) -> list[str]:
    """What a check found, a line each; of long lists the first 20."""
    lines = []
    if report.sizes:
        shown = [f"{shape} ({count:,})" for shape, count in list(report.sizes.items())[:5]]
        more = f", and {len(report.sizes) - 5} more sizes" if len(report.sizes) > 5 else ""
        lines.append(f"sizes (height x width): {', '.join(shown)}{more}")
    if report.labels:
        counts = sorted(report.labels.items(), key=lambda pair: pair[1])
        (least, few), (most, many) = counts[0], counts[-1]
        lines.append(f"{len(counts)} classes: from {few:,} items ({least}) to {many:,} ({most})")
    if report.without_caption:
        lines.append(f"{report.without_caption:,} items have no caption")
    if report.changed:
        lines.append(f"changed: {report.changed}")
    for said, items in report.remarks.items():
        lines += _first(said, items)
    lines += _first("unreadable", list(report.unreadable.values()))
    named = [[name_of(data, i) for i in group] for group in report.leaks]
    lines += _first("the same in the training and the held-out part", [" = ".join(group[:4]) for group in named])
    named = [[name_of(data, i) for i in group] for group in report.duplicates]
    return lines + _first("the same twice in one part", [" = ".join(group[:4]) for group in named])


def _first(what: str, found: Sequence[str]) -> list[str]:
    if not found:
        return []
    more = [f"  and {len(found) - _LISTED:,} more"] if len(found) > _LISTED else []
    return [f"{what}: {len(found):,}", *(f"  {said}" for said in found[:_LISTED]), *more]


def pack(source: str, words: Sequence[str], *, out: Path, fresh: bool, as_json: bool) -> None:
    """Write all items of a data set into a folder of memory-mapped arrays."""
    settings = only_settings(words)
    shards = whole_number(settings, "shards", 0) if "shards" in settings else None
    spec = opened(source, settings, ("shards", "dtype"))
    if "cache" in parameters(spec.cls):
        spec = spec.with_(cache=0.0)
    began = time.monotonic()
    made = write_packed(spec.build(), out, shards=shards, dtype=settings.get("dtype"), source=source, fresh=fresh)
    if as_json:
        content = {"items": made.items, "shards": made.shards, "bytes": made.bytes, "left_out": made.left_out}
        say_json({"data": source, "folder": str(out), **content})
        return
    spent = duration(time.monotonic() - began)
    say(f"{out}: {made.items:,} items in {made.shards} shards, {size(made.bytes)}, in {spent}")
    for line in _first("left out, unreadable", list(made.left_out.values())):
        say(line)
    say(f"next: sfumato train image data={out}")


def opened(source: str, settings: Mapping[str, str], taken: Sequence[str]) -> Spec[Data]:
    """The data set that a name or path means, with the settings that are its own."""
    spec = open_data(source)
    for key, value in settings.items():
        if key not in taken:
            spec = spec.override(key, value)
    return spec
