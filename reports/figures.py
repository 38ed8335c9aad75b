"""The figures of a record by the names that limits, plots and histories use, each with its 95 % interval."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from reports.measures import MEASURES, Measure, is_share
from reports.record import Record
from reports.tables import three_digits

_UNITS = {"time": (1e3, "ms"), "size": (1e-6, "MB"), "memory": (1e-6, "MB"), "cost": (1.0, "s"), "sqnr_db": (1.0, "dB")}
_Z95 = 1.959964


class Figure(NamedTuple):
    """A figure and the ends of its 95 % interval; both ends are the figure where it has no sampling error."""

    value: float
    low: float
    high: float


def figure(record: Record, metric: str) -> Figure | None:
    """The figure of one of ``MEASURES``, or of the model's own metric by its name; None where it is not known.

    The interval of ``accuracy`` is that of its paired difference from float, laid around float's value; that of
    ``time`` is as wide, relatively, as that of ``speed``; that of ``agreement`` is Wilson's (1927).
    """
    measure = _measure(record, metric)
    value = measure and measure.value(record)
    if value is None:
        return None
    interval = _INTERVALS.get((measure.section, measure.key))
    return interval(record, value) if interval else Figure(value, value, value)


def higher_is_better(record: Record, metric: str) -> bool:
    """The direction of a metric; a model's own says its direction itself."""
    measure = _measure(record, metric)
    return measure is not None and measure.higher_is_better(record)


def quality_metric(records: Iterable[Record]) -> str:
    """What tells how good these cases are: their accuracy, or agreement with float where there are no labels."""
    return "accuracy" if any(figure(record, "accuracy") for record in records) else "agreement"


def figure_text(record: Record, metric: str, value: float) -> str:
    """A figure in the unit people read: ``94.0 %``, ``12.3 ms``, ``1.87×``."""
    measure = _measure(record, metric)
    if metric == "speed":
        return f"{value:.2f}×"
    if metric in ("agreement", "cosine") or (measure is MEASURES["accuracy"] and is_share(record)):
        return f"{100 * value:.1f} %"
    factor, unit = _UNITS.get(metric, (1.0, ""))
    return f"{three_digits(factor * value)} {unit}".strip()


def _measure(record: Record, metric: str) -> Measure | None:
    own = record["accuracy"].get("metric")
    return MEASURES["accuracy"] if own is not None and metric == own else MEASURES.get(metric)


def _around_float(record: Record, value: float) -> Figure:
    baseline, bounds = record["accuracy"].get("baseline"), record["accuracy"].get("ci95")
    if baseline is None or not bounds:
        return Figure(value, -math.inf, math.inf)
    low, high = min(value, baseline + bounds[0]), max(value, baseline + bounds[1])
    # A paired interval around float's value may reach beyond what a share can be.
    return Figure(value, max(0.0, low), min(1.0, high)) if is_share(record) else Figure(value, low, high)


def _wilson(record: Record, share: float) -> Figure:
    n = record["fidelity"].get("n") or record["accuracy"].get("n")
    if not n:
        return Figure(share, 0.0, 1.0)
    centre = (share + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    margin = _Z95 / (1 + _Z95**2 / n) * math.sqrt(max(0.0, share * (1 - share)) / n + _Z95**2 / (4 * n * n))
    return Figure(share, min(share, centre - margin), max(share, centre + margin))


def _of_ratio(record: Record, ratio: float) -> Figure:
    bounds = record["speed"].get("ci95")
    return Figure(ratio, *bounds) if bounds else Figure(ratio, 0.0, math.inf)


def _of_time(record: Record, time: float) -> Figure:
    ratio, bounds = record["speed"].get("ratio"), record["speed"].get("ci95")
    if ratio is None or not bounds or not bounds[0]:
        return Figure(time, 0.0, math.inf)
    return Figure(time, time * ratio / bounds[1], time * ratio / bounds[0])


# By section and key; what is not here has no sampling error, or none that is recorded.
_INTERVALS: dict[tuple[str, str], Callable[[Record, float], Figure]] = {
    ("accuracy", "value"): _around_float,
    ("fidelity", "agreement"): _wilson,
    ("speed", "ratio"): _of_ratio,
    ("speed", "p50"): _of_time,
}
