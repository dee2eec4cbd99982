"""How the commands write: aligned columns, times and sizes in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def say(text: str = "") -> None:
    """A line on standard output."""
    print(text, flush=True)


def say_json(content: Mapping[str, Any] | Sequence[Any]) -> None:
    """One JSON object on standard output; infinities and NaN as null."""
    say(json.dumps(_finite(content), ensure_ascii=False, default=str))


def columns(rows: Sequence[Sequence[str]], *, indent: str = "") -> str:
    """Rows as aligned columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(indent + "  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows)


def facts(pairs: Mapping[str, str], indent: str = "  ") -> str:
    """Names and values, a line each; values of several lines are indented."""
    width = max(map(len, pairs), default=0)
    gap = " " * (len(indent) + width + 2)
    return "\n".join(f"{indent}{k.ljust(width)}  {v}".replace("\n", f"\n{gap}") for k, v in pairs.items())


def duration(seconds: float) -> str:
    """`0.4 s`, `42 s`, `3 min 05 s`, `2 h 10 min`, `3 days`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} days"


def size(count: float) -> str:
    """Bytes in words: `512 B`, `1.4 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
