"""`sfumato runs`: what is in `runs/`. Reads files only, so that listing loads no torch."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import typer

from sfumato.commands.say import columns, duration, facts, say, say_json, size
from sfumato.commands.words import RUNS, find_run, run_names
from sfumato.errors import UserError, did_you_mean
from sfumato.files import disk_errors, is_locked


def list_runs(*, as_json: bool) -> None:
    """A table of all runs, the newest first."""
    rows = sorted(map(_row, run_names()), key=lambda row: -(row["updated"] or 0))
    if as_json:
        say_json(rows)
        return
    if not rows:
        say(f"no runs in {RUNS}/ yet; `sfumato train` makes one, `sfumato demo` shows how")
        return
    now = time.time()
    table = [["name", "state", "samples", "loss", "age"]]
    for row in rows:
        age = "" if row["updated"] is None else duration(max(0.0, now - row["updated"]))
        table.append([row["name"], _state_text(row), f"{row['samples'] or 0:,}", _number(row["loss"]), age])
    say(columns(table))


def show_run(name: str, *, as_json: bool) -> None:
    """State, last metrics, settings and files of a run."""
    folder = find_run(name)
    row, last = _row(folder.name, folder), _last_metrics(folder / "metrics.jsonl")
    settings = (folder / "recipe.yaml").read_text(encoding="utf-8")
    used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if as_json:
        say_json({**row, "folder": str(folder), "bytes": used, "metrics": last, "data": _json(folder / "data.json")})
        return
    updated = "" if row["updated"] is None else f", {duration(time.time() - row['updated'])} ago"
    known = {
        "state": f"{_state_text(row)}{updated}",
        "trained": f"{row['samples'] or 0:,} samples, {row['step'] or 0:,} steps, {duration(row['seconds'] or 0)}",
        "loss": _number(row["loss"]),
        "held out": _number(last.get("held_out")),
        "disk": size(used),
    }
    known |= {kind: str(folder / kind) for kind in ("model", "samples", "report.html") if (folder / kind).exists()}
    say(str(folder))
    say(facts({k: v for k, v in known.items() if v}))
    say(settings.rstrip())


def diff_runs(first: str, second: str, *, as_json: bool) -> None:
    """The settings that differ, defaults included."""
    from sfumato.recipes import read_recipe

    a, b = (dict(read_recipe(find_run(name) / "recipe.yaml").leaves()) for name in (first, second))
    different = {
        path: [a.get(path, "not set"), b.get(path, "not set")]
        for path in [*a, *(path for path in b if path not in a)]
        if (path in a) != (path in b) or a.get(path) != b.get(path)
    }
    if as_json:
        say_json(different)
    elif not different:
        say(f"{first} and {second} have the same settings")
    else:
        say(columns([["setting", first, second], *([path, str(x), str(y)] for path, (x, y) in different.items())]))


def remove_run(name: str, *, yes: bool) -> None:
    """Delete a run's folder; only ever a folder directly inside `runs/` that holds a recipe."""
    folder = RUNS / name.removeprefix(f"{RUNS}/").rstrip("/")
    if folder.parent != RUNS or folder.name in ("", ".", ".."):
        raise UserError(f"'{name}' is not the name of a run in {RUNS}/; only those are deleted here")
    if folder.is_symlink():
        raise UserError(f"{folder} is a link to {folder.resolve()}; delete it yourself if you mean to")
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"there is no run '{folder.name}'; {did_you_mean(folder.name, run_names())}")
    if is_locked(folder / ".lock"):
        raise UserError(f"the run '{folder.name}' is being trained by another process; stop it first")
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(
                f"`sfumato runs rm {folder.name}` asks before it deletes; add --yes where nobody can answer"
            )
        typer.confirm(f"delete {folder} with its checkpoints and model?", abort=True)
    with disk_errors(folder):
        shutil.rmtree(folder)
    say(f"deleted {folder}")


def _row(name: str, folder: Path | None = None) -> dict[str, Any]:
    folder = RUNS / name if folder is None else folder
    state = _json(folder / "state.json")
    if state.get("state") == "running" and not is_locked(folder / ".lock"):
        state["state"] = "stopped"
    known = ("state", "progress", "step", "samples", "seconds", "loss", "updated")
    return {"name": name, **{key: state.get(key) for key in known}}


def _state_text(row: dict[str, Any]) -> str:
    state, progress = row["state"] or "new", row["progress"]
    return state if state == "finished" or progress is None else f"{state} {100 * float(progress):.0f}%"


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _last_metrics(file: Path) -> dict[str, Any]:
    """The newest value of every metric."""
    last: dict[str, Any] = {}
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            last.update(entry if isinstance(entry, dict) else {})
    return last
