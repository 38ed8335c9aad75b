import itertools
import math

import numpy
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize, stats

from reports.statistics import (
    BETWEEN_RUNS,
    BETWEEN_RUNS_OF_TIMES,
    FEWEST_PAIRS,
    accuracy_interval,
    flips,
    holm,
    mcnemar,
    paired_p_value,
    resampled_totals,
    speed_change,
    speed_ratio,
    tango,
    time_change,
)

RIGHT_TO_WRONG, WRONG_TO_RIGHT = (True, False), (False, True)


def outcomes(regressed, fixed, unchanged):
    pairs = [RIGHT_TO_WRONG] * regressed + [WRONG_TO_RIGHT] * fixed + [(True, True)] * unchanged
    baseline, variant = numpy.array(pairs, bool).reshape(-1, 2).T
    return baseline, variant


def enumerated_mcnemar(regressed, fixed):
    """Every way the discordant samples could have gone, counted."""
    n, observed = regressed + fixed, abs(regressed - fixed)
    ways = [abs(2 * sum(way) - n) >= observed for way in itertools.product((0, 1), repeat=n)]
    return sum(ways) / len(ways)


def likelihood_score(difference, regressed, fixed, n):
    """Tango's statistic with the restricted likelihood maximized numerically instead of in closed form."""

    def loss(p_regressed):
        p_fixed = p_regressed + difference
        same = 1 - p_regressed - p_fixed
        counts = ((regressed, p_regressed), (fixed, p_fixed), (n - regressed - fixed, same))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in counts if count)

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    p = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return (fixed - regressed - n * difference) / math.sqrt(n * (2 * p + difference - difference**2))


@pytest.mark.parametrize(("regressed", "fixed"), [(0, 0), (1, 0), (3, 0), (2, 2), (5, 1), (1, 9), (6, 6), (9, 3)])
def test_mcnemar_is_the_enumeration(regressed, fixed):
    assert mcnemar(regressed, fixed) == pytest.approx(enumerated_mcnemar(regressed, fixed), rel=1e-12)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_scipys_binomial_test(regressed, fixed):
    expected = stats.binomtest(regressed, regressed + fixed).pvalue if regressed + fixed else 1.0
    assert mcnemar(regressed, fixed) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(regressed, fixed) == mcnemar(fixed, regressed)


def test_mcnemar_of_many_flips_neither_overflows_nor_complains():
    assert mcnemar(30_000, 10) == 0.0
    assert mcnemar(5_000, 5_000) == 1.0
    with pytest.raises(ValueError, match="counts"):
        mcnemar(-1, 2)


def test_flips_count_each_direction():
    assert flips(*outcomes(regressed=3, fixed=1, unchanged=5)) == (3, 1)


@pytest.mark.parametrize(
    ("baseline", "variant", "message"),
    [
        ([], [], "nothing to compare"),
        ([True], [True, False], "equal lengths"),
        ([[True]], [[True]], "equal lengths"),
        ([1, 0], [1, 1], "right or wrong"),
        ([math.nan], [1.0], "right or wrong"),
    ],
)
def test_outcomes_that_are_none_are_refused(baseline, variant, message):
    baseline = numpy.array(baseline, bool if not baseline else None)
    variant = numpy.array(variant, bool if not variant else None)
    with pytest.raises(ValueError, match=message):
        accuracy_interval(baseline, variant)


def test_tango_gives_the_published_interval():
    # Fagerland, Lydersen and Laake, "Recommended tests and confidence intervals for paired binomial proportions",
    # Statistics in Medicine 33 (2014): airway hyper-responsiveness, 1 and 7 discordant of 21.
    interval = tango(regressed=7, fixed=1, n=21)
    assert interval.low == pytest.approx(-0.517, abs=5e-4)
    assert interval.high == pytest.approx(-0.026, abs=5e-4)


@pytest.mark.parametrize(("regressed", "fixed", "n"), [(7, 1, 21), (16, 6, 161), (3, 0, 50), (2, 2, 10), (1, 30, 400)])
def test_tango_bounds_are_where_the_likelihood_score_is_196(regressed, fixed, n):
    interval = tango(regressed, fixed, n)
    assert likelihood_score(interval.low, regressed, fixed, n) == pytest.approx(1.959964, abs=1e-3)
    assert likelihood_score(interval.high, regressed, fixed, n) == pytest.approx(-1.959964, abs=1e-3)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 400))
