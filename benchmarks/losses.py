"""How much candidates lose against float on the same backend: on growing parts of the samples, and on fresh ones.

The samples are divided by cluster: a search looks at the first third as often as it likes, and verifies on the rest,
which no look has used. Each part is answered once, in pieces that end where looks do, and every piece is kept in the
cache: a search that was stopped answers nothing twice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from benchmarks import judging
from benchmarks.answers import Answers, refuse_not_finite
from benchmarks.workshop import Artifact, Workshop
from fixtures.model import DataError, Model, Samples
from quant.search import Loss, Step, looks_until
from reports.limits import Limit, LimitError, Unit
from reports.paired import Contributions, change
from reports.requirements import parse_drop
from reports.statistics import tango

FIRST_LOOK = 32
AGREEMENT = "agreement"

_COUNTED = ("accuracy", "top5", AGREEMENT)
"""Metrics to which each sample adds one or nothing: how small a loss so many can show is known beforehand."""
_RACED = 1 / 3
_ENOUGH = 5
"""How many times the samples that show a loss within the limit if none flips."""
_MOST_BYTES = 512e6
"""Of samples' inputs held at once."""


class Parts(NamedTuple):
    """Samples that share no cluster: those of the race, and those of the verification."""

    race: Samples
    verification: Samples

    @property
    def sources(self) -> int:
        """How many origins the samples of the verification have: the independent ones among them."""
        return len(np.unique(self.verification.clusters))


@dataclass(frozen=True)
class Drop:
    """The most a model may lose, in words of its own.

    metric  the model's own, or ``agreement`` with float
    """

    metric: str
    limit: Limit

    @property
    def unit(self) -> str:
        """What follows a figure: ``points``, ``%`` or nothing."""
        return {"points": " points", "percent": " %", "absolute": ""}[self.limit.unit]

    def __str__(self) -> str:
        unit = " point" if self.unit == " points" and self.limit.amount == 1 else self.unit
        return f"{self.limit.amount:g}{unit} of {self.metric}"


def drop_of(model: Model, text: str | None) -> Drop:
    """Return what ``--max-drop`` allows a model, by default a point of a share and one per cent of anything else.

    Raises:
        LimitError: it cannot be understood, or says nothing of what this model is judged by.
    """
    if model.metric is None and model.scores is None:
        raise DataError(f"{model.name} has neither labels nor classes, so nothing tells what a candidate loses.")
    own = AGREEMENT if model.metric is None else model.metric.name
    share = model.metric is None or (model.metric.better == "higher" and model.metric.form == "mean")
    limit = parse_drop(text or ("1pp" if share else "1%"))
    if limit.unit == "absolute" and ":" not in text:
        raise LimitError(f"--max-drop {text} has no unit: write {text}pp for points, or {text}% of float's {own}.")
    metric = AGREEMENT if limit.metric == AGREEMENT else own
    if limit.metric not in ("accuracy", metric):
        raise LimitError(f"--max-drop {text}: {model.name} is judged by {own}, so write {own}:{_amount(limit)}.")
    if metric == AGREEMENT and model.scores is None:
        raise LimitError(f"--max-drop {text}: the outputs of {model.name} are no classes, so nothing agrees.")
    if limit.unit == "points" and metric == own and not share:
        raise LimitError(f"--max-drop {text}: {own} is no share, so it has no points: write {limit.amount:g}%.")
    return Drop(metric, limit)


def parts_of(model: Model, drop: Drop) -> Parts:
    """Return the samples of a search: as many as it may need, of those there are.

    Raises:
        DataError: they cannot show that a loss is within the limit, however small it is.
    """
    samples = model.evaluation(_wanted(model, drop))
    clusters, first = np.unique(samples.clusters, return_index=True)
    raced, count = set(), 0
    for cluster in clusters[np.argsort(first)]:
        if count >= _RACED * len(samples):
            break
        raced.add(cluster)
        count += int(np.sum(samples.clusters == cluster))
    chosen = np.isin(samples.clusters, list(raced))
    if chosen.all():
        raise DataError(f"All samples of {model.name} come from one source, so none are left to verify: add others.")
    parts = Parts(samples.where(chosen), samples.where(~chosen))
    _refuse_too_few(model, drop, parts.verification)
    return parts


