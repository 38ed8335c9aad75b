"""What a user asks of a quantized case: how much it may lose against float, its size, and the time of a call."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from reports.limits import Limit, LimitError, parse_limit
from reports.measures import MEASURES, is_share
from reports.record import Record, record_name

USUAL_DROPS = ("1pp", "1%", "agreement:5pp")
"""A point of a share; one per cent of another metric; without labels, agreement on 95 % of the samples."""
_SIZES = {"kb": 1e3, "mb": 1e6, "gb": 1e9}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_QUANTITY = re.compile(r"(?P<number>[0-9]*\.?[0-9]+) ?(?P<unit>[A-Za-z]+)")


@dataclass(frozen=True)
class Requirements:
    """What a case must keep to be shipped.

    drops        what it may lose against float: of several the first that speaks of a case counts
    max_size     bytes of the saved artefact, None for any
    max_latency  seconds of a call, None for any
    """

    drops: tuple[Limit, ...]
    max_size: float | None = None
    max_latency: float | None = None

    def drop_of(self, record: Record) -> Limit | None:
        """Return the limit that a case's loss is judged under, None where none speaks of it."""
        return next((limit for limit in self.drops if _speaks_of(limit, record)), None)


def parse_requirements(
    drops: Sequence[str] = USUAL_DROPS, max_size: str | None = None, max_latency: str | None = None
) -> Requirements:
    """Read drops such as ``1pp``, ``1%`` or ``agreement:5pp``, a size such as ``20MB``, and a time such as ``10ms``.

    Raises:
        LimitError: one of them cannot be understood, or is nothing a drop of accuracy can be.
    """
    return Requirements(
        tuple(map(parse_drop, drops)),
        None if max_size is None else parse_size(max_size),
        None if max_latency is None else parse_time(max_latency),
    )


def parse_drop(text: str) -> Limit:
    """Read ``AMOUNT``, which is of accuracy, or ``METRIC:AMOUNT``, as limits are written.

    Raises:
        LimitError: it is neither, or names a metric that has nothing to do with accuracy.
    """
    try:
        limit = parse_limit(text if ":" in text else f"accuracy:{text}")
    except LimitError as error:
        if ":" in text:
            raise
        raise LimitError(f"{text!r} is not a drop such as 1pp, 1%, or perplexity:1%.") from error
    if limit.metric in MEASURES and limit.metric not in ("accuracy", "agreement"):
        raise LimitError(
            f"{text!r} is no drop of accuracy: it is of accuracy, agreement, or a model's own metric by name."
        )
    return replace(limit, text=text)


def parse_size(text: str) -> float:
    """Return the bytes of ``20MB``; units are kB, MB and GB, a thousand times each the last.

    Raises:
        LimitError: it is no such size.
    """
    return _quantity(text, _SIZES, "a size such as 20MB, 800kB or 1.5GB")


def parse_time(text: str) -> float:
    """Return the seconds of ``10ms``; units are us, ms and s.

    Raises:
        LimitError: it is no such time.
    """
    return _quantity(text, _TIMES, "a time such as 10ms, 250us or 1.5s")


def drop_text(limit: Limit, metric: str) -> str:
    """``accuracy within a point of float``; ``95 % agreement with float``."""
    if limit.metric == "agreement":
        return f"{100 - limit.amount * (100 if limit.unit == 'absolute' else 1):g} % agreement with float"
    points = "a point" if limit.amount == 1 else f"{limit.amount:g} points"
    amounts = {"points": points, "percent": f"{limit.amount:g} %", "absolute": f"{limit.amount:g}"}
    return f"{metric} within {amounts[limit.unit]} of float"


def _quantity(text: str, units: dict[str, float], what: str) -> float:
    match = _QUANTITY.fullmatch(text.strip())
    factor = match and units.get(match["unit"].lower())
    if not factor or not float(match["number"]):
        raise LimitError(f"{text!r} is not {what}.")
    return factor * float(match["number"])


def _speaks_of(limit: Limit, record: Record) -> bool:
    if not limit.applies_to(record_name(record)):
        return False
    if limit.metric == "agreement":
        return record["fidelity"].get("agreement") is not None
    own, known = record["accuracy"].get("metric"), record["accuracy"].get("delta") is not None
    return known and limit.metric in ("accuracy", own) and (limit.unit != "points" or is_share(record))
