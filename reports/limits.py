"""Limits on what a change may cost: ``accuracy:0.5pp``, ``speed:10%``, ``minilm-*:size:1%``."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from reports.measures import MEASURES, SHARES

Unit = Literal["points", "percent", "absolute"]

_LIMIT = re.compile(r"(?:(?P<cases>.+):)?(?P<metric>\w+):(?P<amount>[0-9]*\.?[0-9]+)(?P<unit>pp|%)?")
_UNITS: dict[str | None, Unit] = {"pp": "points", "%": "percent", None: "absolute"}


class LimitError(ValueError):
    """A limit that cannot be understood; the message is one sentence with the remedy."""


@dataclass(frozen=True)
class Limit:
    """The largest loss tolerated of one metric.

    metric  a key of ``MEASURES``, or the name of a model's own metric
    amount  never negative; in points (0.01 of a share), in percent of the baseline, or in the metric's own unit
    cases   a shell pattern that the case's name, as rows call it, must match
    text    as the user wrote it
    """

    metric: str
    amount: float
    unit: Unit
    cases: str
    text: str

    def applies_to(self, case: str) -> bool:
        return fnmatchcase(case, self.cases)


def parse_limit(text: str) -> Limit:
    """Read ``METRIC:LIMIT`` or ``CASES:METRIC:LIMIT``, the limit as ``0.5pp``, ``1%`` or a plain number.

    Raises:
        LimitError: it is neither.
    """
    match = _LIMIT.fullmatch(text.strip())
    if match is None:
        raise LimitError(
            f"{text!r} is not METRIC:LIMIT, such as accuracy:0.5pp, speed:10% or 'minilm-*:size:1%'; "
            f"metrics are {', '.join(MEASURES)}, or a model's own by name."
        )
    unit = _UNITS[match["unit"]]
    metric = match["metric"]
    if unit == "points" and metric in MEASURES and metric not in SHARES:
        raise LimitError(
            f"{text!r}: points are for shares such as accuracy; give {metric} a limit in % or in its unit."
        )
    return Limit(metric, float(match["amount"]), unit, match["cases"] or "*", text.strip())
