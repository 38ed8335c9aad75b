import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom

from quant.certificate import certify, fewest_sources, highest_loss


def clopper_pearson(lost, n, confidence):
    """The upper bound of a share by bisection of the binomial tail: what the exact test inverts."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if binom.cdf(lost, n, middle) > 1 - confidence else (low, middle)
    return high


def brute_force(sureness, lost, limit, confidence):
    """The lowest threshold such that it and every higher one has an upper bound within the limit."""
    best = math.inf
    for threshold in sorted(set(sureness), reverse=True):
        if clopper_pearson(int((lost & (sureness >= threshold)).sum()), len(lost), confidence) > limit:
            break
        best = threshold
    return best


@pytest.mark.parametrize("seed", range(20))
def test_the_threshold_is_that_of_a_search_through_all_of_them(seed):
    random = np.random.default_rng(seed)
    sureness = random.integers(0, 12, 80).astype(float)  # with many ties
    lost = random.random(80) < 0.25 * np.exp(-sureness / 3)
    found = certify(sureness, lost, np.arange(80), limit=0.1, confidence=0.9)
    assert found.threshold == brute_force(sureness, lost, 0.1, 0.9)
    if np.isfinite(found.threshold):
        assert found.lost == pytest.approx((lost & (sureness >= found.threshold)).mean())
        assert found.escalated == pytest.approx((sureness < found.threshold).mean())


@pytest.mark.parametrize(("limit", "n"), list(product((0.01, 0.05, 0.2), (1, 20, 299, 1000))))
def test_the_exact_loss_is_where_the_binomial_tail_ends(limit, n):
    highest = highest_loss(n, limit, 0.95, exact=True)
    most = round(highest * n)
    assert most == -1 or binom.cdf(most, n, limit) <= 0.05
    assert binom.cdf(most + 1, n, limit) > 0.05


def test_it_takes_299_sources_to_show_a_point():
    assert fewest_sources(0.01) == 299
    for exact in (True, False):
        assert highest_loss(299, 0.01, 0.95, exact) >= 0
        assert highest_loss(298, 0.01, 0.95, exact) < 0


def test_bounded_losses_are_held_to_no_less_than_binary_ones():
    for n in (300, 700, 2000):
        assert highest_loss(n, 0.02, 0.95, exact=False) <= highest_loss(n, 0.02, 0.95, exact=True) + 1 / n


def population(random, count, tokens):
    """Sources whose answers are lost the less, the surer they are; a source's answers resemble each other."""
    sureness = random.exponential(1.0, (count, tokens))
    unlucky = random.choice([0.2, 2.0], (count, 1))
    return sureness, random.random((count, tokens)) < 0.15 * unlucky * np.exp(-2 * sureness)


@pytest.mark.parametrize("tokens", [1, 8])
def test_it_is_wrong_no_more_often_than_stated(tokens):
    """Monte Carlo against a population whose loss beyond each threshold is known: E = .15 * 1.1 * exp(-3 t) / 3."""
    limit, draws, wrong, found = 0.03, 400, 0, []
    for seed in range(draws):
        sureness, lost = population(np.random.default_rng(seed), 300, tokens)
        sources = np.repeat(np.arange(300), tokens)
        threshold = certify(sureness.reshape(-1), lost.reshape(-1), sources, limit, confidence=0.9).threshold
        found.append(threshold)
        wrong += 0.15 * 1.1 * math.exp(-3 * threshold) / 3 > limit
    # So many or more are seen once in a thousand times where the true rate is one in ten.
    assert wrong <= binom.ppf(0.999, draws, 0.1)
    # It is of use: it certifies, not far above the threshold that loses exactly the limit.
    best = math.log(0.15 * 1.1 / 3 / limit) / 3
    assert best < np.median(found) < best + 0.45


def test_a_test_of_every_threshold_by_itself_would_be_wrong_too_often():
    """The population of the last test is one on which a guarantee can fail: without one it does half the time."""
    wrong = 0
    for seed in range(100):
        sureness, lost = population(np.random.default_rng(seed), 300, 1)
        sureness, lost = sureness[:, 0], lost[:, 0]
        threshold = min(t for t in sureness if (lost & (sureness >= t)).mean() <= 0.03)
        wrong += 0.15 * 1.1 * math.exp(-3 * threshold) / 3 > 0.03
    assert wrong > 30


def test_one_sample_certifies_nothing():
    found = certify([3.0], [False], [0], 0.01)
    assert (found.threshold, found.escalated, found.sources) == (math.inf, 1.0, 1)


def test_equal_answers_stand_or_escalate_together():
    sure = certify(np.ones(400), np.zeros(400, bool), np.arange(400), 0.01)
    assert (sure.threshold, sure.escalated) == (1.0, 0.0)
    lost = np.arange(400) < 40
    assert certify(np.ones(400), lost, np.arange(400), 0.01).threshold == math.inf


def test_nan_is_never_sure():
    sureness = np.where(np.arange(400) % 4 == 0, np.nan, 2.0)
    found = certify(sureness, np.isnan(sureness), np.arange(400), 0.01)
    assert (found.threshold, found.lost, found.escalated) == (2.0, 0.0, 0.25)
    assert certify(np.full(400, np.nan), np.zeros(400, bool), np.arange(400), 0.01).threshold == math.inf


def test_sources_count_not_answers():
    sureness, lost = np.ones(1000), np.zeros(1000, bool)
    assert certify(sureness, lost, np.arange(1000) // 10, 0.01).threshold == math.inf
    assert certify(sureness, lost, np.arange(1000) // 2, 0.01).threshold == 1.0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([], [], [], 0.01), "no answers were given"),
        (([1.0, 2.0], [False], [0, 1], 0.01), "each answer has one"),
        (([1.0], [False], [0], 0.0), "the limit must lie between 0 and 1"),
        (([1.0], [False], [0], 0.01, 95), "the confidence must lie between 0 and 1"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        certify(*arguments)
