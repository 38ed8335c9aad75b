"""Changes of a metric between two evaluations of the same samples.

Every metric here is a form of a ratio of sums: form(sum of numerators / sum of denominators) over the samples. Accuracy
counts right answers over samples, perplexity is the exponential of summed negative log-likelihood over tokens, the
output error is the root of squared distance over squared norm. So one bootstrap and one test do for all of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy

from reports.statistics import (
    FEW,
    STUDENT_975,
    Interval,
    accuracy_interval,
    by_cluster,
    flips,
    mcnemar,
    paired_p_value,
    percentiles,
    resampled_totals,
)

Form = Literal["mean", "exp_mean", "root_mean", "decibels"]

FORMS: dict[Form, Callable[[numpy.ndarray], numpy.ndarray]] = {
    "mean": lambda ratio: ratio,
    "exp_mean": numpy.exp,
    "root_mean": numpy.sqrt,
    "decibels": lambda ratio: -10 * numpy.log10(ratio),
}


@dataclass(frozen=True, eq=False)
class Contributions:
    """What each sample contributes to a metric.

    numerators    bool [n] where each sample is right or wrong, else float [n]
    denominators  float [n], or None where each counts one
    """

    numerators: numpy.ndarray
    denominators: numpy.ndarray | None = None
    form: Form = "mean"

    def __len__(self) -> int:
        return len(self.numerators)

    def first(self, n: int) -> "Contributions":
        denominators = None if self.denominators is None else self.denominators[:n]
        return Contributions(self.numerators[:n], denominators, self.form)

    @property
    def weights(self) -> numpy.ndarray:
        return numpy.ones(len(self)) if self.denominators is None else self.denominators.astype(float)

    @property
    def counts(self) -> bool:
        """Whether the metric is a share of samples that are right."""
        return self.numerators.dtype == numpy.bool_ and self.denominators is None and self.form == "mean"

    def value(self) -> float:
        with numpy.errstate(divide="ignore", invalid="ignore"):
            return float(FORMS[self.form](self.numerators.sum(dtype=float) / self.weights.sum()))


@dataclass(frozen=True)
class Change:
    """A metric before and after; the 95 % interval of after - before, None where nothing tells chance from effect."""

    before: float
    after: float
    interval: Interval | None
    p_value: float | None


def change(
    before: Contributions,
    after: Contributions,
    clusters: numpy.ndarray | None = None,
    seed: int = 0,
    tested: bool = True,
) -> Change:
    """Return how a metric changed, from contributions of the same samples, with its interval and two-sided p-value.

    The p-value is None where no test is asked for.

    Shares of right answers: :func:`reports.statistics.accuracy_interval`, and the exact McNemar test or, in clusters,
    the sign-flip test. Others: the percentile bootstrap over clusters; under ``FEW`` clusters Student's t on the
    linearized change (Cochran 1977, section 6.3); the sign-flip test on each cluster's part in the change.

    Raises:
        ValueError: the lengths differ, there is no sample, or a contribution is not finite.
    """
    if len(before) != len(after):
        raise ValueError(f"Paired evaluations must have equally many samples, not {len(before)} and {len(after)}.")
    if not len(before):
        raise ValueError("There is nothing to compare: no sample was measured.")
    if before.counts and after.counts:
        return _change_of_share(before, after, clusters, seed, tested)
    columns = [before.numerators, before.weights, after.numerators, after.weights]
    sums = numpy.stack([by_cluster(_finite(column), clusters)[0] for column in columns], axis=1)
    p_value = _p_value(sums) if tested else None
    first, last = before.value(), after.value()
    if numpy.array_equal(sums[:, :2], sums[:, 2:]):
        return Change(first, last, Interval(0.0, 0.0, "equal on every sample"), p_value)
    return Change(first, last, _interval(sums, before.form, last - first, seed), p_value)


def _change_of_share(
    before: Contributions, after: Contributions, clusters: numpy.ndarray | None, seed: int, tested: bool
) -> Change:
    right_before, right_after = before.numerators, after.numerators
    interval = accuracy_interval(right_before, right_after, clusters, seed)
    if not tested:
        p_value = None
    elif clusters is not None and len(numpy.unique(clusters)) < len(clusters):
        p_value = paired_p_value(right_after.astype(float) - right_before, clusters, seed)
    else:
        p_value = mcnemar(*flips(right_before, right_after))
    return Change(before.value(), after.value(), interval, p_value)


def _interval(sums: numpy.ndarray, form: Form, estimate: float, seed: int) -> Interval | None:
    if len(sums) == 1 or not math.isfinite(estimate):
        return None
    if len(sums) >= FEW:
        totals = resampled_totals(sums, seed)
        with numpy.errstate(divide="ignore", invalid="ignore"):
            before, after = (FORMS[form](totals[:, i] / totals[:, i + 1]) for i in (0, 2))
        changes = after - before
        return Interval(*percentiles(changes[numpy.isfinite(changes)]), "cluster bootstrap, 95 % percentile")
    with numpy.errstate(invalid="ignore"):
        parts = _linearized(sums, form)
    if not numpy.isfinite(parts).all():
        return None
    margin = STUDENT_975[len(sums) - 2] * math.sqrt(len(sums) * parts.var(ddof=1))
    return Interval(estimate - margin, estimate + margin, f"Student's t on {len(sums)} clusters")


def _p_value(sums: numpy.ndarray) -> float:
    """Without a change both ratios are equal, and a cluster's deviations, after less before, may have either sign."""
    numerators, denominators = sums[:, 0] + sums[:, 2], sums[:, 1] + sums[:, 3]
    ratio = numerators.sum() / denominators.sum()
    return paired_p_value((sums[:, 2] - ratio * sums[:, 3]) - (sums[:, 0] - ratio * sums[:, 1]))


def _linearized(sums: numpy.ndarray, form: Form) -> numpy.ndarray:
    """Each cluster's part in the change, to first order: float [clusters]."""
    parts = numpy.zeros(len(sums))
    for sign, (numerators, denominators) in ((-1, sums[:, :2].T), (1, sums[:, 2:].T)):
        ratio = numerators.sum() / denominators.sum()
        # The central difference of a smooth form; at a ratio of zero no form but the mean has a slope.
        step = 1e-6 * (ratio or 1.0)
        slope = (FORMS[form](ratio + step) - FORMS[form](ratio - step)) / (2 * step)
        parts += sign * slope * (numerators - ratio * denominators) / denominators.sum()
    return parts


def _finite(values: numpy.ndarray) -> numpy.ndarray:
    values = numpy.asarray(values, float)
    if not numpy.isfinite(values).all():
        worst = int(numpy.flatnonzero(~numpy.isfinite(values))[0])
        raise ValueError(f"Sample {worst} contributes {values[worst]}; the model's output is not finite.")
    return values
