"""From which threshold on a cheap model's answers may stand: a guarantee on the loss, from held-out data.

An answer is lost where the cheap model's stands and is wrong while the stronger one's would be right; so the accuracy
of both together falls below the stronger model's by no more than the share that is lost. With the stated confidence
over the draw of the held-out data, a new source (a document, a review) loses at most the stated share of its answers
on average.

Thresholds are tried from the surest down, each tested against the hypothesis that more is lost, and the first that is
not rejected ends the search: fixed-sequence testing, as in Angelopoulos et al., "Learn then Test" (arXiv:2110.01052),
which needs no correction for how many were tried. As a lower threshold never loses less, and the p-value grows with the
loss alone, the thresholds may be the values that the data happen to have (Bates et al., "Distribution-free,
risk-controlling prediction sets", arXiv:2101.02703, theorem 1). Where every source has one answer, losses are 0 or 1
and the test is the exact binomial one; else it is Hoeffding's and Bentkus's on the mean loss of each source.
"""

import math
from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Certificate:
    """What was shown of a threshold.

    threshold   of the sureness from which on the first model's answer stands; infinite where no threshold could be
                shown to keep the limit, so that the stronger model answers always
    limit       the share of answers that a new source may lose on average
    confidence  that it loses no more
    sources     independent sources of the answers that it was shown on
    lost        the share that these lost
    escalated   the share of these answers that the stronger model gave
    """

    threshold: float
    limit: float
    confidence: float
    sources: int
    lost: float
    escalated: float


def certify(
    sureness: np.ndarray, lost: np.ndarray, sources: np.ndarray, limit: float, confidence: float = 0.95
) -> Certificate:
    """Return the lowest threshold at which the loss is shown to be within ``limit``.

    Args:
        sureness: float [n], of the first model in each of its answers; NaN is never sure.
        lost: bool [n], where the first model is wrong and the stronger one is right.
        sources: int [n]: answers of one source share a number, and sources are independent.

    Raises:
        ValueError: there are no answers, lengths differ, or ``limit`` or ``confidence`` is not between 0 and 1.
    """
    sureness, lost, sources = np.asarray(sureness, np.float64), np.asarray(lost, bool), np.asarray(sources)
    if not len(sureness):
        raise ValueError("no answers were given to certify a threshold on: hold some out.")
    if not sureness.shape == lost.shape == sources.shape == (len(sureness),):
        raise ValueError(
            f"each answer has one sureness, loss and source, not {sureness.shape, lost.shape, sources.shape}."
        )
    for name, share in (("limit", limit), ("confidence", confidence)):
        if not 0 < share < 1:
            raise ValueError(f"the {name} must lie between 0 and 1, but is {share}.")
    _, index, sizes = np.unique(sources, return_inverse=True, return_counts=True)
    sureness = np.where(np.isnan(sureness), -np.inf, sureness)
    order = np.argsort(-sureness, kind="stable")
    descending = sureness[order]
    losses = np.cumsum((lost / sizes[index])[order]) / len(sizes)
    # Equal answers stand or escalate together.
    last_of_equals = np.append(descending[1:] != descending[:-1], True) & (descending > -np.inf)
    highest = highest_loss(len(sizes), limit, confidence, exact=len(sizes) == len(sureness))
    holds = np.flatnonzero(last_of_equals & (losses <= highest + _ROUNDING))
    if not len(holds):
        return Certificate(math.inf, limit, confidence, len(sizes), 0.0, 1.0)
    last = holds[-1]
    escalated = 1 - int(last + 1) / len(sureness)
    return Certificate(float(descending[last]), limit, confidence, len(sizes), float(losses[last]), escalated)


def highest_loss(sources: int, limit: float, confidence: float, exact: bool) -> float:
    """Return the highest mean loss seen on so many sources that shows the true one to be within ``limit``.

    It is negative where even no loss at all would not show it. ``exact`` is for losses of 0 or 1.
    """
    level = 1 - confidence
    if exact:
        most = -1
        while most < sources and _binomial(most + 1, sources, limit) <= level:
            most += 1
        return most / sources
    if _bounded(0.0, sources, limit) > level:
        return -1.0
    low, high = 0.0, limit
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _bounded(middle, sources, limit) <= level else (low, middle)
    return low


def fewest_sources(limit: float, confidence: float = 0.95) -> int:
    """Return how many sources without any loss it takes to show that the loss is within ``limit``."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - limit) - _ROUNDING)


def _bounded(mean: float, n: int, limit: float) -> float:
    """P-value that ``n`` losses between 0 and 1 with this mean have an expectation above ``limit``.

    The smaller of Hoeffding's (1963) in the form of a relative entropy and Bentkus's (2004), both valid: Bates et al.,
    proposition 4.
    """
    mean = min(mean, limit)
    entropy = (1 - mean) * math.log((1 - mean) / (1 - limit)) + (mean * math.log(mean / limit) if mean else 0.0)
    return min(1.0, math.exp(-n * entropy), math.e * _binomial(math.ceil(n * mean - _ROUNDING), n, limit))


def _binomial(most: int, n: int, p: float) -> float:
    """Probability of at most so many successes in ``n`` trials."""
    if most >= n:
        return 1.0
    logs = math.log(p) - math.log1p(-p)
    start = n * math.log1p(-p) + math.lgamma(n + 1)
    terms = (start - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * logs for k in range(most + 1))
    return min(1.0, math.fsum(map(math.exp, terms)))
