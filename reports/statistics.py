"""Paired statistics: did accuracy fall, by how much, and how much faster is it.

Every comparison is paired, sample with sample or round with round. Samples that share a source (one photograph, one
review) form a cluster; clusters, not samples, are independent, so clusters are resampled. No interval pretends to a
certainty that the data cannot give: where nothing differed, it still says what a larger set could have shown.
All random draws are seeded. Accuracies and their differences are shares; a loss of one point is -0.01.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy

RESAMPLES = 2_000
PERMUTATIONS = 10_000
# Below so many independent clusters that differ, percentile intervals are known to be too short.
FEW = 20
# The 97.5th percentile of Student's t for 1 to FEW - 2 degrees of freedom: importing scipy takes longer than a report.
STUDENT_975 = (
    12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157,
    2.228139, 2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922,
)  # fmt: skip
# The median of fewer pairs has no 95 % interval: 2 * 0.5**5 is above 0.05.
FEWEST_PAIRS = 6

# Standard deviation between runs of a ratio's logarithm, beyond what a run's own rounds show: each process places a
# model's memory elsewhere. Over 16 processes each it was up to 0.003 for digits and 0.008 to 0.010 for MiniLM, float
# against float in torch and ONNX Runtime. And that of a time's, which follows the clock frequency of the hour besides.
BETWEEN_RUNS = 0.01
BETWEEN_RUNS_OF_TIMES = 0.05

_Z95 = NormalDist().inv_cdf(0.975)
_CHUNK_ELEMENTS = 1 << 21
_EXACT_CLUSTERS = 12
_MOST_CLUSTERS = 500


class Interval(NamedTuple):
    """A 95 % interval and the method that gave it, worded for a report."""

    low: float
    high: float
    method: str


class Flips(NamedTuple):
    """Samples that turned from right to wrong, and from wrong to right."""

    regressed: int
    fixed: int


class SpeedRatio(NamedTuple):
    """How many times faster the variant is, with its interval (None under ``FEWEST_PAIRS`` pairs)."""

    ratio: float
    interval: Interval | None


class Change(NamedTuple):
    """What is lost from one run to another (negative: gained), its interval, and the two-sided p-value of no change."""

    loss: float
    interval: Interval
    p_value: float


def flips(baseline: numpy.ndarray, variant: numpy.ndarray) -> Flips:
    """Count the flips between two paired outcomes, bool [n] each, true where the answer was right."""
    baseline, variant = _paired(baseline, variant, bool)
    return Flips(regressed=int((baseline & ~variant).sum()), fixed=int((~baseline & variant).sum()))


def mcnemar(regressed: int, fixed: int) -> float:
    """Exact two-sided p-value that flips go both ways equally often (McNemar 1947, the exact binomial form).

    It takes samples as independent; where they come in clusters use ``paired_p_value``.
    """
    if regressed < 0 or fixed < 0:
        raise ValueError(f"Flips are counts, not {regressed} and {fixed}.")
    n = regressed + fixed
    # Whole numbers stay exact where floating-point tails of thousands of flips would underflow.
    term = tail = 1
    for k in range(min(regressed, fixed)):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**n)


def accuracy_interval(
    baseline: numpy.ndarray, variant: numpy.ndarray, clusters: numpy.ndarray | None = None, seed: int = 0
) -> Interval:
    """95 % interval of accuracy(variant) - accuracy(baseline), from outcomes bool [n] of the same samples.

    Without clusters: Tango's score interval (see ``tango``), which stays open when no sample flipped. With clusters,
    labels [n]: the percentile interval of the cluster bootstrap (Field and Welsh 2007). Where fewer than ``FEW``
    clusters differ that one is too short, and Tango's is taken on counts divided by the design effect (Rao and Scott
    1992); where none differs, each cluster counts as a single sample, the most cautious reading.

    Raises:
        ValueError: when there is no sample, or the lengths differ.
    """
    regressed, fixed = flips(baseline, variant)
    n = len(baseline)
    differences = numpy.asarray(variant, float) - numpy.asarray(baseline, float)
    sums, sizes = by_cluster(differences, clusters)
    if len(sums) == n:
        return tango(regressed, fixed, n)
    if numpy.count_nonzero(sums) >= FEW:
        low, high = _bootstrap_of_mean(sums, sizes, seed)
        return Interval(low, high, "cluster bootstrap, 95 % percentile")
    effect = _design_effect(differences, sums, sizes)
    score = tango(regressed / effect, fixed / effect, n / effect)
    return score._replace(method=f"{score.method}, counts divided by a design effect of {effect:.3g}")


@lru_cache(maxsize=4096)
def tango(regressed: float, fixed: float, n: float) -> Interval:
    """95 % score interval of the paired difference (fixed - regressed) / n.

    Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17 (1998). It holds its level in small samples, and without any flip it is
    +- z**2 / (n + z**2), the score form of the rule of three. Counts may be fractions, as effective counts are.
    """
    estimate = (fixed - regressed) / n

    def score(difference: float) -> float:
        quadratic = 2 * n
        linear = (2 * n - fixed + regressed) * difference - fixed - regressed
        constant = -regressed * difference * (1 - difference)
        root = math.sqrt(max(0.0, linear**2 - 4 * quadratic * constant))
        restricted = max(0.0, (root - linear) / (2 * quadratic))
        variance = n * (2 * restricted + difference * (1 - difference))
        distance = fixed - regressed - n * difference
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    low = _crossing(lambda difference: score(difference) <= _Z95, -1.0, estimate)
    high = _crossing(lambda difference: score(difference) < -_Z95, estimate, 1.0)
    return Interval(low, high, "Tango score")


def paired_p_value(differences: numpy.ndarray, clusters: numpy.ndarray | None = None, seed: int = 0) -> float:
    """Two-sided p-value that the mean of paired differences, float [n], is zero: Fisher's sign-flip test on clusters.

    Under no effect every cluster's sum is as likely with the other sign (Fisher 1935; Pitman 1937). All signs are
    enumerated up to a dozen clusters that differ, else drawn, counting the observed one (Phipson and Smyth 2010). What
    is rarer than draws can tell, as a correction for many cases wants it, gets Hoeffding's bound on such sums (1963),
    which is never below the share that enumerating would find. On right-or-wrong outcomes of independent samples it is
    the exact McNemar test.

    Raises:
        ValueError: when there is no sample, or a difference is not finite.
    """
    sums, _ = by_cluster(_finite(differences), clusters)
    sums = _pooled(sums, seed)
    different = sums[sums != 0]
    # Sums that are equal on paper differ by rounding: they count as at least as extreme.
    observed = abs(different.sum()) - 1e-6 * numpy.abs(different).sum()
    if len(different) <= _EXACT_CLUSTERS:
        patterns = numpy.arange(2 ** len(different))[:, None] >> numpy.arange(len(different)) & 1
        return float(numpy.mean(numpy.abs((2.0 * patterns - 1) @ different) >= observed))
    bound = 2 * math.exp(-(observed**2) / (2 * float(different @ different)))
    if bound < 1 / (PERMUTATIONS + 1):
        return bound
    extreme = int((numpy.abs(_signs(len(sums), seed) @ sums.astype(numpy.float32)) >= observed).sum())
    return (extreme + 1) / (PERMUTATIONS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted so that the chance of any false alarm among them stays at the level (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(order), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def speed_ratio(baseline: numpy.ndarray, variant: numpy.ndarray, seed: int = 0) -> SpeedRatio:
    """exp(median(log(baseline / variant))) of paired times in seconds, float [n], with its 95 % bootstrap interval.

    Above one the variant is faster. Rounds are paired so that a load both saw cancels; the median ignores the rounds
    that only one of them saw (percentile interval, Efron and Tibshirani 1993).

    Raises:
        ValueError: when there is no pair, the lengths differ, or a time is not a positive number.
    """
    logs = _log_ratios(baseline, variant)
    ratio = float(numpy.exp(numpy.median(logs)))
    if len(logs) < FEWEST_PAIRS:
        return SpeedRatio(ratio, None)
    low, high = _bootstrap(lambda picked: numpy.median(logs[picked], axis=1), len(logs), seed)
    return SpeedRatio(ratio, Interval(math.exp(low), math.exp(high), "paired bootstrap, 95 % percentile"))


def speed_change(
    base_baseline: numpy.ndarray,
    base_variant: numpy.ndarray,
    head_baseline: numpy.ndarray,
    head_variant: numpy.ndarray,
) -> Change:
    """How much of the base's speed ratio the head lost, from the paired times, float [n] and float [m], of both runs.

    The loss is 1 - ratio(head) / ratio(base), each as :func:`speed_ratio` has it.

    Raises:
        ValueError: as :func:`speed_ratio` does, and where a run has under ``FEWEST_PAIRS`` rounds.
    """
    base = _log_ratios(base_baseline, base_variant)
    head = _log_ratios(head_baseline, head_variant)
    return _change(base, head, BETWEEN_RUNS, lambda growth: -math.expm1(growth))


def time_change(base: numpy.ndarray, head: numpy.ndarray) -> Change:
    """How much longer a call takes, as a share of the base's time, from the times, float [n] and [m], of two runs.

    The loss is median(head) / median(base) - 1. It means something only where both ran in the same environment.

    Raises:
        ValueError: as :func:`speed_change` does.
    """
    return _change(_logs(base), _logs(head), BETWEEN_RUNS_OF_TIMES, math.expm1)


def _change(base: numpy.ndarray, head: numpy.ndarray, between_runs: float, loss: Callable[[float], float]) -> Change:
    """Compare the medians of logarithms, float [n] and float [m], of two runs; ``loss`` is that of a median's growth.

    To the variance of each run's median that between runs is added. The test is the normal one, because a bootstrap's
    p-value ends at one in ``RESAMPLES``, where a correction for many cases only begins.
    """
    if min(len(base), len(head)) < FEWEST_PAIRS:
        raise ValueError(f"A change of speed needs {FEWEST_PAIRS} rounds of each run, not {len(base)} and {len(head)}.")
    growth = float(numpy.median(head) - numpy.median(base))
    variances = [_variance_of_median(rounds) + between_runs**2 for rounds in (base, head)]
    error = math.sqrt(sum(variances))
    low, high = sorted(loss(growth + side * _Z95 * error) for side in (-1, 1))
    p_value = math.erfc(abs(growth) / error / math.sqrt(2))
    return Change(loss(growth), Interval(low, high, "both runs' rounds, widened for what lies between runs"), p_value)


def _variance_of_median(values: numpy.ndarray) -> float:
    """Variance of the median by the width of its distribution-free interval (McKean and Schrader 1984)."""
    n = len(values)
    rank = max(1, round((n + 1) / 2 - _Z95 * math.sqrt(n / 4)))
    ordered = numpy.sort(values)
    return float((ordered[n - rank] - ordered[rank - 1]) / (2 * _Z95)) ** 2


def _log_ratios(baseline: numpy.ndarray, variant: numpy.ndarray) -> numpy.ndarray:
    baseline, variant = _paired(baseline, variant, float)
    return _logs(baseline) - _logs(variant)


def _logs(times: numpy.ndarray) -> numpy.ndarray:
    times = numpy.asarray(times, float)
    if not (numpy.isfinite(times) & (times > 0)).all():
        raise ValueError("Every time must be a positive number of seconds; the clock is too coarse for this case.")
    return numpy.log(times)


def _paired(baseline: numpy.ndarray, variant: numpy.ndarray, dtype: type) -> tuple[numpy.ndarray, numpy.ndarray]:
    baseline, variant = numpy.asarray(baseline), numpy.asarray(variant)
    if baseline.ndim != 1 or baseline.shape != variant.shape:
        raise ValueError(f"Paired measurements must have equal lengths, not shapes {baseline.shape}, {variant.shape}.")
    if not len(baseline):
        raise ValueError("There is nothing to compare: no sample was measured.")
    if dtype is bool and not (baseline.dtype == variant.dtype == numpy.bool_):
        raise ValueError(f"Outcomes must be right or wrong (bool), not {baseline.dtype} and {variant.dtype}.")
    return baseline.astype(dtype), variant.astype(dtype)


def _finite(differences: numpy.ndarray) -> numpy.ndarray:
    differences = numpy.asarray(differences, float)
    if differences.ndim != 1 or not len(differences):
        raise ValueError(f"Paired differences must be one number for each sample, not shape {differences.shape}.")
    if not numpy.isfinite(differences).all():
        worst = int(numpy.flatnonzero(~numpy.isfinite(differences))[0])
        raise ValueError(f"The difference of sample {worst} is {differences[worst]}; the model's output is not finite.")
    return differences


def by_cluster(differences: numpy.ndarray, clusters: numpy.ndarray | None) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Sum of the differences, and number of samples, of each cluster: float [clusters] each."""
    if clusters is None:
        return differences, numpy.ones(len(differences))
    clusters = numpy.asarray(clusters)
    if clusters.shape != differences.shape:
        raise ValueError(f"Every sample needs one cluster: got {clusters.shape} for {differences.shape}.")
    _, index = numpy.unique(clusters, return_inverse=True)
    return numpy.bincount(index, weights=differences), numpy.bincount(index).astype(float)