def test_tango_holds_its_estimate_mirrors_and_stays_a_difference_of_shares(regressed, fixed, unchanged):
    n = regressed + fixed + unchanged
    assume(n > 0)
    interval, mirrored = tango(regressed, fixed, n), tango(fixed, regressed, n)
    assert -1 <= interval.low <= (fixed - regressed) / n <= interval.high <= 1
    assert interval.low < interval.high
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low), abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 150, 10_000])
def test_without_a_flip_the_interval_is_the_rule_of_three_not_zero(n):
    same = numpy.ones(n, bool)
    interval = accuracy_interval(same, same)
    assert interval.method == "Tango score"
    limit = 3.8415 / (n + 3.8415)
    assert (interval.low, interval.high) == pytest.approx((-limit, limit), rel=1e-4)


def test_one_cluster_is_as_uncertain_as_one_sample():
    same = numpy.ones(100, bool)
    interval = accuracy_interval(same, same, numpy.zeros(100, int))
    assert interval.high == pytest.approx(accuracy_interval(same[:1], same[:1]).high)
    baseline, variant = outcomes(regressed=20, fixed=0, unchanged=80)
    interval = accuracy_interval(baseline, variant, numpy.zeros(100, int))
    assert interval.low < -0.8
    assert interval.high > 0.3


