"""report.html: one file that shows a run, from disk, without a network; no script but that of a viewer of its samples.

It is made from the run folder alone, so it can be made again at any time: `write_report(Run("runs/digits"))`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from sfumato.files import write_atomic
from sfumato.progress import duration
from sfumato.registry import find, members
from sfumato.train.log import LEVELS, read_metrics
from sfumato.train.run import Run
from sfumato.train.style import STYLE
from sfumato.train.svg import Series, chart, number

_HISTORY = 8  # earlier sheets of pictures, as thumbnails
_THUMB = 360  # their width in pixels
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"  # nothing is fetched or runs
VIEW = "samples/view.json"  # {"kind": of media, "html": a fragment that shows newest samples}


@dataclass(frozen=True)
class Section:
    """A part of the page. html: a finished fragment; whoever makes it escapes what is not theirs. wide: over all columns.

    script: JavaScript that the fragment needs; the page allows it by its hash and nothing else.
    """

    title: str
    html: str
    wide: bool = True
    script: str = ""


def write_report(run: Run, extra: Sequence[Section] = ()) -> Path:
    """Write report.html into the run folder, with more sections after the pictures if given."""
    write_atomic(run.report, render_report(run, extra))
    return run.report


def render_report(run: Run, extra: Sequence[Section] = ()) -> str:
    """The page as text."""
    lines = read_metrics(run.metrics)
    state = run.state()
    sections = [
        *_viewer(run),
        *_pictures(run),
        Section("Scores", _scores(run.read("scores.json"))),
        *extra,
        *_curves(lines),
        Section("Machine", _table(run.read("env.json")), wide=False),
        Section("What to type next", _next(run, state)),
        Section("Settings", _settings(run), wide=False),
        Section("Data", _table(run.read("data.json")), wide=False),
    ]
    body = "".join(
        f"<section{' class=wide' if s.wide else ''}><h2>{escape(s.title)}</h2>{s.html}</section>"
        for s in sections
        if s.html
    )
    title = escape(run.name)
    scripts = list(dict.fromkeys(s.script for s in sections if s.html and s.script))
    policy = "; script-src ".join([_POLICY, " ".join(map(_hashed, scripts))]) if scripts else _POLICY
    run_last = "".join(f"<script>{script}</script>" for script in scripts)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{title}</title><style>{STYLE}</style></head>'
        f"<body><header><h1>{title}</h1>{_headline(state, lines)}</header><main>{body}</main>{run_last}</body></html>\n"
    )


def _hashed(script: str) -> str:
    """A source of scripts that is this one alone."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _viewer(run: Run) -> list[Section]:
    """Newest samples to be played or turned, where their kind of media has a viewer."""
    view = run.read(VIEW)
    if view.get("kind") not in members("media") or not view.get("html"):
        return []
    made: Any = find("media", view["kind"])
    return [Section(f"Newest {made.noun}", view["html"], script=made.script)]


