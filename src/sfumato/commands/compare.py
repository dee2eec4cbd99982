"""`sfumato eval --compare`: two reports side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfumato.commands.eval import RESULT
from sfumato.commands.say import columns, say, say_json
from sfumato.commands.words import RUNS
from sfumato.errors import UserError
from sfumato.evaluate import Compared, compare_reports


def compare(first: str, second: str, *, as_json: bool) -> None:
    """Print the metrics that two reports share, with their ratio; refuse reports that did not ask the same."""
    a, b = read_report(first), read_report(second)
    found = compare_reports(a, b, (first, second))
    different = _different(a, b)
    if as_json:
        say_json({"first": first, "second": second, "metrics": {k: c.to_dict() for k, c in found.items()}, **different})
        return
    head = [["", first, "", second, "", "ratio", ""]]
    say(columns([*head, *(_line(name, one) for name, one in found.items())]))
    for name, (ours, theirs) in different["settings"].items():
        say(f"  {name}: {ours} and {theirs}")


def read_report(source: str) -> dict[str, Any]:
    """A report by its file, or that of a run by the run's folder or name."""
    places = (Path(source), Path(source) / RESULT, RUNS / source / RESULT)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UserError(f"{source}: there is no report and no run with one; `sfumato eval RUN` makes it")
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: is not a report of `sfumato eval` ({error}); make it again") from None
    if not isinstance(report, dict) or not isinstance(report.get("metrics"), dict):
        raise UserError(f"{file}: is not a report of `sfumato eval`, it holds no metrics; make it again")
    return report


def _line(name: str, one: Compared) -> list[str]:
    ratio = "" if one.ratio is None else f"{one.ratio:.3f}"
    apart = "" if one.apart is None else "intervals apart" if one.apart else "intervals meet"
    return [name, *_value(one.first), *_value(one.second), ratio, apart]


def _value(metric: Any) -> tuple[str, str]:
    value, interval = metric.get("value"), metric.get("interval")
    spread = "({:.4g} ... {:.4g})".format(*interval) if interval else ""
    return "" if value is None else f"{value:.4f}", spread


def _different(first: dict[str, Any], second: dict[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """How samples in features were drawn, where that differs."""
    ours, theirs = (report.get("settings", {}).get("features", {}).get("sampling", {}) for report in (first, second))
    names = [*ours, *(name for name in theirs if name not in ours)]
    return {"settings": {k: [ours.get(k), theirs.get(k)] for k in names if ours.get(k) != theirs.get(k)}}
