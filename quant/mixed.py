"""Mixed precision: which of several formats each layer takes, so that all of them together lose least.

A layer's error in a format is what it alone costs the model, and errors of layers are taken to add up. The choice is
then a multiple-choice knapsack, solved exactly as an integer program, as in Hubara et al., "Accurate Post Training
Quantization With Small Calibration Sets", 2021 (arXiv:2006.10518). Greedy and uniform choices are its baselines.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from quant.search import Loss

_GAP = 1e-6
"""How far, as a share, a solution may be from the best one."""


@dataclass(frozen=True)
class Conversion:
    """What it costs that two neighbours, numbered as layers are, do not both compute in wide or both in narrow."""

    first: int
    second: int
    cost: float


@dataclass(frozen=True)
class Problem:
    """What each layer may become, and what that costs.

    error        float64 [layers, choices]; infinite where a layer has no such choice
    cost         float64 [layers, choices]: bits, bytes or seconds, whatever is to be bounded
    together     groups of layers that must choose alike, as query, key and value where a runtime fuses them
    wide         bool [choices]: which choices compute in 16 bits or more; only conversions ask
    conversions  costs between neighbours
    """

    error: np.ndarray
    cost: np.ndarray
    together: tuple[tuple[int, ...], ...] = ()
    wide: np.ndarray | None = None
    conversions: tuple[Conversion, ...] = ()

    def __post_init__(self) -> None:
        if self.error.ndim != 2 or self.error.shape != self.cost.shape:
            raise ValueError(f"errors {self.error.shape} and costs {self.cost.shape} must be tables of one shape.")
        if np.isnan(self.error).any() or not np.isfinite(self.cost).all():
            raise ValueError("a layer's error is NaN or its cost not finite: check the calibration data.")
        if self.conversions and self.wide is None:
            raise ValueError("conversions cost something between wide and narrow choices: say which are wide.")
        lacking = np.flatnonzero(~np.isfinite(self.units.error).any(1))
        if len(lacking):
            raise ValueError(f"no choice is open to layer {int(self._first_of(lacking[0]))}: allow one more format.")

    @cached_property
    def unit_of(self) -> np.ndarray:
        """int64 [layers]: the unit each layer belongs to; layers of one unit choose together."""
        leader = np.arange(len(self.error))
        for group in self.together:
            joined = np.isin(leader, leader[list(group)])
            leader[joined] = leader[joined].min()
        return np.unique(leader, return_inverse=True)[1]

    @cached_property
    def units(self) -> "Units":
        """The tables summed over the layers of each unit."""
        count = int(self.unit_of.max(initial=-1)) + 1
        error, cost = (np.zeros((count, self.error.shape[1])) for _ in range(2))
        np.add.at(error, self.unit_of, self.error)
        np.add.at(cost, self.unit_of, self.cost)
        return Units(error, cost)

    def total_error(self, chosen: np.ndarray) -> float:
        """Return the sum of the errors of ``chosen`` (int64 [layers])."""
        return float(self.error[np.arange(len(chosen)), chosen].sum())

    def total_cost(self, chosen: np.ndarray) -> float:
        """Return the cost of ``chosen`` (int64 [layers]), conversions included."""
        cost = float(self.cost[np.arange(len(chosen)), chosen].sum())
        crossed = (edge for edge in self.conversions if self.wide[chosen[edge.first]] != self.wide[chosen[edge.second]])
        return cost + sum(edge.cost for edge in crossed)

    def _first_of(self, unit: int) -> int:
        return int(np.flatnonzero(self.unit_of == unit)[0])


@dataclass(frozen=True)
class Units:
    """Error and cost float64 [units, choices]."""

    error: np.ndarray
    cost: np.ndarray


def least_error(problem: Problem, budget: float) -> np.ndarray:
    """Return the choice of each layer (int64 [layers]) with the least error whose cost is within ``budget``.

    Raises:
        ValueError: even the cheapest choices cost more.
        ModuleNotFoundError: scipy is not installed; the sentence says how to.
    """
    error = np.where(np.isfinite(problem.units.error), problem.units.error, 0.0)
    return _solve(problem, error, problem.units.cost, budget, "budget", converting="limit")


def least_cost(problem: Problem, tolerated: float) -> np.ndarray:
    """Return the choice of each layer (int64 [layers]) of least cost whose error is within ``tolerated``.

    Raises:
        ValueError: even the choices of least error lose more.
        ModuleNotFoundError: scipy is not installed; the sentence says how to.
    """
    error = np.where(np.isfinite(problem.units.error), problem.units.error, 0.0)
    return _solve(problem, problem.units.cost, error, tolerated, "tolerated error", converting="objective")


def greedy(problem: Problem, budget: float) -> np.ndarray:
    """Return choices (int64 [layers]) within ``budget``, from the cheapest on always the step that saves most per cost.

    Raises:
        ValueError: even the cheapest choices cost more.
    """
    units = problem.units
    rows = np.arange(len(units.error))
    open_to = np.isfinite(units.error)
    chosen = np.where(open_to, units.cost, np.inf).argmin(1)
    spent = problem.total_cost(chosen[problem.unit_of])
    if spent > budget:
        raise ValueError(f"a budget of {budget:.6g} is below the cheapest choice, {spent:.6g}: raise it.")
    while True:
        saved = units.error[rows, chosen][:, None] - units.error
        added = units.cost - units.cost[rows, chosen][:, None] + _conversions_added(problem, chosen)
        possible = open_to & (saved > 0) & (spent + added <= budget)
        if not possible.any():
            return chosen[problem.unit_of]
        per_cost = np.divide(saved, added, out=np.full_like(saved, np.inf), where=added > 0)
        gain = np.where(possible, per_cost, -np.inf)
        unit, choice = np.unravel_index(gain.argmax(), gain.shape)
        spent += added[unit, choice]
        chosen[unit] = choice


def uniform(problem: Problem, budget: float) -> np.ndarray:
    """Return the one choice for all layers (int64 [layers]) of least error within ``budget``.

    Raises:
        ValueError: none that is open to all layers costs so little.
    """
    alike = [np.full(len(problem.error), choice) for choice in range(problem.error.shape[1])]
    within = [chosen for chosen in alike if problem.total_cost(chosen) <= budget]
    best = min(within, key=problem.total_error, default=None)
    if best is None or not np.isfinite(problem.total_error(best)):
        raise ValueError(f"no single choice for all layers is within a budget of {budget:.6g}: raise it.")
    return best


@dataclass(frozen=True)
class Trial:
    """One budget: what the model of it seemed to lose, whether that looks good, and the loss on fresh samples if so."""

    budget: float
    loss: Loss
    promising: bool
    verified: Loss | None = None

    def holds(self, tolerated: float) -> bool:
        """Whether the loss is shown to be tolerated, by the upper bound of the paired loss on fresh samples."""
        return self.verified is not None and self.verified.high <= tolerated


def cheapest_within(
    budgets: Sequence[float],
    judge: Callable[[float], Loss],
    verify: Callable[[float], Loss],
    fresh: int,
    tolerated: float,
    verifications: int,
) -> list[Trial]:
    """Return the trials, by growing budget, that find the smallest of ``budgets`` whose loss is shown to be tolerated.

    By bisection on what looks good, with one look for each binary digit of the number of budgets; then the smallest
    of those is verified, and the next where that fails. The answer is the first that ``holds``, if any does.

    Args:
        budgets: growing.
        judge: the loss with a budget, on samples that may be looked at again and again.
        verify: the loss on ``fresh`` others. What looks good would be shown to hold there, if it lost as much.
        verifications: how many there may be.
    """
    trials: list[Trial] = []
    low, high = 0, len(budgets)
    while low < high:
        middle = (low + high) // 2
        loss = judge(budgets[middle])
        # An interval narrows with the root of the number of samples.
        expected = loss.value + (loss.high - loss.value) * (loss.samples / fresh) ** 0.5
        trials.append(Trial(budgets[middle], loss, expected <= tolerated))
        low, high = (low, middle) if trials[-1].promising else (middle + 1, high)
    trials.sort(key=lambda trial: trial.budget)
    promising = [index for index, trial in enumerate(trials) if trial.promising]
    for index in promising[:verifications]:
        trials[index] = replace(trials[index], verified=verify(trials[index].budget))
        if trials[index].holds(tolerated):
            break
    return trials


def _solve(
    problem: Problem, objective: np.ndarray, limited: np.ndarray, limit: float, noun: str, converting: str
) -> np.ndarray:
    """Return the choices [layers] of least ``objective`` [units, choices] with the sum of ``limited`` within a limit.

    The conversions' costs belong to what ``converting`` names. A variable for each, bounded from below by the
    difference of its neighbours, becomes 1 where they differ, as everything wants it small.
    """
    optimize, sparse = _scipy()
    units, choices = objective.shape
    crossing = np.array([edge.cost for edge in problem.conversions])
    count = units * choices + len(crossing)
    scale = max(abs(limit), np.finfo(float).tiny)
    row = np.concatenate([limited.ravel(), crossing if converting == "limit" else 0 * crossing]) / scale
    one_each = sparse.hstack(
        [sparse.kron(sparse.eye(units), np.ones(choices)), sparse.csr_array((units, len(crossing)))]
    )
    constraints = [
        optimize.LinearConstraint(one_each, 1, 1),
        optimize.LinearConstraint(row[None], -np.inf, limit / scale),
    ]
    if len(crossing):
        constraints.append(optimize.LinearConstraint(_differences(problem, count), 0, np.inf))
    goal = np.concatenate([objective.ravel(), crossing if converting == "objective" else 0 * crossing])
    upper = np.concatenate([np.isfinite(problem.units.error).ravel(), np.ones(len(crossing))]).astype(float)
    result = optimize.milp(
        goal / max(np.abs(goal).max(initial=0.0), np.finfo(float).tiny),
        integrality=np.arange(count) < units * choices,
        bounds=optimize.Bounds(0, upper),
        constraints=constraints,
        options={"mip_rel_gap": _GAP},
    )
    if result.x is None:
        raise ValueError(f"no choice of formats is within a {noun} of {limit:.6g}: raise it or allow more formats.")
    return result.x[: units * choices].reshape(units, choices).argmax(1)[problem.unit_of]


def _differences(problem: Problem, count: int) -> np.ndarray:
    """Return float64 [2 * conversions, variables]: a conversion less the difference of its neighbours, both ways."""
    choices, wide = problem.error.shape[1], problem.wide.astype(float)
    found = np.zeros((2 * len(problem.conversions), count))
    for position, edge in enumerate(problem.conversions):
        variable = count - len(problem.conversions) + position
        for row, sign in ((2 * position, 1), (2 * position + 1, -1)):
            for layer, side in ((edge.first, sign), (edge.second, -sign)):
                start = problem.unit_of[layer] * choices
                found[row, start : start + choices] -= side * wide
            found[row, variable] = 1
    return found


def _conversions_added(problem: Problem, chosen: np.ndarray) -> np.ndarray:
    """Return float64 [units, choices]: what conversions cost more if one unit alone changes its choice."""
    added = np.zeros_like(problem.units.cost)
    for edge in problem.conversions:
        first, second = problem.unit_of[edge.first], problem.unit_of[edge.second]
        if first == second:
            continue
        now = problem.wide[chosen[first]] != problem.wide[chosen[second]]
        for unit, other in ((first, second), (second, first)):
            added[unit] += edge.cost * ((problem.wide != problem.wide[chosen[other]]).astype(float) - now)
    return added


def _scipy() -> tuple:
    """Return scipy's optimize and sparse, of which only integer programs have need."""
    try:
        return importlib.import_module("scipy.optimize"), importlib.import_module("scipy.sparse")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("mixed precision solves an integer program with scipy: pip install scipy") from error