def _headline(state: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    held = [line["held_out"] for line in lines if line.get("held_out") is not None]
    shown = {
        "state": state.get("state"),
        "done": f"{state['progress']:.0%}" if "progress" in state else None,
        "samples": f"{state['samples']:,}" if "samples" in state else None,
        "steps": f"{state['step']:,}" if "step" in state else None,
        "time": duration(state["seconds"]) if "seconds" in state else None,
        "loss": f"{state['loss']:.4f}" if isinstance(state.get("loss"), float) else None,
        "held-out loss": f"{held[-1]:.4f}" if held else None,
    }
    items = "".join(f"<div><dt>{k}</dt><dd>{escape(str(v))}</dd></div>" for k, v in shown.items() if v is not None)
    return f"<dl>{items}</dl>"


# ---------------------------------------------------------------- pictures


def _pictures(run: Run) -> list[Section]:
    sheets = sorted(run.samples.glob("step-*.png")) if run.samples.is_dir() else []
    sections = []
    if sheets:
        newest = _figure(sheets[-1], _when(sheets[-1]))
        earlier = sheets[:-1]
        chosen = (
            [earlier[i * len(earlier) // _HISTORY] for i in range(_HISTORY)] if len(earlier) > _HISTORY else earlier
        )
        history = "".join(_figure(sheet, _when(sheet), _THUMB) for sheet in chosen)
        shown = f'<div class="sheet">{newest}</div>' + (f'<div class="history">{history}</div>' if history else "")
        sections.append(Section("Samples from fixed seeds, newest first, then as training went on", shown))
    strip = run.samples / "strip.png"
    if strip.is_file():
        words = "One sample on its way from noise to data: x_t above, what the model takes it for, E[x0 | x_t], below."
        sections.append(Section("Denoising", f'<p>{words}</p><div class="sheet">{_figure(strip, "")}</div>'))
    more = "".join(f'<div class="sheet">{_figure(file, file.stem)}</div>' for file in sorted(run.folder.glob("*.png")))
    return [*sections, Section("After training", more)]


def _when(sheet: Path) -> str:
    """The caption of a sheet, from the PNG's text."""
    try:
        with Image.open(sheet) as image:
            text = dict(getattr(image, "text", {}))
    except OSError:
        text = {}
    step = int(re.sub(r"\D", "", sheet.stem) or 0)
    return f"{int(text['samples']):,} samples" if text.get("samples", "").isdigit() else f"step {step:,}"


def _figure(file: Path, caption: str, most: int | None = None) -> str:
    try:
        raw = file.read_bytes()
        with Image.open(io.BytesIO(raw)) as image:
            wide, high = image.size
            if most is not None and wide > most:
                small = image.convert("RGB").resize((most, max(1, high * most // wide)), Image.Resampling.LANCZOS)
                stream = io.BytesIO()
                small.save(stream, format="PNG", optimize=True)
                raw, (wide, high) = stream.getvalue(), small.size
    except OSError:
        return ""
    said = escape(caption or "pictures")
    source = base64.b64encode(raw).decode()
    image_tag = f'<img src="data:image/png;base64,{source}" width="{wide}" height="{high}" alt="{said}">'
    return f"<figure>{image_tag}<figcaption>{escape(caption)}</figcaption></figure>"


# ---------------------------------------------------------------- curves


def _curves(lines: Sequence[Mapping[str, Any]]) -> list[Section]:
    def of(key: str) -> tuple[list[float], list[float]]:
        have = [line for line in lines if isinstance(line.get(key), int | float)]
        return [line["samples"] for line in have], [line[key] for line in have]

    most = max((line["samples"] for line in lines), default=1)

    def curve(title: str, series: Sequence[Series], *, log_y: bool = False, from_zero: bool = False) -> Section:
        made = chart(series, "samples seen", log_y=log_y, x_range=(0.0, most), from_zero=from_zero)
        return Section(title, made, wide=False)

    loss = [Series("training", *of("loss"), 0), Series("held-out", *of("held_out"), 1, dots=True)]
    return [
        curve("Loss", loss, log_y=True),
        Section("Loss by noise level", _by_level(lines), wide=False),
        curve("Learning rate", [Series("", *of("lr"), 2)], from_zero=True),
        curve("Gradient norm", [Series("", *of("grad_norm"), 3)], log_y=True),
        curve("Samples a second", [Series("", *of("samples_per_second"), 0)], from_zero=True),
    ]


def _by_level(lines: Sequence[Mapping[str, Any]]) -> str:
    """Unweighted loss of the network's output against u = sigma / (alpha + sigma): the newest, and the first in the back."""
    series = []
    for key, name, colour in (("levels", "training", 0), ("held_out_levels", "held-out", 1)):
        found = [line for line in lines if isinstance(line.get(key), list)]
        chosen = [(found[0], True)] if len(found) > 1 else []
        for line, faint in [*chosen, *((entry, False) for entry in found[-1:])]:
            values = line[key]
            x = [(i + 0.5) / len(values) for i in range(len(values))]
            label = f"{name}{', at the first evaluation' if faint else ''}"
            series.append(Series(label, x, values, colour, dots=not faint and len(values) <= LEVELS, faint=faint))
    return chart(series, "noise level u, 0 = data, 1 = noise", log_y=True, x_range=(0.0, 1.0))


# ---------------------------------------------------------------- tables


def _scores(scores: Mapping[str, Any]) -> str:
    """scores.json: {name: number or text or {"value", "interval", "real", "note"}}; nested under "metrics" or not."""
    rows = scores.get("metrics", scores)
    if not isinstance(rows, Mapping) or not rows:
        return ""
    cells = []
    for name, entry in rows.items():
        found = entry if isinstance(entry, Mapping) else {"value": entry}
        interval = found.get("interval")
        shown = [found.get("value"), " to ".join(map(_cell, interval)) if interval else None, found.get("real")]
        tds = "".join(f"<td>{escape(_cell(value))}</td>" for value in [*shown, found.get("note")])
        cells.append(f"<tr><th>{escape(str(name))}</th>{tds}</tr>")
    head = "<tr><th>score</th><td>value</td><td>interval</td><td>real data</td><td></td></tr>"
    return f"<table class=scores><thead>{head}</thead><tbody>{''.join(cells)}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _settings(run: Run) -> str:
    info = run.checkpoints().all()
    try:
        stored = json.loads((info[-1] / "trainer.json").read_text(encoding="utf-8"))["settings"] if info else {}
    except (OSError, ValueError, KeyError):
        stored = {}
    return _table(stored)


def _table(content: Mapping[str, Any]) -> str:
    rows = []
    for key, value in content.items():
        if value in (None, [], {}, ""):
            continue
        text = shlex.join(map(str, value)) if key == "command" else _plain(value)
        rows.append(f"<tr><th>{escape(str(key))}</th><td>{escape(text)}</td></tr>")
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _plain(value: Any) -> str:
    if isinstance(value, list):
        text = ", ".join(map(_plain, value))
        return text if len(text) <= 400 else text[:400] + " ..."
    if isinstance(value, float):
        return number(value)
    return str(value)


def _next(run: Run, state: Mapping[str, Any]) -> str:
    folder = shlex.quote(str(run.folder))
    asked = run.read("samples/asked.json").get("request", {})
    what = ""
    if asked.get("prompt"):
        what = " " + shlex.quote(asked["prompt"][0])
    elif asked.get("label"):
        what = f" label={asked['label'][0]}"
    commands = []
    if state.get("state") in ("interrupted", "stopped", "failed"):
        command = run.read("env.json").get("command")
        if command:
            commands.append(("go on with this run", shlex.join(map(str, command))))
    use = ("draw samples", f"sfumato sample {folder}{what} n=16 -o samples")
    if "autoencoder" in run.read("model/config.json"):
        use = ("train a model in its latent", f"sfumato train image data=... codec={folder}")
    commands += [
        use,
        ("see all settings", f"sfumato show {folder}"),
        ("start another run from these weights", f"sfumato train {folder} name=another init={folder}"),
    ]
    items = "".join(f"<li>{escape(why)}<code>{escape(command)}</code></li>" for why, command in commands)
    return f'<ul class="next">{items}</ul>'
