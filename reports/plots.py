"""Drawings of the HTML report: scatter plots of fronts and sparklines of histories, as SVG text without any style.

Colours come from the page's style sheet by class, so one drawing serves light and dark. A point is a focusable group
that carries its description; ``data-i`` is the number of its row in the table.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

from reports.figures import higher_is_better
from reports.measures import is_share
from reports.pareto import COSTS, Front, Point, interval_text
from reports.record import record_name
from reports.tables import three_digits

WIDTH, HEIGHT = 420, 310
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 46
_UNITS = {"time": (1e3, "ms"), "size": (1e-6, "MB"), "memory": (1e-6, "MB")}
_SHAPES = (
    '<circle r="4.5"/>',
    '<rect x="-4" y="-4" width="8" height="8"/>',
    '<path d="M0-5.8 5.8 0 0 5.8-5.8 0Z"/>',
    '<path d="M0-5.5 5.4 4.2H-5.4Z"/>',
    '<path d="M0 5.5 5.4-4.2H-5.4Z"/>',
    '<path d="M-2-5.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5Z"/>',
)
# Spread by more than this, costs are drawn on a logarithmic axis.
_WIDE = 6.0


def shape(index: int) -> str:
    """The mark of the backend with this number."""
    return _SHAPES[index % len(_SHAPES)]


def scatter(found: Front, rows: Mapping[int, int], backends: Sequence[str]) -> str:
    """The plot of one front; ``rows`` maps the identity of a record to its row, ``backends`` fixes shapes and colours.

    Points below the axis, which starts where it shows the leaders and most of the others, are drawn on its edge.
    """
    leaders = [group.leader for group in found.sets]
    tied = {id(point): group.leader for group in found.sets for point in group.tied}
    standing = [point for group in found.sets for point in group.tied]
    everyone = [*found.dominated, *standing, *leaders]
    axes = _Axes(found, everyone, leaders)
    marks = []
    for point in everyone:
        if point in found.dominated:
            kind, words = "dom", "dominated"
        elif id(point) in tied:
            kind, words = "tied", f"not shown to be worse than {record_name(tied[id(point)].record)}"
        else:
            kind, words = "lead", "on the front"
        marks.append(_mark(axes, point, kind, words, rows[id(point.record)], backends))
    title = f"{found.model}: {axes.quality_title} against {COSTS[found.cost]}. Arrow keys move between points."
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{escape(title)}">'
        f"{axes.draw()}{_staircase(axes, leaders)}{''.join(marks)}</svg>"
    )


def sparkline_svg(values: Sequence[float], changes: Sequence[tuple[int, bool]], description: str) -> str:
    """A line through ``values`` with a dot where a level began: ``changes`` are (index, whether it was better)."""
    width, height, pad = 132, 28, 5
    low, high = min(values), max(values)
    middle = (low + high) / 2
    step = (width - 2 * pad) / max(1, len(values) - 1)
    # A wobble of less than two per cent does not fill the height.
    span = max(high - low, 0.02 * abs(middle)) or 1.0
    at = [
        (pad + index * step, height / 2 - (height - 2 * pad) * (value - middle) / span)
        for index, value in enumerate(values)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    dots = "".join(
        f'<circle class="{"up" if better else "down"}" cx="{at[index][0]:.1f}" cy="{at[index][1]:.1f}" r="3.5"/>'
        for index, better in changes
    )
    end = f'<circle class="end" cx="{at[-1][0]:.1f}" cy="{at[-1][1]:.1f}" r="2"/>'
    label = escape(description)
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{label}"><polyline points="{line}"/>{end}{dots}</svg>'
    )


class _Axes:
    """Where a figure stands in the drawing, and the ticks that say so."""

    def __init__(self, found: Front, points: Sequence[Point], leaders: Sequence[Point]) -> None:
        record = points[0].record
        self.found, self.record = found, record
        self.quality_metric = found.quality_name
        self.sign = 1.0 if higher_is_better(record, found.quality) else -1.0
        self.percent = found.quality == "agreement" or is_share(record)
        self.quality_title = self.quality_metric + (" (%)" if self.percent else "")
        self.factor, self.unit = _UNITS[found.cost]
        costs = [point.cost.value for point in points]
        self.log = min(costs) > 0 and max(costs) / min(costs) > _WIDE
        self.x_low, self.x_high = _padded(map(self._scaled, costs))
        worths = sorted(point.quality.value for point in points)
        floor = min(worths[len(worths) // 8], min(point.quality.value for point in leaders))
        shown = [worth for worth in worths if worth >= floor]
        ends = [end for point in leaders for end in (point.quality.low, point.quality.high) if math.isfinite(end)]
        self.y_low, self.y_high = _padded([*shown, *ends])

    def x(self, cost: float) -> float:
        share = (self._scaled(cost) - self.x_low) / (self.x_high - self.x_low) if cost > 0 or not self.log else 0.0
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * min(1.0, max(0.0, share))

    def y(self, worth: float) -> float:
        share = min(1.0, max(0.0, (worth - self.y_low) / (self.y_high - self.y_low)))
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share

    def is_below(self, worth: float) -> bool:
        return worth < self.y_low

    def draw(self) -> str:
        right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
        parts = []
        for worth in self._quality_ticks():
            y = self.y(worth)
            shown = self.sign * worth * (100 if self.percent else 1)
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_tick_text(shown)}</text>')
        for cost in self._cost_ticks():
            x = self.x(cost)
            parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{bottom}"/>')
            text = _tick_text(cost * self.factor)
            parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
        middle = (_LEFT + right) / 2
        title = f"{COSTS[self.found.cost]} ({self.unit}){', logarithmic' if self.log else ''}"
        parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
        parts.append(f'<text class="title" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{title}</text>')
        height = (_TOP + bottom) / 2
        parts.append(
            f'<text class="title" transform="rotate(-90)" x="{-height}" y="13" text-anchor="middle">'
            f"{escape(self.quality_title)}</text>"
        )
        return f'<g aria-hidden="true">{"".join(parts)}</g>'

    def _scaled(self, cost: float) -> float:
        return math.log(cost) if self.log else cost

    def _quality_ticks(self) -> list[float]:
        return _ticks(self.y_low, self.y_high, 5)

    def _cost_ticks(self) -> list[float]:
        if not self.log:
            return _ticks(self.x_low, self.x_high, 5, self.factor)
        low, high = math.exp(self.x_low) * self.factor, math.exp(self.x_high) * self.factor
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
            if len(ticks) <= 7:
                break
        return [tick / self.factor for tick in ticks]


def _mark(axes: _Axes, point: Point, kind: str, words: str, row: int, backends: Sequence[str]) -> str:
    record, found = point.record, axes.found
    backend = backends.index(record["case"]["backend"])
    x, y = axes.x(point.cost.value), axes.y(point.quality.value)
    evidence = "" if record["evidence"] == "measured" else f", {record['evidence']}"
    below = ", below the axis" if axes.is_below(point.quality.value) else ""
    label = (
        f"{record_name(record)}: {axes.quality_metric} {interval_text(record, found.quality)}, "
        f"{COSTS[found.cost]} {interval_text(record, found.cost)}; {words}{evidence}{below}"
    )
    hollow = "" if record["evidence"] == "measured" else " hollow"
    drawn = '<path d="M0 5.5 5.4-4.2H-5.4Z"/>' if below else shape(backend)
    return (
        f'<g class="p b{backend % 8} {kind}{hollow}" data-i="{row}" tabindex="-1" role="button" '
        f'aria-label="{escape(label)}"><path class="w" d="{_whiskers(axes, point)}"/>'
        f'<g transform="translate({x:.1f} {y:.1f})">{drawn}</g></g>'
    )


def _whiskers(axes: _Axes, point: Point) -> str:
    """Lines over both intervals; an end that is not known reaches to the edge."""
    x, y = axes.x(point.cost.value), axes.y(point.quality.value)
    (low, high), (left, right) = (sorted(ends) for ends in _ends(axes, point))
    path = f"M{x:.1f} {low:.1f}V{high:.1f}" if high - low > 1 else ""
    return path + (f"M{left:.1f} {y:.1f}H{right:.1f}" if right - left > 1 else "")


def _ends(axes: _Axes, point: Point) -> tuple[tuple[float, float], tuple[float, float]]:
    quality = axes.y(point.quality.low), axes.y(point.quality.high)
    return quality, (axes.x(point.cost.low), axes.x(point.cost.high))


def _staircase(axes: _Axes, leaders: Sequence[Point]) -> str:
    """The border of what no leader reaches, by its measured values."""
    corners, worth = [], -math.inf
    for point in leaders:
        if point.quality.value > worth:
            x, y = axes.x(point.cost.value), axes.y(point.quality.value)
            corners.append(f"H{x:.1f}V{y:.1f}" if corners else f"M{x:.1f} {y:.1f}")
            worth = point.quality.value
    return f'<path class="front" aria-hidden="true" d="{"".join(corners)}H{WIDTH - _RIGHT}"/>' if corners else ""


def _padded(values: object) -> tuple[float, float]:
    values = list(values)
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def _ticks(low: float, high: float, about: int, factor: float = 1.0) -> list[float]:
    """Round values between the ends, in steps of 1, 2 or 5, round in the unit that ``factor`` converts to."""
    low, high = low * factor, high * factor
    raw = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw)
    first = math.ceil(low / step)
    return [index * step / factor for index in range(first, math.floor(high / step) + 1)]


def _tick_text(value: float) -> str:
    return f"{value:.6g}" if value < 1e5 else three_digits(value)
