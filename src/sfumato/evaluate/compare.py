"""Two reports of `sfumato eval` side by side, where they asked the same question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

from sfumato.errors import UserError

Report = Mapping[str, Any]  # {run, data, n, metrics: {name: {value, interval, real}}, features, settings}

# What a metric found out beside its value: may differ between reports that asked the same.
_FOUND = ("standard_errors", "network_evaluations", "terms")
_COUNTS = {
    "samples": "number of samples",
    "training_items": "number of training items",
    "held_out_items": "number of held-out items",
    "compared": "number of items compared with one another",
    "k": "neighbour k",
}


@final
@dataclass(frozen=True)
class Compared:
    """One metric of two reports. ratio: first / second. apart: whether the 95% intervals have no number in common."""

    first: Mapping[str, Any]
    second: Mapping[str, Any]

    @property
    def ratio(self) -> float | None:
        """None where the second is 0 or either is no number."""
        a, b = self.first.get("value"), self.second.get("value")
        return a / b if a is not None and b else None

    @property
    def apart(self) -> bool | None:
        """None where either has no interval."""
        a, b = self.first.get("interval"), self.second.get("interval")
        return None if not a or not b else bool(a[1] < b[0] or b[1] < a[0])

    def to_dict(self) -> dict[str, Any]:
        """Plain data: {"first", "second", "ratio", "apart"}."""
        return {"first": dict(self.first), "second": dict(self.second), "ratio": self.ratio, "apart": self.apart}


def compare_reports(
    first: Report, second: Report, names: tuple[str, str] = ("the first", "the second")
) -> dict[str, Compared]:
    """The metrics that both reports hold, by name.

    Raises UserError, with the difference and both values, unless each was measured alike in both: the same real data
    (fingerprint) and part of them, the same counts, the same settings of the metric, and for scores in features the same
    weights (sha256) and resize. How samples were drawn may differ: that is what is compared.
    """
    shared = [name for name in first["metrics"] if name in second["metrics"]]
    if not shared:
        _check_extractors(first, second, names)
        ours, theirs = (", ".join(report["metrics"]) or "none" for report in (first, second))
        raise UserError(
            f"{names[0]} and {names[1]} have no metric in common ({ours}; {theirs}); run `sfumato eval` with the same "
            "metrics= for both"
        )
    for name in shared:
        other = dict(_question(second, name))
        for what, value in _question(first, name):
            if value != other.get(what):
                raise UserError(
                    f"{name} can't be compared: the {what} is {_shown(value)} in {names[0]} and "
                    f"{_shown(other.get(what))} in {names[1]}; run `sfumato eval` again with the same for both"
                )
    return {name: Compared(first["metrics"][name], second["metrics"][name]) for name in shared}


def _question(report: Report, metric: str) -> Iterator[tuple[str, Any]]:
    """All that a metric was measured against, in words and values, in the order in which differences are named."""
    settings = report.get("settings", {})
    yield "fingerprint of the real data", settings.get("fingerprint")
    yield "part of the data", settings.get("part")
    of_features = settings.get("features", {})
    own = next((e for e in of_features.get("extractors", ()) if metric in e.get("scores", ())), None)
    if own is not None:
        yield f"sha256 of the extractor {own['name']}", own.get("sha256")
        yield "resize", own.get("resize")
        for key, words in _COUNTS.items():
            yield words, of_features.get(key)
    elif metric in settings:  # a loss or likelihood of n held-out items, with settings of its own
        yield "number of held-out items", report.get("n")
        for key, value in settings[metric].items():
            if key not in _FOUND:
                yield f"setting {metric}.{key}", value
    else:  # of samples by class
        by_class = settings.get("class_scores", {})
        yield "sha256 of the judge", by_class.get("judge", report.get("features", {}).get("sha256"))
        yield "number of samples", by_class.get("samples")


def _check_extractors(first: Report, second: Report, names: tuple[str, str]) -> None:
    """Reports in features of other names: say so, with both."""
    both = [
        [e.get("name") for e in report.get("settings", {}).get("features", {}).get("extractors", ())]
        for report in (first, second)
    ]
    if all(both):
        raise UserError(
            f"scores in other features can't be compared: the extractor is {', '.join(both[0])} in {names[0]} and "
            f"{', '.join(both[1])} in {names[1]}; run `sfumato eval` again with the same extractor= for both"
        )


def _shown(value: Any) -> str:
    return "not stated" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