def _bootstrap_of_mean(sums: numpy.ndarray, sizes: numpy.ndarray, seed: int) -> tuple[float, float]:
    totals = resampled_totals(numpy.stack([sums, sizes], axis=1), seed)
    return percentiles(totals[:, 0] / totals[:, 1])


def resampled_totals(values: numpy.ndarray, seed: int = 0) -> numpy.ndarray:
    """Column sums of ``values`` [n, columns] over ``RESAMPLES`` resamples of its rows: float [RESAMPLES, columns].

    Two calls with equally many rows draw the same resamples, so that what one run resampled another need not. More than
    ``_MOST_CLUSTERS`` rows are pooled first: the variance then comes from so many sums, and is known to 3 %, about as
    well as ``RESAMPLES`` tell percentiles.
    """
    values = _pooled(values, seed)
    return _resample_counts(len(values), seed) @ values


def _pooled(values: numpy.ndarray, seed: int) -> numpy.ndarray:
    """Rows summed at random into ``_MOST_CLUSTERS`` where there are more: as independent, and cheaper to draw again."""
    if len(values) <= _MOST_CLUSTERS:
        return values
    order = numpy.random.default_rng(seed).permutation(len(values))
    starts = numpy.arange(_MOST_CLUSTERS) * len(values) // _MOST_CLUSTERS
    return numpy.add.reduceat(values[order], starts, axis=0)


