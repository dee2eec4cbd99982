"""`sfumato ema`: an average of the weights of another length than those that were kept in training."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato import modelfolder
from sfumato.commands.say import columns, say, say_json
from sfumato.commands.words import check_keys, find_model, numbers, only_settings, whole_number
from sfumato.errors import UserError
from sfumato.train.ema import power_gamma
from sfumato.train.posthoc import Combination, Rebuilt, Snapshot, Snapshots, choose, fit, rebuild

_SHOWN = (0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25)
_FAR = 0.1  # distance of a profile from the one that was asked for, above which that is said


def ema(source: str, words: Sequence[str], *, out: Path | None, as_json: bool) -> None:
    """Write a model folder for each deviation, or say what could be written."""
    settings = only_settings(words)
    check_keys(settings, ("std", "step"), "ema")
    stds = numbers(settings, "std")
    for std in stds or ():
        power_gamma(std)
    if out is not None and (stds is None or len(stds) != 1):
        raise UserError(f"-o {out} is one model folder; give one std= with it, or leave it out")
    folder = find_model(source)
    modelfolder.find_folder(folder)
    kept = Snapshots(folder / "averages").all(_warn)
    step = whole_number(settings, "step", 0) if "step" in settings else None
    used, end = choose(kept, step)
    if stds is None:
        _show(folder, used, end, as_json)
        return
    rows = []
    for std in stds:
        made = rebuild(used, std, end, _warn)
        place = out if out is not None else folder / "averages" / f"std-{std:g}"
        _write(folder, place, made, std)
        rows.append({"std": std, "folder": str(place), "step": end, **_numbers(made.combination)})
    _report(folder, rows, used, as_json)


def _write(run: Path, place: Path, made: Rebuilt, std: float) -> None:
    """The model of the run with these averages in the place of its weights."""
    stored = modelfolder.load(run)
    own = stored.model.state_dict()
    modelfolder.fit(stored.model, {**own, **made.averages}, made.used[-1].folder)
    trained = {**stored.trained, "step": made.step, "samples": made.used[-1].samples, "ema": std}
    modelfolder.save(place, stored.model, stored.spec, sampling=stored.sampling, trained=trained)


def _numbers(found: Combination) -> dict[str, float]:
    return {"error": round(found.error, 6), "gain": round(found.gain, 3)}


def _show(folder: Path, used: Sequence[Snapshot], end: int, as_json: bool) -> None:
    rows: list[dict[str, Any]] = [{"std": std, **_numbers(fit(used, std, end))} for std in _SHOWN]
    if as_json:
        say_json({"run": str(folder), "step": end, "snapshots": len(used), "reachable": rows})
        return
    say(_head(folder, used, end))
    table = [["std", "distance of its profile"], *([f"{row['std']:g}", f"{row['error']:.2%}"] for row in rows)]
    say(columns(table, indent="  "))
    best = min(rows, key=lambda row: (row["std"] in used[-1].stds, row["error"]))
    say(f"  next: sfumato ema {shlex.quote(str(folder))} std={best['std']:g}")


def _report(folder: Path, rows: Sequence[dict[str, Any]], used: Sequence[Snapshot], as_json: bool) -> None:
    if as_json:
        say_json({"run": str(folder), "snapshots": len(used), "models": list(rows)})
        return
    say(_head(folder, used, rows[0]["step"]))
    table = [["std", "distance of its profile", "model"]]
    table += [[f"{row['std']:g}", f"{row['error']:.2%}", row["folder"]] for row in rows]
    say(columns(table, indent="  "))
    for row in rows:
        if row["error"] > _FAR:
            say(
                f"  std={row['std']:g} is far from what was asked for; more snapshots (train.snapshots) or two averages "
                "(train.ema=0.05,0.1) come nearer"
            )
    say(f"  next: sfumato sample {shlex.quote(rows[0]['folder'])}")


def _head(folder: Path, used: Sequence[Snapshot], end: int) -> str:
    stds = ", ".join(f"{std:g}" for std in used[-1].stds)
    return (
        f"{folder}: averages after step {end:,}, from {len(used)} snapshots of std {stds} from step {used[0].step:,} on"
    )


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
