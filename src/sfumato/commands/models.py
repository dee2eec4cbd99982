"""`sfumato models`: what can be sampled by name. Reads files only, so that listing loads no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfumato.commands.say import columns, say, say_json, size
from sfumato.commands.words import RUNS, run_names

_SHIPPED = Path(__file__).parent.parent / "models"
_CONFIG, _WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"


def models(*, as_json: bool) -> None:
    """A table of the models that ship and of the runs that have one."""
    rows = [_row(folder.name, folder, "ships") for folder in _folders(_SHIPPED)]
    rows += [_row(name, RUNS / name / "model", "run") for name in run_names() if (RUNS / name / "model").is_dir()]
    if as_json:
        say_json(rows)
        return
    if not rows:
        say(f"no models: none comes with this installation, and there are no runs in {RUNS}/ yet")
        return
    table = [["name", "from", "makes", "asked by", "size", "card"]]
    for row in rows:
        weights = size(row["bytes"]) if row["bytes"] else "weights are missing"
        table.append([row["name"], row["from"], row["makes"], row["asked_by"], weights, row["card"]])
    say(columns(table))


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if (entry / _CARD).is_file()) if root.is_dir() else []


def _row(name: str, folder: Path, source: str) -> dict[str, Any]:
    model = _read(folder / _CONFIG).get("model") or {}
    info, conditioner = model.get("info") or {}, model.get("conditioner") or {}
    weights = folder / _WEIGHTS
    shape = " x ".join(map(str, info.get("shape") or ()))
    asked = {"text": "prompt"}.get(conditioner.get("type", ""), conditioner.get("type", "nothing"))
    return {
        "name": name,
        "from": source,
        "makes": f"{info.get('kind', 'unknown')} {shape}".strip(),
        "asked_by": asked,
        "bytes": weights.stat().st_size if weights.is_file() else 0,
        "card": str(folder / _CARD),
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
