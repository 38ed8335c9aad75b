import math
import random

import pytest

from quant.search import COMES_AFTER, TIME_IS_OVER, Loss, OutOfTime, looks_until, race


def judge_of(losses, spread=0.5):
    """Judges candidates of known loss: intervals shrink with the root of the samples and hold the truth."""

    def judge(candidate, samples):
        margin = spread / math.sqrt(samples)
        return Loss(losses[candidate], losses[candidate] - margin, losses[candidate] + margin, samples)

    return judge


def run(losses, tolerated=0.01, samples=4096, verified=None):
    judge = judge_of(losses)
    checks = judge_of(losses if verified is None else verified)
    return race(list(losses), judge, lambda candidate: checks(candidate, samples), tolerated, looks_until(samples))


def test_the_first_within_the_tolerance_wins_and_the_rest_is_not_judged():
    found = run({"bad": 0.2, "good": 0.0, "better": -0.01})
    assert [step.outcome for step in found.steps] == ["loses too much", "chosen", "not judged"]
    assert found.winner.candidate == "good"
    assert found.winner.verified.samples == 4096


def test_what_clearly_loses_is_dropped_on_few_samples():
    found = run({"awful": 0.9, "good": 0.0})
    assert found.steps[0].loss.samples == 64
    assert found.samples < 2 * 4096 + 64 + 1


def test_what_cannot_be_shown_does_not_win():
    found = run({"beyond": 0.0105, "close": 0.0095, "good": 0.0})
    assert [step.outcome for step in found.steps] == ["not shown", "did not hold", "chosen"]
    assert found.steps[0].verified is None


def test_luck_in_the_race_does_not_hold_on_fresh_samples():
    found = run({"lucky": 0.0, "good": 0.0}, verified={"lucky": 0.05, "good": 0.0})
    assert [step.outcome for step in found.steps] == ["did not hold", "chosen"]


def test_without_a_winner_the_closest_is_told():
    found = run({"bad": 0.2, "near": 0.012, "worse": 0.4})
    assert found.winner is None
    assert found.closest.candidate == "near"
    assert race([], None, None, 0, [1]).closest is None


def test_a_candidate_that_fails_is_left_out_with_its_reason():
    def judge(candidate, samples):
        if candidate == "broken":
            raise ValueError("no kernel for it")
        return Loss(0, -0.001, 0.001, samples)

    found = race(["broken", "good"], judge, lambda candidate: judge(candidate, 9), 0.01, [9])
    assert (found.steps[0].outcome, found.steps[0].reason) == ("failed", "no kernel for it")
    assert found.winner.candidate == "good"


def test_time_that_ends_while_judging_keeps_what_is_known():
    known = judge_of({"bad": 1.0, "slow": 0.001, "good": 0.0})

    def judge(candidate, samples):
        if (candidate, samples) == ("slow", 128):
            raise OutOfTime
        return known(candidate, samples)

    found = race(["bad", "slow", "good"], judge, lambda candidate: known(candidate, 9), 0.01, [64, 128])
    assert found.is_over
    assert [step.outcome for step in found.steps] == ["loses too much", "not judged", "not judged"]
    assert [step.reason for step in found.steps] == [None, TIME_IS_OVER, TIME_IS_OVER]
    assert found.steps[1].loss.samples == 64


def test_what_is_skipped_has_a_reason_and_costs_nothing():
    judge = judge_of({"a": 0.0, "b": 0.0, "c": 0.0})
    reasons = {"a": "no hope for it"}
    found = race("abc", judge, lambda candidate: judge(candidate, 4096), 0.01, [4096], reasons.get)
    assert [step.reason for step in found.steps] == ["no hope for it", None, COMES_AFTER]
    assert found.winner.candidate == "b"
    assert found.samples == 2 * 4096
    assert not found.is_over


@pytest.mark.parametrize(
    ("samples", "looks"), [(1, [1]), (64, [64]), (100, [64, 100]), (600, [64, 128, 256, 512, 600])]
)
def test_looks_double(samples, looks):
    assert looks_until(samples) == looks


def test_a_race_agrees_with_judging_everything_on_real_noise():
    """Bernoulli losses: the winner is within the tolerance nearly always, and costs a fraction of the samples."""
    source = random.Random(0)
    true = [0.3, 0.12, 0.06, 0.0, 0.0, 0.0, 0.0, 0.0]
    answers = {c: [source.random() < loss for _ in range(20_000)] for c, loss in enumerate(true)}
    spent, wrong = 0, 0
    for trial in range(40):
        start = 450 * trial

        def loss(candidate, first, count):
            seen = answers[candidate][first : first + count]
            mean = sum(seen) / count
            margin = 1.96 * math.sqrt(max(mean * (1 - mean), 1 / count) / count)
            return Loss(mean, mean - margin, mean + margin, count)

        found = race(
            list(range(len(true))),
            lambda candidate, count, start=start: loss(candidate, start, count),
            lambda candidate, start=start: loss(candidate, start + 250, 200),
            0.02,
            looks_until(250),
        )
        wrong += found.winner is None or true[found.winner.candidate] > 0.02
        spent += found.samples
    assert wrong == 0
    assert spent / (40 * len(true) * 450) < 0.4


def test_intervals_widen_with_the_chances_that_went_before():
    loss = Loss(0.2, -0.8, 1.2, 500)
    assert loss.after(0) == loss
    second, third = loss.after(1), loss.after(2)
    assert (second.low, second.high) == pytest.approx((0.2 - 1.1436, 0.2 + 1.1436), abs=1e-3)  # z of 1.25 %, 2.241
    assert third.low < second.low < second.high < third.high


@pytest.mark.parametrize("chances", [1, 5])
def test_of_many_that_just_lose_too_much_one_in_twenty_searches_chooses_any(chances):
    """Normal losses of which the truth is just beyond what is tolerated, each with its honest interval."""
    source = random.Random(1)
    chosen = 0
    for _ in range(4000):
        observed = [source.gauss(1.0, 1.0) for _ in range(chances)]
        losses = [Loss(value, value - 1.96, value + 1.96, 100).after(others) for others, value in enumerate(observed)]
        chosen += any(loss.high <= 1.0 for loss in losses)
    assert 0.015 < chosen / 4000 < 0.055
