"""Which cases are worth considering: accuracy against latency, size or memory, with what the intervals leave open.

A case is *dominated* only if that is shown: another is better in both figures beyond both 95 % intervals (in a figure
without sampling error, such as bytes, equal is as good). Of the others, those that lead by their measured values form
the front (Pareto 1896); the rest are *tied*: a leader looks better, but the intervals do not show it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy

from reports.figures import Figure, figure, figure_text, higher_is_better, quality_metric
from reports.record import Record, record_name
from reports.words import some

COSTS = {"time": "latency", "size": "size", "memory": "peak memory"}


@dataclass(frozen=True, eq=False)
class Point:
    """One case in a plot of quality against cost; ``quality`` is negated where lower is better."""

    record: Record
    quality: Figure
    cost: Figure


@dataclass(frozen=True)
class TiedSet:
    """A case on the front and those that are not shown to be worse than it."""

    leader: Point
    tied: list[Point] = field(default_factory=list)


@dataclass(frozen=True)
class Front:
    """Quality against one cost, for the cases of one model.

    sets       by rising cost
    dominated  shown to be worse than another case
    missing    how many cases lack one of the two figures
    """

    model: str
    quality: str
    cost: str
    sets: list[TiedSet]
    dominated: list[Point]
    missing: int

    @property
    def quality_name(self) -> str:
        """The model's own metric by its name, or agreement."""
        own = self.sets[0].leader.record["accuracy"].get("metric") if self.sets else None
        return own if own and self.quality == "accuracy" else self.quality


def fronts(records: Sequence[Record]) -> list[Front]:
    """The fronts of every model and cost for which at least two cases have both figures."""
    cases = [record for record in records if record["kind"] == "inference"]
    models = sorted({record["case"]["model"] for record in cases})
    found = [front([r for r in cases if r["case"]["model"] == model], cost) for model in models for cost in COSTS]
    return [one for one in found if sum(1 + len(group.tied) for group in one.sets) + len(one.dominated) > 1]


def front(records: Sequence[Record], cost: str) -> Front:
    """The front of one model's cases, ``cost`` one of ``COSTS``."""
    quality = quality_metric(records)
    points = [point for record in records if (point := _point(record, quality, cost))]
    points.sort(key=lambda point: (point.cost.value, -point.quality.value, record_name(point.record)))
    dominated = dominance(points).any(axis=0)
    open_points = [point for point, shown in zip(points, dominated, strict=True) if not shown]
    ahead = _ahead(open_points)
    leading = ~ahead.any(axis=0)
    sets = {index: TiedSet(open_points[index]) for index in numpy.flatnonzero(leading)}
    for index in numpy.flatnonzero(~leading):
        # Leaders stand by rising cost, so the last one ahead is the nearest.
        nearest = numpy.flatnonzero(ahead[:, index] & leading)[-1]
        sets[nearest].tied.append(open_points[index])
    model = records[0]["case"]["model"] if records else ""
    beaten = [point for point, shown in zip(points, dominated, strict=True) if shown]
    return Front(model, quality, cost, list(sets.values()), beaten, len(records) - len(points))


def dominance(points: Sequence[Point]) -> numpy.ndarray:
    """Whether point i is shown to be better than point j, bool [i, j].

    Shown is: better beyond both intervals in one figure, and in the other too or there exactly equal.
    """
    quality, cost = _table([point.quality for point in points]), _table([point.cost for point in points])
    better_quality = quality.low[:, None] > quality.high[None, :]
    better_cost = cost.high[:, None] < cost.low[None, :]
    no_worse_quality = better_quality | _exactly_equal(quality)
    no_worse_cost = better_cost | _exactly_equal(cost)
    return (better_quality & no_worse_cost) | (better_cost & no_worse_quality)


def front_text(found: Front) -> str:
    """A line a leader with both figures, then those tied with it, then how many are dominated."""
    lines = [f"{found.model}: {found.quality_name} against {COSTS[found.cost]}"]
    width = max((len(record_name(group.leader.record)) for group in found.sets), default=0)
    for group in found.sets:
        record = group.leader.record
        figures = " at ".join(interval_text(record, metric) for metric in (found.quality, found.cost))
        lines.append(f"  {record_name(record):{width}}  {figures}{_simulated(record)}")
        if group.tied:
            names = [record_name(point.record) for point in group.tied]
            lines.append(f"    not shown to be worse: {some(names)}")
    if found.dominated:
        lines.append(f"  dominated beyond both intervals: {len(found.dominated)}")
    if found.missing:
        lines.append(f"  without both figures: {found.missing}")
    return "\n".join(lines)


def interval_text(record: Record, metric: str) -> str:
    """``94.0 % (92.2 % to 95.1 %)``; the figure alone where it is exact, or its interval unknown."""
    value, low, high = figure(record, metric)
    shown = figure_text(record, metric, value)
    if not 0 < high - low < math.inf:
        return shown
    ends = [figure_text(record, metric, end) for end in (low, high)]
    return shown if ends == [shown, shown] else f"{shown} ({ends[0]} to {ends[1]})"


def _point(record: Record, quality: str, cost: str) -> Point | None:
    worth, price = figure(record, quality), figure(record, cost)
    if worth is None or price is None:
        return None
    if not higher_is_better(record, quality):
        worth = Figure(-worth.value, -worth.high, -worth.low)
    return Point(record, worth, price)


def _ahead(points: Sequence[Point]) -> numpy.ndarray:
    """Whether the measured values alone put point i before point j, bool [i, j]; of equals the first is before."""
    quality, cost = _table([point.quality for point in points]), _table([point.cost for point in points])
    gain = quality.value[:, None] - quality.value[None, :]
    saving = cost.value[None, :] - cost.value[:, None]
    first = numpy.triu(numpy.ones_like(gain, bool), 1)
    return (gain >= 0) & (saving >= 0) & ((gain > 0) | (saving > 0) | first)


def _table(figures: Sequence[Figure]) -> Figure:
    """The figures as three columns, float [n] each."""
    return Figure(*numpy.array(figures, float).reshape(-1, 3).T)


def _exactly_equal(column: Figure) -> numpy.ndarray:
    exact = column.low == column.high
    return (column.value[:, None] == column.value[None, :]) & exact[:, None] & exact[None, :]


def _simulated(record: Record) -> str:
    return "" if record["evidence"] == "measured" else f"  {record['evidence']}"
