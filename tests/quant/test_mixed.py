from itertools import product

import numpy as np
import pytest

from quant.mixed import (
    Conversion,
    Problem,
    cheapest_within,
    greedy,
    least_cost,
    least_error,
    uniform,
)
from quant.search import Loss

BITS = np.array([8.0, 6, 4, 3, 2])


def random_problem(seed, layers=6, **others):
    generator = np.random.default_rng(seed)
    sizes, hurt = generator.integers(1, 50, layers), generator.lognormal(0, 2, layers)
    noise = generator.uniform(0.5, 2, (layers, len(BITS)))
    return Problem(hurt[:, None] * 4.0**-BITS * noise, sizes[:, None] * BITS, **others)


def all_choices(problem):
    """Every choice that respects the layers that choose together."""
    layers, choices = problem.error.shape
    for chosen in product(range(choices), repeat=layers):
        if all(len({chosen[layer] for layer in group}) == 1 for group in problem.together):
            yield np.array(chosen)


def middle_budget(problem):
    return float((problem.cost.min() + problem.cost.mean(1)).sum() / 2)


KINDS = {
    "plain": {},
    "together": {"together": ((0, 1, 2), (2, 4))},
    "conversions": {
        "wide": BITS > 6,
        "conversions": (Conversion(0, 1, 40.0), Conversion(1, 2, 15.0), Conversion(4, 5, 90.0)),
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_program_finds_what_brute_force_finds(kind, seed):
    problem = random_problem(seed, **KINDS[kind])
    budget = float(problem.cost[:, 2].sum()) * 1.1
    within = [chosen for chosen in all_choices(problem) if problem.total_cost(chosen) <= budget]
    best = min(map(problem.total_error, within))
    chosen = least_error(problem, budget)
    assert problem.total_cost(chosen) <= budget * (1 + 1e-6)
    assert problem.total_error(chosen) == pytest.approx(best, rel=1e-5)
    tolerated = 1.5 * best
    cheapest = min(
        problem.total_cost(chosen) for chosen in all_choices(problem) if problem.total_error(chosen) <= tolerated
    )
    found = least_cost(problem, tolerated)
    assert problem.total_error(found) <= tolerated * (1 + 1e-5)
    assert problem.total_cost(found) == pytest.approx(cheapest, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_baselines_are_within_the_budget_and_no_better(kind):
    for seed in range(5):
        problem = random_problem(seed, 20, **KINDS[kind])
        budget = float(problem.cost[:, 2].sum()) * 1.05
        best = problem.total_error(least_error(problem, budget))
        for baseline in (greedy, uniform):
            chosen = baseline(problem, budget)
            assert problem.total_cost(chosen) <= budget
            assert problem.total_error(chosen) >= best * (1 - 1e-5)


def test_greedy_can_be_worse():
    # The large step saves more per cost than either small one, and leaves no room for both.
    problem = Problem(np.array([[13.0, 0], [9.0, 0], [9.0, 0]]), np.array([[0.0, 6], [0.0, 5], [0.0, 5]]))
    assert problem.total_error(least_error(problem, 10.1)) < problem.total_error(greedy(problem, 10.1))


def test_a_choice_that_is_not_open_is_not_taken():
    problem = random_problem(0)
    problem.error[3, 2:] = np.inf
    for choose in (least_error, greedy):
        assert choose(problem, middle_budget(problem) * 1.5)[3] < 2


def test_layers_that_choose_together_do():
    problem = random_problem(1, together=((0, 3), (3, 5)))
    for choose in (least_error, greedy):
        chosen = choose(problem, float(problem.cost[:, 2].sum()))
        assert chosen[0] == chosen[3] == chosen[5]


@pytest.mark.parametrize("choose", [least_error, greedy, uniform])
def test_a_budget_that_nothing_meets_is_refused(choose):
    with pytest.raises(ValueError, match=r"raise it"):
        choose(random_problem(0), 1.0)


def test_an_error_that_nothing_meets_is_refused():
    with pytest.raises(ValueError, match=r"tolerated error of 0"):
        least_cost(random_problem(0), 0.0)


@pytest.mark.parametrize(
    ("error", "cost", "words"),
    [
        (np.ones((2, 3)), np.ones((2, 2)), "one shape"),
        (np.full((2, 2), np.nan), np.ones((2, 2)), "NaN"),
        (np.ones((2, 2)), np.array([[1, np.inf], [1, 1]]), "not finite"),
        (np.array([[1, 1], [np.inf, np.inf]]), np.ones((2, 2)), "no choice is open to layer 1"),
    ],
)
def test_bad_tables_are_refused(error, cost, words):
    with pytest.raises(ValueError, match=words):
        Problem(error, cost)


BUDGETS = [float(budget) for budget in range(2, 10)]


def loop(needed, shown=0.0, verifications=2):
    """Trials where budgets from ``needed`` on look good, and hold from ``shown`` on; and what was asked."""
    asked = []

    def judge(budget):
        asked.append(budget)
        return Loss(0.5 * (budget < needed), -1, 0.5 * (budget < needed) + 0.3, 100)

    def verify(budget):
        asked.append(budget)
        return Loss(0, -1, 0.2 if budget < shown else 0.1, 400)

    return cheapest_within(BUDGETS, judge, verify, 400, 0.16, verifications), asked


@pytest.mark.parametrize("needed", [2.0, 5.0, 7.0, 9.5])
def test_the_loop_finds_the_cheapest_budget_that_holds(needed):
    trials, asked = loop(needed)
    assert len(asked) <= len(BUDGETS).bit_length() + 1
    assert next((trial.budget for trial in trials if trial.holds(0.16)), None) == (needed if needed < 9.5 else None)
    assert needed < 9.5 or 9.0 in asked


def test_what_does_not_hold_on_fresh_samples_gives_way_to_the_next_that_looked_good():
    trials, asked = loop(4.0, shown=5.5)
    assert [trial.budget for trial in trials if trial.promising] == [4.0, 6.0]
    assert [trial.holds(0.16) for trial in trials if trial.promising] == [False, True]
    assert asked[-2:] == [4.0, 6.0]
    assert [trial.verified is None for trial in loop(4.0, 5.5, 1)[0] if trial.promising] == [False, True]


def test_a_loss_is_promising_if_it_would_be_shown_on_the_fresh_samples():
    # Half the interval is .3 on 100 samples, so .15 on 400 and .3 on 100.
    for fresh, promising in ((400, True), (100, False)):
        seen, verified = Loss(0, -0.3, 0.3, 100), Loss(0, 0, 0, fresh)
        trials = cheapest_within([1.0], lambda b, s=seen: s, lambda b, v=verified: v, fresh, 0.2, 1)
        assert trials[0].promising is promising