def percentiles(values: numpy.ndarray) -> tuple[float, float]:
    """Percentiles 2.5 and 97.5."""
    ordered = numpy.sort(values)
    last = len(ordered) - 1
    low, high = numpy.interp((0.025 * last, 0.975 * last), numpy.arange(last + 1), ordered)
    return float(low), float(high)


@lru_cache(maxsize=4)
def _signs(n: int, seed: int) -> numpy.ndarray:
    """Random signs: float32 [PERMUTATIONS, n]."""
    random = numpy.random.default_rng(seed)
    return 2 * random.integers(0, 2, size=(PERMUTATIONS, n), dtype=numpy.int8).astype(numpy.float32) - 1


@lru_cache(maxsize=4)
def _resample_counts(n: int, seed: int) -> numpy.ndarray:
    """How often each of ``n`` is drawn in resamples with replacement: float [RESAMPLES, n]."""
    picked = numpy.random.default_rng(seed).integers(0, n, size=(RESAMPLES, n)) + n * numpy.arange(RESAMPLES)[:, None]
    return numpy.bincount(picked.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n).astype(float)


def _bootstrap(statistic: Callable[[numpy.ndarray], numpy.ndarray], n: int, seed: int) -> tuple[float, float]:
    """Percentiles 2.5 and 97.5 of ``statistic(indices [rows, n]) -> [rows]`` over resamples with replacement."""
    random = numpy.random.default_rng(seed)
    values = [statistic(random.integers(0, n, size=(rows, n))) for rows in _chunks(RESAMPLES, n)]
    return percentiles(numpy.concatenate(values))


