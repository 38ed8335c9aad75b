"""The figures of a record by the names that limits, plots and histories use, each with its 95 % interval."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from reports.limits import METRICS
from reports.record import Record
from reports.tables import is_share, three_digits

# In a list of figures: section and key of those that have no sampling error of their own.
_PLAIN = {
    "error": ("fidelity", "error"),
    "sqnr_db": ("fidelity", "sqnr_db"),
    "cosine": ("fidelity", "cosine"),
    "kl": ("fidelity", "kl"),
    "size": ("size", "bytes"),
    "bits_per_weight": ("size", "bits_per_weight"),
    "cost": ("cost", "seconds"),
    "memory": ("memory", "peak_bytes"),
}
_HIGHER_IS_BETTER = {"sqnr_db", "cosine", "agreement", "speed"}
_UNITS = {"time": (1e3, "ms"), "size": (1e-6, "MB"), "memory": (1e-6, "MB"), "cost": (1.0, "s"), "sqnr_db": (1.0, "dB")}
_Z95 = 1.959964


class Figure(NamedTuple):
    """A figure and the ends of its 95 % interval; both ends are the figure where it has no sampling error."""

    value: float
    low: float
    high: float


def figure(record: Record, metric: str) -> Figure | None:
    """The figure of one of ``METRICS``, or of the model's own metric by its name; None where it is not known.

    The interval of ``accuracy`` is that of its paired difference from float, laid around float's value; that of
    ``time`` is as wide, relatively, as that of ``speed``; that of ``agreement`` is Wilson's (1927).
    """
    if metric in _PLAIN:
        section, key = _PLAIN[metric]
        value = record[section].get(key)
        return None if value is None else Figure(value, value, value)
    if metric == "agreement":
        return _agreement(record)
    if metric in ("speed", "time"):
        return _speed(record) if metric == "speed" else _time(record)
    return _accuracy(record) if metric in ("accuracy", record["accuracy"].get("metric")) else None


def higher_is_better(record: Record, metric: str) -> bool:
    """The direction of a metric; a model's own says its direction itself."""
    return metric in _HIGHER_IS_BETTER if metric in METRICS and metric != "accuracy" else _better(record) == "higher"


def quality_metric(records: Iterable[Record]) -> str:
    """What tells how good these cases are: their accuracy, or agreement with float where there are no labels."""
    return "accuracy" if any(figure(record, "accuracy") for record in records) else "agreement"


def figure_text(record: Record, metric: str, value: float) -> str:
    """A figure in the unit people read: ``94.0 %``, ``12.3 ms``, ``1.87×``."""
    if metric == "speed":
        return f"{value:.2f}×"
    if metric in ("agreement", "cosine") or ((metric not in METRICS or metric == "accuracy") and is_share(record)):
        return f"{100 * value:.1f} %"
    factor, unit = _UNITS.get(metric, (1.0, ""))
    return f"{three_digits(factor * value)} {unit}".strip()


def _better(record: Record) -> str:
    return record["accuracy"].get("better") or "higher"


def _accuracy(record: Record) -> Figure | None:
    accuracy = record["accuracy"]
    value, baseline, bounds = (accuracy.get(name) for name in ("value", "baseline", "ci95"))
    if value is None:
        return None
    if baseline is None or not bounds:
        return Figure(value, -math.inf, math.inf)
    low, high = min(value, baseline + bounds[0]), max(value, baseline + bounds[1])
    # A paired interval around float's value may reach beyond what a share can be.
    return Figure(value, max(0.0, low), min(1.0, high)) if is_share(record) else Figure(value, low, high)


def _agreement(record: Record) -> Figure | None:
    share, n = record["fidelity"].get("agreement"), record["fidelity"].get("n") or record["accuracy"].get("n")
    if share is None:
        return None
    if not n:
        return Figure(share, 0.0, 1.0)
    centre = (share + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    margin = _Z95 / (1 + _Z95**2 / n) * math.sqrt(max(0.0, share * (1 - share)) / n + _Z95**2 / (4 * n * n))
    return Figure(share, min(share, centre - margin), max(share, centre + margin))


def _speed(record: Record) -> Figure | None:
    ratio, bounds = record["speed"].get("ratio"), record["speed"].get("ci95")
    if ratio is None:
        return None
    return Figure(ratio, *bounds) if bounds else Figure(ratio, 0.0, math.inf)


def _time(record: Record) -> Figure | None:
    p50, speed = record["speed"].get("p50"), _speed(record)
    if p50 is None:
        return None
    if speed is None or not speed.low:
        return Figure(p50, 0.0, math.inf)
    return Figure(p50, p50 * speed.value / speed.high, p50 * speed.value / speed.low)
