"""Line charts as inline SVG, coloured by the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 10, 42
_POINTS = 400  # a line is drawn through the means of at most this many buckets


@dataclass(frozen=True)
class Series:
    """One line. colour: 0 to 3 of the page's palette. dots: points are marked. faint: in the background."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dots: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Axis:
    """A scale from data to [0, 1]."""

    low: float
    high: float
    log: bool

    def __call__(self, value: float) -> float:
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values inside the range, four to seven of them where that is possible."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if last - first <= 2 else (1,)
            found = [m * 10.0**e for e in range(first, last + 1) for m in steps]
            inside = [v for v in found if self.low <= v <= self.high]
            if len(inside) >= 2:
                return inside[:: max(1, len(inside) // 6)]
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def chart(
    series: Sequence[Series],
    x_label: str,
    *,
    log_y: bool = False,
    from_zero: bool = False,
    x_range: tuple[float, float] | None = None,
) -> str:
    """A chart with axes, grid and legend as an HTML fragment; empty if there is nothing to draw. All text is escaped."""
    drawn = [Series(s.name, *_thinned(s), s.colour, s.dots, s.faint) for s in series]
    drawn = [s for s in drawn if len(s.x)]
    if not drawn:
        return ""
    xs, ys = (np.concatenate([np.asarray(getattr(s, k), float) for s in drawn]) for k in "xy")
    x_axis = _axis(x_range or (float(xs.min()), float(xs.max())), False, pad=0.0)
    low, top = _robust(ys)
    y_axis = _axis((0.0 if from_zero else low, top), log_y and bool((ys > 0).all()), pad=0.0 if from_zero else 0.06)
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        down = 1 - min(1.05, max(-0.05, y_axis(max(y, y_axis.low * 1e-3) if y_axis.log else y)))
        return round(_LEFT + wide * x_axis(x), 1), round(_TOP + high * down, 1)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(x_label + ": " + _spoken(drawn))}">'
    ]
    for tick in y_axis.ticks():
        _, y = place(x_axis.low, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{number(tick)}</text>')
    for tick in x_axis.ticks():
        x, _ = place(tick, y_axis.low)
        parts.append(f'<text x="{x}" y="{_TOP + high + 18}" text-anchor="middle">{number(tick)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_TOP + high}" y2="{_TOP + high}"/>')
    parts.append(f'<text x="{_LEFT + wide / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts += [_line(s, [place(x, y) for x, y in zip(s.x, s.y)]) for s in drawn]
    legend = "".join(
        f'<span class="key c{s.colour}{" faint" if s.faint else ""}">{escape(s.name)}</span>' for s in drawn if s.name
    )
    return "".join(parts) + f'</svg><div class="legend">{legend}</div>'


def _line(s: Series, points: list[tuple[float, float]]) -> str:
    kind = f"c{s.colour}{' faint' if s.faint else ''}"
    path = " ".join(f"{x},{y}" for x, y in points)
    dots = "".join(f'<circle class="{kind}" cx="{x}" cy="{y}" r="3"/>' for x, y in points) if s.dots else ""
    return f'<polyline class="{kind}" points="{path}"/>{dots}'


def number(value: float) -> str:
    """Short: 1.5k, 2M, 0.02, 3e-05."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    return f"{value:.4g}" if size >= 1e-3 or size == 0 else f"{value:.1e}".replace("e-0", "e-")


def _spoken(series: Sequence[Series]) -> str:
    return "; ".join(f"{s.name}: from {number(s.y[0])} to {number(s.y[-1])}" for s in series)


def _thinned(s: Series) -> tuple[list[float], list[float]]:
    """Finite points only, averaged in buckets if there are many."""
    x, y = np.asarray(s.x, float), np.asarray([math.nan if v is None else v for v in s.y], float)
    good = np.isfinite(x) & np.isfinite(y)
    x, y = x[good], y[good]
    if len(x) > _POINTS:
        parts = np.array_split(np.arange(len(x)), _POINTS)
        x, y = (np.array([v[p].mean() for p in parts]) for v in (x, y))
    return x.tolist(), y.tolist()


def _robust(y: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float]:
    """The range without the upper hundredth: the first losses of a run would flatten all that follows."""
    top = float(np.quantile(y, 0.99)) if len(y) >= 50 else float(y.max())
    return float(y.min()), top


def _axis(limits: tuple[float, float], log: bool, pad: float) -> Axis:
    low, high = limits
    if log and high / low > 1.5:
        margin = (high / low) ** pad
        return Axis(low / margin, high * margin, True)
    if high <= low:
        low, high = low - (abs(low) or 1.0) * 0.5, high + (abs(high) or 1.0) * 0.5
    margin = (high - low) * pad
    return Axis(low - margin, high + margin, False)


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if raw <= m * power * (1 + 1e-9))