def test_without_a_flip_clusters_count_not_samples():
    same = numpy.ones(100, bool)
    interval = accuracy_interval(same, same, numpy.arange(100) // 5)
    assert interval.high == pytest.approx(3.8415 / (20 + 3.8415), rel=1e-4)
    assert interval.method == "Tango score, counts divided by a design effect of 5"


def test_clusters_of_one_are_no_clusters():
    baseline, variant = outcomes(regressed=30, fixed=10, unchanged=200)
    names = numpy.array([f"review {index}" for index in range(240)])
    assert accuracy_interval(baseline, variant, names) == accuracy_interval(baseline, variant)


def test_flips_that_come_together_widen_the_interval():
    baseline, variant = outcomes(regressed=100, fixed=0, unchanged=300)
    together = accuracy_interval(baseline, variant, numpy.arange(400) // 4)
    alone = accuracy_interval(baseline, variant)
    assert together.method.startswith("cluster bootstrap")
    assert together.high - together.low > 1.6 * (alone.high - alone.low)


def test_few_clusters_that_flip_do_not_rule_out_no_loss_of_their_own():
    baseline, variant = outcomes(regressed=4, fixed=0, unchanged=396)
    interval = accuracy_interval(baseline, variant, numpy.arange(400) // 4)
    assert interval.high > 0
    assert interval.low < -0.03
    assert "design effect of 4" in interval.method


@pytest.mark.parametrize(
    ("clusters", "size", "p_regressed", "p_fixed"),
    [(200, 1, 0.06, 0.03), (600, 1, 0.01, 0.01), (60, 5, 0.05, 0.02), (60, 5, 0.4, 0.2)],
)
def test_the_accuracy_interval_covers_the_truth(clusters, size, p_regressed, p_fixed):
    """Samples of a cluster flip together, the worst case, which a bootstrap of samples would miss by far."""
    random, trials, covered = numpy.random.default_rng(7), 300, 0
    labels = numpy.repeat(numpy.arange(clusters), size)
    for trial in range(trials):
        draw = numpy.repeat(random.random(clusters), size)
        baseline = (draw < p_regressed) | (draw > 0.8)
        variant = ((draw >= p_regressed) & (draw < p_regressed + p_fixed)) | (draw > 0.8)
        interval = accuracy_interval(baseline, variant, labels, seed=trial)
        covered += interval.low <= p_fixed - p_regressed <= interval.high
    assert 0.91 <= covered / trials <= 0.995


@pytest.mark.parametrize(("regressed", "fixed"), [(0, 0), (1, 0), (5, 1), (2, 2), (4, 8)])
def test_the_sign_flip_test_of_outcomes_is_mcnemar(regressed, fixed):
    baseline, variant = outcomes(regressed, fixed, unchanged=20)
    differences = variant.astype(float) - baseline
    assert paired_p_value(differences) == pytest.approx(mcnemar(regressed, fixed), rel=1e-9)


def test_the_sign_flip_test_of_many_is_near_mcnemar():
    baseline, variant = outcomes(regressed=30, fixed=15, unchanged=50)
    differences = variant.astype(float) - baseline
    assert paired_p_value(differences) == pytest.approx(mcnemar(30, 15), abs=0.01)


def test_the_sign_flip_test_is_scipys_permutation_test():
    differences = numpy.array([0.3, -0.1, 0.2, 0.5, 0.05, -0.02, 0.1])
    expected = stats.permutation_test(
        (differences, numpy.zeros(7)), lambda x, y: numpy.mean(x - y), permutation_type="samples"
    )
    assert paired_p_value(differences) == pytest.approx(expected.pvalue)


def test_a_drawn_p_value_counts_the_observed_signs_and_is_never_nothing():
    assert paired_p_value(numpy.ones(18)) == pytest.approx(1 / 10_001, rel=1e-9)


def test_the_sign_flip_test_counts_clusters():
    differences = -numpy.ones(40)
    assert paired_p_value(differences) < 0.001
    assert paired_p_value(differences, numpy.arange(40) // 10) == pytest.approx(2 / 2**4)
    assert paired_p_value(differences, numpy.zeros(40)) == 1.0


def test_the_sign_flip_test_holds_its_level():
    random = numpy.random.default_rng(11)
    rejected = [paired_p_value(random.normal(0, 1, 9)) <= 0.05 for _ in range(400)]
    assert 0.02 <= numpy.mean(rejected) <= 0.08


def test_the_speed_ratio_is_the_median_of_paired_ratios():
    baseline = numpy.array([2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0])
    speed = speed_ratio(baseline, baseline / [2, 2, 2, 2, 2, 1, 100])
    assert speed.ratio == pytest.approx(2)
    assert speed.interval.low <= 2 <= speed.interval.high


def test_a_load_that_both_saw_cancels():
    random = numpy.random.default_rng(0)
    load = numpy.exp(random.normal(0, 1, 40))
    speed = speed_ratio(3 * load, load * numpy.exp(random.normal(0, 0.01, 40)))
    assert speed.ratio == pytest.approx(3, rel=0.02)
    assert speed.interval.high - speed.interval.low < 0.1


def test_swapping_the_two_inverts_the_ratio():
    random = numpy.random.default_rng(2)
    baseline, variant = random.uniform(1, 2, 31), random.uniform(1, 2, 31)
    forward, backward = speed_ratio(baseline, variant), speed_ratio(variant, baseline)
    assert forward.ratio == pytest.approx(1 / backward.ratio)
    assert forward.interval.low == pytest.approx(1 / backward.interval.high, rel=0.02)


def test_the_speed_interval_covers_the_truth():
    random, trials, covered = numpy.random.default_rng(9), 300, 0
    for trial in range(trials):
        interval = speed_ratio(numpy.exp(random.normal(0.5, 0.1, 25)), numpy.ones(25), seed=trial).interval
        covered += interval.low <= math.exp(0.5) <= interval.high
    assert 0.90 <= covered / trials <= 0.99


def test_few_pairs_give_a_ratio_without_an_interval():
    ones = numpy.ones(FEWEST_PAIRS - 1)
    assert speed_ratio(2 * ones, ones) == (pytest.approx(2), None)
    assert speed_ratio(numpy.ones(FEWEST_PAIRS), numpy.ones(FEWEST_PAIRS)).interval is not None


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_times_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="positive number of seconds"):
        speed_ratio(numpy.array([1.0, bad]), numpy.array([1.0, 1.0]))
    with pytest.raises(ValueError, match="nothing to compare"):
        speed_ratio(numpy.array([]), numpy.array([]))


def test_holm_by_hand():
    # Smallest times 4, next times 3, and never below a smaller one's.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_alarm():
    random = numpy.random.default_rng(2)
    alarms = sum(min(holm(random.random(20))) < 0.05 for _ in range(2000)) / 2000
    assert 0.03 < alarms < 0.065


def test_resamples_are_shared_and_seeded():
    values = numpy.random.default_rng(0).random((40, 3))
    assert numpy.array_equal(resampled_totals(values), resampled_totals(values))
    assert not numpy.array_equal(resampled_totals(values), resampled_totals(values, seed=1))
    assert numpy.allclose(resampled_totals(numpy.ones((40, 1))), 40)


@pytest.mark.parametrize("n", [499, 500, 501, 3000, 4321])
def test_resampling_keeps_the_mean_and_its_variance_for_any_number_of_clusters(n):
    values = 1e6 + numpy.random.default_rng(n).gamma(0.5, 1, n)
    totals = resampled_totals(numpy.stack([values, numpy.ones(n)], axis=1))
    means, spread = totals[:, 0] / totals[:, 1], values.std() / math.sqrt(n)
    # The mean of so many resamples scatters by a 45th of their spread.
    assert means.mean() == pytest.approx(values.mean(), abs=0.15 * spread)
    assert means.std() == pytest.approx(spread, rel=0.15)


def test_the_sign_flip_test_holds_its_level_where_clusters_are_pooled():
    random = numpy.random.default_rng(12)
    rejected = [paired_p_value(random.normal(0, 1, 1200)) <= 0.05 for _ in range(400)]
    assert 0.02 <= numpy.mean(rejected) <= 0.08


@pytest.mark.parametrize("regressed", [30, 45, 60, 200, 2000])
def test_what_is_rarer_than_draws_can_tell_is_bounded_not_rounded_up(regressed):
    differences = -numpy.ones(regressed)
    exact = mcnemar(regressed, 0)
    found = paired_p_value(differences)
    assert exact <= found < 1e-5
    assert max(holm([found] * 1000)) < 0.05


def run_of(random, rounds, ratio, spread=0.02, between=BETWEEN_RUNS):
    """The times of one run: each places its memory elsewhere, and each round sees a load of its own."""
    load = random.lognormal(0, 0.2, rounds)
    shift = math.exp(random.normal(0, between))
    return ratio * shift * load * random.lognormal(0, spread, rounds), load


def test_the_loss_of_speed_is_that_of_the_ratio():
    load = numpy.linspace(1, 2, 40)
    change = speed_change(3 * load, load, 2.4 * load, load)
    assert change.loss == pytest.approx(0.2)
    assert change.interval.low < 0.2 < change.interval.high
    assert change.p_value < 1e-6
    assert speed_change(2.4 * load, load, 3 * load, load).loss == pytest.approx(-0.25)


def test_the_loss_of_time_is_a_share_of_the_bases():
    change = time_change(numpy.full(40, 0.010), numpy.full(40, 0.015))
    assert change.loss == pytest.approx(0.5)
    assert change.interval.low < 0.5 < change.interval.high
    assert time_change(numpy.full(40, 0.010), numpy.full(40, 0.005)).loss == pytest.approx(-0.5)


@pytest.mark.parametrize("rounds", [(20, 20), (12, 300)])
def test_runs_of_different_lengths_and_loads_are_compared(rounds):
    random = numpy.random.default_rng(0)
    base, head = (run_of(random, n, 2.0, between=0) for n in rounds)
    assert abs(speed_change(*base, *head).loss) < 0.03


@pytest.mark.parametrize(
    ("change", "between"),
    [
        (lambda baseline, variant: speed_change(baseline, variant, baseline, variant), BETWEEN_RUNS),
        (lambda baseline, variant: time_change(variant, variant), BETWEEN_RUNS_OF_TIMES),
    ],
    ids=["ratio", "time"],
)
def test_equal_rounds_still_leave_what_lies_between_runs(change, between):
    """Without any spread the interval is that of two draws of the between-run component, and no more."""
    result = change(numpy.full(50, 2.0), numpy.ones(50))
    assert (result.loss, result.p_value) == (0, 1)
    assert result.interval.high == pytest.approx(1.96 * math.sqrt(2) * between, rel=0.15)
    assert result.interval.low == pytest.approx(-1.96 * math.sqrt(2) * between, rel=0.15)


@pytest.mark.parametrize("rounds", [12, 100])
def test_unchanged_speed_is_called_changed_in_one_run_of_twenty_at_most(rounds):
    random = numpy.random.default_rng(1)
    results = [speed_change(*run_of(random, rounds, 2.0), *run_of(random, rounds, 2.0)) for _ in range(200)]
    false_alarms = sum(result.p_value < 0.05 for result in results)
    uncovered = sum(not result.interval.low <= 0 <= result.interval.high for result in results)
    assert false_alarms <= stats.binom.ppf(0.999, 200, 0.05)
    assert abs(uncovered - false_alarms) <= 1


def test_the_interval_covers_a_true_loss():
    random = numpy.random.default_rng(2)
    results = [speed_change(*run_of(random, 60, 2.0), *run_of(random, 60, 1.8)) for _ in range(200)]
    covered = sum(result.interval.low <= 0.1 <= result.interval.high for result in results)
    assert covered >= stats.binom.ppf(0.001, 200, 0.95)
    assert sum(result.p_value < 0.05 for result in results) >= 180


def test_p_values_reach_far_enough_for_many_cases():
    ones = numpy.ones(30)
    assert 0 < speed_change(2 * ones, ones, 1.6 * ones, ones).p_value < 1e-5


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_changes_refuse_impossible_times(bad):
    good = numpy.ones(10)
    broken = numpy.array([bad, *good[1:]])
    with pytest.raises(ValueError, match="positive number of seconds"):
        speed_change(good, good, broken, good)
    with pytest.raises(ValueError, match="positive number of seconds"):
        time_change(broken, good)


def test_changes_need_pairs_and_enough_of_them():
    few, enough = numpy.ones(FEWEST_PAIRS - 1), numpy.ones(FEWEST_PAIRS)
    assert speed_change(enough, enough, enough, enough).loss == 0
    with pytest.raises(ValueError, match=f"not {FEWEST_PAIRS} and {FEWEST_PAIRS - 1}"):
        speed_change(enough, enough, few, few)
    with pytest.raises(ValueError, match="equal lengths"):
        speed_change(enough, enough, enough, few)