def _chunks(total: int, width: int) -> Iterator[int]:
    """Split ``total`` rows of ``width`` so that no block of draws outgrows a few megabytes."""
    rows = max(1, _CHUNK_ELEMENTS // width)
    for start in range(0, total, rows):
        yield min(rows, total - start)


def _design_effect(differences: numpy.ndarray, sums: numpy.ndarray, sizes: numpy.ndarray) -> float:
    """How many times larger clustering makes the variance of the mean; between 1 and n / clusters without a flip."""
    n, largest = len(differences), len(differences) / len(sums)
    independent = differences.var() / n
    if len(sums) == 1 or independent == 0:
        return largest
    return float(min(max(_variance_of_mean(sums, sizes) / independent, 1.0), n))


def _variance_of_mean(sums: numpy.ndarray, sizes: numpy.ndarray) -> float:
    """Variance of sum(sums) / sum(sizes) over clusters, by linearization (Cochran 1977, section 6.3)."""
    residuals = sums - sizes * (sums.sum() / sizes.sum())
    return float(len(sums) / (len(sums) - 1) * (residuals**2).sum() / sizes.sum() ** 2)


def _crossing(is_above: Callable[[float], bool], low: float, high: float) -> float:
    """Bisect for the point from which ``is_above`` holds."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if is_above(middle) else (middle, high)
    return high
