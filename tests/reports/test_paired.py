import math

import numpy
import pytest
from scipy import stats

from reports.paired import Contributions, change
from reports.statistics import FEW, STUDENT_975, accuracy_interval, mcnemar


def mean_of(differences, clusters=None, seed=0):
    """The change of a mean from zeros."""
    differences = numpy.asarray(differences, float)
    return change(Contributions(numpy.zeros_like(differences)), Contributions(differences), clusters, seed)


def random_pair(n=200, form="mean", seed=0):
    random = numpy.random.default_rng(seed)
    weights = random.integers(5, 50, n).astype(float)
    before = weights * random.gamma(4, 0.5, n)
    after = before * random.normal(1.05, 0.1, n)
    return Contributions(before, weights, form), Contributions(after, weights, form)


@pytest.mark.parametrize(
    ("form", "oracle"),
    [
        ("mean", lambda ratio: ratio),
        ("exp_mean", math.exp),
        ("root_mean", math.sqrt),
        ("decibels", lambda ratio: -20 * math.log10(math.sqrt(ratio))),
    ],
)
def test_a_metric_is_a_form_of_a_ratio_of_sums(form, oracle):
    before, after = random_pair(form=form)
    found = change(before, after)
    ratios = [math.fsum(part.numerators) / math.fsum(part.denominators) for part in (before, after)]
    assert found.before == pytest.approx(oracle(ratios[0]))
    assert found.after == pytest.approx(oracle(ratios[1]))
    assert found.interval.low < found.after - found.before < found.interval.high
    assert found.p_value < 1e-3


def test_right_and_wrong_answers_are_judged_exactly():
    before = numpy.array([True] * 90 + [False] * 10)
    after = numpy.array([False] * 6 + [True] * 84 + [True] * 2 + [False] * 8)
    found = change(Contributions(before), Contributions(after))
    assert (found.before, found.after) == (0.9, 0.86)
    assert found.p_value == mcnemar(6, 2)
    assert found.interval == accuracy_interval(before, after)


@pytest.mark.parametrize("clusters", [4, FEW - 1, FEW, 60])
def test_the_interval_of_a_mean_covers_the_truth(clusters):
    random, trials, covered = numpy.random.default_rng(3), 300, 0
    labels = numpy.repeat(numpy.arange(clusters), 3)
    for trial in range(trials):
        shared = numpy.repeat(random.normal(0.3, 1, clusters), 3)
        interval = mean_of(shared + random.normal(0, 0.2, 3 * clusters), labels, seed=trial).interval
        covered += interval.low <= 0.3 <= interval.high
    assert 0.90 <= covered / trials <= 0.99


@pytest.mark.parametrize(
    ("form", "clusters"), [("exp_mean", 12), ("exp_mean", 80), ("root_mean", 12), ("root_mean", 80)]
)
def test_the_interval_of_a_ratio_covers_the_truth(form, clusters):
    """Weights differ between clusters, and both evaluations share what makes a cluster hard."""
    random, trials, covered = numpy.random.default_rng(4), 300, 0
    truth = {"exp_mean": math.exp(1.1) - math.e, "root_mean": math.sqrt(1.1) - 1}[form]
    for trial in range(trials):
        weights = random.uniform(50, 150, clusters)
        hardness = random.gamma(20, 1 / 20, clusters)
        before = Contributions(weights * hardness, weights, form)
        after = Contributions(weights * hardness * random.normal(1.1, 0.05, clusters), weights, form)
        interval = change(before, after, seed=trial).interval
        covered += interval.low <= truth <= interval.high
    assert 0.88 <= covered / trials <= 0.99


def test_the_interval_of_few_is_students_t_as_scipy_has_it():
    differences = numpy.array([0.1, 0.4, -0.2, 0.3, 0.5])
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert mean_of(differences).interval[:2] == pytest.approx((expected.low, expected.high))


def test_students_quantiles_are_scipys():
    assert len(STUDENT_975) == FEW - 2
    assert pytest.approx(stats.t.ppf(0.975, range(1, FEW - 1)), abs=1e-6) == STUDENT_975


def test_the_interval_of_many_is_near_scipys_bootstrap():
    differences = numpy.random.default_rng(5).gamma(1, 1, 80)
    expected = stats.bootstrap((differences,), numpy.mean, method="percentile", rng=1).confidence_interval
    interval = mean_of(differences).interval
    assert interval[:2] == pytest.approx((expected.low, expected.high), abs=0.03)


def test_no_change_is_rarely_called_one():
    random, alarms = numpy.random.default_rng(9), 0
    for _ in range(300):
        weights = random.uniform(5, 50, 60)
        shared = random.gamma(4, 0.5, 60)
        pair = [Contributions(weights * shared * random.normal(1, 0.1, 60), weights, "exp_mean") for _ in range(2)]
        alarms += change(*pair).p_value < 0.05
    assert alarms / 300 < 0.09


def test_intervals_are_seeded():
    pair = random_pair()
    assert change(*pair).interval == change(*pair).interval
    assert change(*pair).interval != change(*pair, seed=1).interval


def test_ugly_contributions():
    assert mean_of([0.3]).interval is None
    assert mean_of([0.3, 0.4], numpy.array([1, 1])).interval is None
    assert mean_of(numpy.zeros(30)).interval[:2] == (0, 0)
    assert mean_of(numpy.zeros(30)).p_value == 1
    with pytest.raises(ValueError, match="Sample 1 contributes nan"):
        mean_of([0.0, math.nan])
    with pytest.raises(ValueError, match="nothing to compare"):
        mean_of([])
    with pytest.raises(ValueError, match="one cluster"):
        mean_of(numpy.zeros(3), numpy.zeros(2))
    with pytest.raises(ValueError, match="equally many"):
        change(Contributions(numpy.zeros(3)), Contributions(numpy.zeros(2)))


@pytest.mark.parametrize("n", [5, 40])
def test_an_error_that_was_nothing_has_no_ratio_but_is_judged(n):
    norm = numpy.ones(n)
    before, after = (Contributions(values, norm, "decibels") for values in (numpy.zeros(n), norm))
    found = change(before, after)
    assert found.before == math.inf
    assert found.interval is None
    assert found.p_value < 0.1
    assert change(before, before).interval[:2] == (0, 0)