class Losses:
    """Judges candidates of one model; ``answered`` counts the samples that candidates and float answered."""

    def __init__(self, workshop: Workshop, model: Model, drop: Drop, parts: Parts) -> None:
        self.drop, self.parts, self.answered = drop, parts, 0
        self.looks = looks_until(len(parts.race), FIRST_LOOK)
        self._workshop, self._model = workshop, model
        self._reference = workshop.reference(model.name)
        self._floats: dict[tuple[str, str], list[Answers]] = {}
        self._candidate, self._known = "", {}
        self._errors: dict[str, float] = {}
        self._verified: list[str] = []

    def seen(self, artifact: Artifact, samples: int) -> Loss:
        """Return the loss on the first of the samples that the race may use; their number is one of the looks."""
        looks = self.looks[: self.looks.index(samples) + 1]
        return self._loss(artifact, self.parts.race, looks)

    def verified(self, artifact: Artifact) -> Loss:
        """Return the loss on all samples that no look has used, wider for each artefact that was verified before."""
        if artifact.entry.digest not in self._verified:
            self._verified.append(artifact.entry.digest)
        loss = self._loss(artifact, self.parts.verification, [len(self.parts.verification)])
        return loss.after(self._verified.index(artifact.entry.digest))

    def error(self, artifact: Artifact) -> float | None:
        """Return the distance of the outputs from float's at the last look, over theirs; None before the first."""
        return self._errors.get(artifact.entry.digest)

    def _loss(self, artifact: Artifact, part: Samples, looks: Sequence[int]) -> Loss:
        baseline = self._workshop.baseline(artifact.case)
        before, after = (self._answers(one, part, looks) for one in (baseline, artifact))
        samples, own = part.first(looks[-1]), None
        if after.contributions is not None:
            own = before.contributions, after.contributions
        found = judging.outcomes(self._model, self._reference, before.outputs, after.outputs, samples, own)
        self._errors[artifact.entry.digest] = found.error.value()
        if self.drop.metric == AGREEMENT:
            pair = Contributions(np.ones_like(found.agreement.numerators)), found.agreement
        else:
            pair = found.before, found.after
        return self._measured(*pair, samples)

    def _measured(self, before: Contributions, after: Contributions, samples: Samples) -> Loss:
        found = change(before, after, samples.clusters[: len(after)])
        higher = self.drop.metric == AGREEMENT or self._model.metric.better == "higher"
        scale = _scale(self.drop.limit.unit, found.before) * (-1 if higher else 1)
        low, high = sorted(scale * end for end in (found.interval or (-math.inf, math.inf))[:2])
        lost = scale * (found.after - found.before) + 0.0  # without the sign of a zero
        return Loss(lost, low, high, len(after))

    def _answers(self, artifact: Artifact, part: Samples, looks: Sequence[int]) -> Answers:
        """Return what the artefact answers on the samples before the last look, piece by piece."""
        pieces = self._pieces(artifact, part)
        for start, stop in list(pairwise((0, *looks)))[len(pieces) :]:
            piece = self._workshop.answers(artifact, part.between(start, stop))
            refuse_not_finite(artifact.case, piece)
            self.answered += stop - start
            pieces.append(piece)
        return _joined(pieces[: len(looks)])

    def _pieces(self, artifact: Artifact, part: Samples) -> list[Answers]:
        """Return what is known of an artefact's answers: all of float's, but only of the candidate that is judged."""
        digest = artifact.entry.digest
        if artifact.case == artifact.case.baseline:
            return self._floats.setdefault((digest, part.digest), [])
        if self._candidate != digest:
            self._candidate, self._known = digest, {}
        return self._known.setdefault(part.digest, [])


def outcome_text(step: Step, unit: str) -> str:
    """``holds: loses 0.2 points, -0.3 to 0.7, on 1265 fresh samples``."""
    known = step.verified or step.loss
    if step.outcome == "failed":
        return step.reason
    if known is None:
        return f"{step.outcome}: {step.reason}"
    words = {
        "chosen": "holds",
        "not shown": "not shown to hold",
        "did not hold": "not shown to hold",  # once it was verified, which its fresh samples tell
        "not judged": f"not judged to the end ({step.reason})",
    }
    return f"{words.get(step.outcome, step.outcome)}: {loss_text(known, unit, fresh=step.verified is not None)}"


def loss_text(loss: Loss, unit: str, fresh: bool = False) -> str:
    """``loses 0.2 points, -0.3 to 0.7, on 1265 fresh samples``."""
    where = f"on {loss.samples} {'fresh ' if fresh else ''}samples"
    return f"loses {loss.value:.2g}{unit}, {loss.low:.2g} to {loss.high:.2g}, {where}"


def _joined(pieces: Sequence[Answers]) -> Answers:
    outputs = np.concatenate([piece.outputs for piece in pieces])
    return Answers(outputs, judging.joined_contributions([piece.contributions for piece in pieces]))


def _scale(unit: Unit, before: float) -> float:
    """Return the factor from a metric's own unit to the limit's.

    Raises:
        ValueError: there is no percentage of nothing, and no point of what is no share.
    """
    if unit == "points" and not 0 <= before <= 1:
        raise ValueError(f"float's own metric is {before:g}, which is no share: give --max-drop in % or in its unit.")
    if unit == "percent" and not before:
        raise ValueError("float's own metric is 0, of which there is no percentage: limit it in its own unit.")
    return {"points": 100.0, "percent": 100 / abs(before or 1), "absolute": 1.0}[unit]


def _share_lost(drop: Drop) -> float | None:
    """Return the limit as a share of samples, or None where it is of another kind."""
    return drop.limit.amount / 100 if drop.limit.unit == "points" else None


def _wanted(model: Model, drop: Drop) -> int:
    share, wanted = _share_lost(drop), 2 * model.evaluation_samples
    if share:
        wanted = max(wanted, math.ceil(_ENOUGH * 1.96**2 * (1 - share) / share))
    example = model.calibration().first(1)
    held = max(1, sum(values.nbytes for values in example.inputs))
    return max(2, min(wanted, int(_MOST_BYTES / held)))


def _refuse_too_few(model: Model, drop: Drop, verification: Samples) -> None:
    share = _share_lost(drop)
    if share is None or drop.metric not in _COUNTED:
        return
    best = tango(0, 0, len(verification)).high
    if best > share:
        needed = math.ceil(1.96**2 * (1 - share) / share)
        raise DataError(
            f"{len(verification)} samples of {model.name} are left to verify on, and even if none of them flips "
            f"{100 * best:.2g} points may be lost: allow --max-drop {math.ceil(1000 * best) / 10:g}pp, or add samples "
            f"until {needed} are left."
        )


def _amount(limit: Limit) -> str:
    return limit.text.rpartition(":")[2]
