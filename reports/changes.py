"""Where a series of saved figures changed its level: exact segmentation with a penalty calibrated on noise.

The series is taken as constant between changes, with normal noise of unknown variance. Of all segmentations into
``m + 1`` parts the one with the least squared error is found exactly (segment neighbourhood search: Auger and Lawrence
1989), and the number of changes is the one that maximizes ``n log(SSE_0 / SSE_m) - penalty m`` (Yao 1988 with the
penalty left free). Schwarz's penalty is too lenient for the dozen saves a project has, so ours is the value at which
one in a hundred series of normal noise shows a change; the test measures that rate.
"""

from collections.abc import Sequence

import numpy

FALSE_ALARMS = 0.01
"""The share of series without a change in which one is found."""
SHORTEST = 2
"""A level is believed once so many saves show it."""
FEWEST = 2 * SHORTEST

_MOST = 5
# The 99th percentile of max over m of n log(SSE_0 / SSE_m) / m in normal noise, from 20,000 series of each length.
_PENALTY = {4: 15.9, 5: 15.0, 6: 14.4, 7: 14.0}
_LONGER = 13.5
# Figures that repeat to so many digits are the same figure.
_RESOLUTION = 1e-6


def change_points(values: Sequence[float]) -> list[int]:
    """The indices at which a new level begins, in order; ``values`` are finite.

    At most five changes are found, each level lasts at least ``SHORTEST`` saves, and fewer than ``FEWEST`` values show
    none. A series that repeats exactly, as sizes do, has no noise: any change that lasts is then found.
    """
    series = numpy.asarray(values, float)
    n = len(series)
    if n < FEWEST:
        return []
    most = min(_MOST, n // SHORTEST - 1)
    errors, starts = _segmentations(series - series.mean(), most)
    floor = n * (_RESOLUTION * numpy.abs(series).max()) ** 2
    if errors[0] <= floor:
        return []
    gains = n * numpy.log((errors[0] + floor) / (errors + floor))
    count = int(numpy.argmax(gains - _PENALTY.get(n, _LONGER) * numpy.arange(most + 1)))
    return _boundaries(starts, count, n)


def _segmentations(series: numpy.ndarray, most: int) -> tuple[numpy.ndarray, list[numpy.ndarray]]:
    """The least squared errors with 0 to ``most`` changes, and for each end where its last segment starts best."""
    cost = _segment_costs(series)
    best = cost[0]
    errors, starts = [best[-1]], []
    for _ in range(most):
        through = best[:, None] + cost
        starts.append(numpy.argmin(through, axis=0))
        best = numpy.min(through, axis=0)
        errors.append(best[-1])
    return numpy.maximum(errors, 0.0), starts


def _segment_costs(series: numpy.ndarray) -> numpy.ndarray:
    """Squared error of values i to j - 1 around their mean, [n + 1, n + 1]; infinite for too short a segment."""
    n = len(series)
    sums, squares = (numpy.concatenate([[0.0], numpy.cumsum(part)]) for part in (series, series**2))
    lengths = numpy.arange(n + 1)[None, :] - numpy.arange(n + 1)[:, None]
    with numpy.errstate(divide="ignore", invalid="ignore"):
        cost = squares[None, :] - squares[:, None] - (sums[None, :] - sums[:, None]) ** 2 / lengths
    return numpy.where(lengths >= SHORTEST, cost, numpy.inf)


def _boundaries(starts: list[numpy.ndarray], count: int, end: int) -> list[int]:
    found = []
    for level in reversed(starts[:count]):
        end = int(level[end])
        found.append(end)
    return found[::-1]
