"""Comparisons whose true difference is known, drawn from outcomes that were measured.

A population is one case judged twice on the same samples: by two quantized models that differ, if at all, by what is
studied. A comparison resamples its clusters with replacement, as another evaluation set of the same kind would be.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from benchmarks import judging
from benchmarks.judging import Outcomes
from benchmarks.matrix import Case
from fixtures.model import Model, Samples
from reports.paired import Contributions
from reports.record import SCHEMA, Record, plain
from reports.runs import Run
from reports.scores import pack_scores

_NOT_MEASURED = {"reason": "drawn from a population"}
_SECTIONS = ("artifact", "parity", "size", "coverage", "cost", "speed", "memory")
_MACHINE = {"quant": {"cpu": "the same", "isa": [], "threads": 1, "versions": {}}}


@dataclass(frozen=True, eq=False)
class Population:
    """One case judged twice on the same samples."""

    case: Case
    model: Model
    samples: Samples
    before: Outcomes
    after: Outcomes

    def true_loss(self, measure: str) -> float:
        """Return how much worse ``after`` is on the whole population: of accuracy and agreement in points, of the
        error in percent."""
        if measure == "error":
            return 100 * (self.after.error.value() / self.before.error.value() - 1)
        name = {"accuracy": "after", "agreement": "agreement"}[measure]
        return 100 * (getattr(self.before, name).value() - getattr(self.after, name).value())


def mislabelled(population: Population, share: float, seed: int = 0) -> Population:
    """Return the population as it looks once a share of the labels is wrong: right answers to them count as wrong."""
    random = np.random.default_rng(seed)
    spoiled = random.random(len(population.after)) < share
    after = {field.name: getattr(population.after, field.name) for field in fields(Outcomes)}
    for name in ("before", "after"):
        after[name] = Contributions(after[name].numerators & ~spoiled)
    return replace(population, after=Outcomes(**after))


def comparison(
    populations: Sequence[Population], random: np.random.Generator, exchanged: bool = False, loss: float = 0.0
) -> tuple[Run, Run]:
    """Draw a baseline and a run that hold one case for each population.

    Args:
        exchanged: give each cluster's outcomes to either side by the toss of a coin, so that there is no true
            difference, whatever differed between the two.
        loss: share of the run's right answers that are made wrong, on top.
    """
    pairs = [_drawn(population, random, exchanged, loss) for population in populations]
    return tuple(
        Run(Path(name), [pair[i] for pair in pairs], machine=_MACHINE) for i, name in enumerate(("base", "head"))
    )


def _drawn(population: Population, random: np.random.Generator, exchanged: bool, loss: float) -> tuple[Record, Record]:
    members = _members(population.samples.clusters[: len(population.before)])
    chosen = random.integers(0, len(members), len(members))
    indices = np.concatenate([members[i] for i in chosen])
    clusters = np.repeat(np.arange(len(chosen)), [len(members[i]) for i in chosen])
    sides = [_taken(side, indices) for side in (population.before, population.after)]
    if exchanged:
        heads = (random.random(len(chosen)) < 0.5)[clusters]
        sides = [_mixed(sides[0], sides[1], heads), _mixed(sides[1], sides[0], heads)]
    if loss:
        sides[1] = _spoiled(sides[1], random, loss)
    return tuple(_record(population, side, clusters, indices) for side in sides)


def _members(clusters: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(clusters, kind="stable")
    _, starts = np.unique(clusters[order], return_index=True)
    return np.split(order, starts[1:])


def _each(change, *outcomes: Outcomes) -> Outcomes:
    """Apply ``change`` to what each of the outcomes says of the same measure."""
    columns = [[getattr(one, field.name) for one in outcomes] for field in fields(Outcomes)]
    return Outcomes(*(None if parts[0] is None else change(*parts) for parts in columns))


def _taken(outcomes: Outcomes, indices: np.ndarray) -> Outcomes:
    def take(part: Contributions) -> Contributions:
        weights = None if part.denominators is None else part.denominators[indices]
        return Contributions(part.numerators[indices], weights, part.form)

    return _each(take, outcomes)


def _mixed(first: Outcomes, second: Outcomes, heads: np.ndarray) -> Outcomes:
    def mix(one: Contributions, other: Contributions) -> Contributions:
        weights = None if one.denominators is None else np.where(heads, one.denominators, other.denominators)
        return Contributions(np.where(heads, one.numerators, other.numerators), weights, one.form)

    return _each(mix, first, second)


def _spoiled(outcomes: Outcomes, random: np.random.Generator, loss: float) -> Outcomes:
    right = outcomes.after.numerators
    spoiled = Contributions(right & (random.random(len(right)) >= loss / max(right.mean(), 1e-9)))
    values = {field.name: getattr(outcomes, field.name) for field in fields(Outcomes)}
    return Outcomes(**{**values, "after": spoiled})


def _record(population: Population, outcomes: Outcomes, clusters: np.ndarray, indices: np.ndarray) -> Record:
    case, samples = population.case, population.samples
    drawn = Samples(tuple(values[indices] for values in samples.inputs), samples.labels[indices], clusters)
    parts = {"accuracy": outcomes.after, "baseline": outcomes.before, "error": outcomes.error}
    parts |= {"agreement": outcomes.agreement, "cosine": outcomes.cosine}
    scores = {"dataset_sha256": "0" * 64, "outputs_sha256": uuid.uuid4().hex, **pack_scores(parts, clusters)}
    return plain(
        {
            "schema": SCHEMA,
            "kind": "inference",
            "evidence": "measured",
            "case": {axis: getattr(case, axis) for axis in ("model", "method", "bits", "backend")},
            "model": {"family": population.model.family, "parameters": 1, "weights_sha256": "0" * 64},
            "scheme": {},
            **dict.fromkeys(_SECTIONS, _NOT_MEASURED),
            "accuracy": judging.accuracy(population.model, outcomes, drawn),
            "fidelity": judging.fidelity(outcomes),
            "scores": scores,
        }
    )
