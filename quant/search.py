"""Searching for the best of many candidates without judging all of them on all samples.

Candidates come best first, by what they cost in time or size, which is measured quickly. What takes long is their
accuracy: each is judged on a growing number of samples until its loss is shown to be within the tolerance or beyond it.
The first one within it is judged once more on samples nobody has looked at, because the best of several chances looks
better than it is; the search ends when it holds there. Everything behind it costs more, and is never judged at all.

Sequential testing as in races: Maron and Moore, "The Racing Algorithm" (Artificial Intelligence Review 11, 1997).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

Candidate = TypeVar("Candidate")
Outcome = Literal["chosen", "loses too much", "not shown", "did not hold", "failed", "not judged"]


@dataclass(frozen=True)
class Loss:
    """How much a candidate loses, in the unit of the tolerance, with its interval and the samples it was seen on."""

    value: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True)
class Step(Generic[Candidate]):
    """What became of one candidate: the last loss in the race, that on fresh samples, and why it failed if it did."""

    candidate: Candidate
    outcome: Outcome
    loss: Loss | None = None
    verified: Loss | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Race(Generic[Candidate]):
    """A search's steps, in the order of the candidates."""

    steps: list[Step[Candidate]] = field(default_factory=list)

    @property
    def winner(self) -> Step[Candidate] | None:
        """The candidate that holds, if one does."""
        return next((step for step in self.steps if step.outcome == "chosen"), None)

    @property
    def closest(self) -> Step[Candidate] | None:
        """Where none holds, the one whose loss may still be the smallest."""
        judged = [step for step in self.steps if step.loss is not None]
        return min(judged, key=lambda step: (step.verified or step.loss).high, default=None)

    @property
    def samples(self) -> int:
        """How many times a candidate answered a sample."""
        return sum(loss.samples for step in self.steps for loss in (step.loss, step.verified) if loss)


def race(
    candidates: Sequence[Candidate],
    judge: Callable[[Candidate, int], Loss],
    verify: Callable[[Candidate], Loss],
    tolerated: float,
    looks: Sequence[int],
    within_budget: Callable[[], bool] = lambda: True,
) -> Race[Candidate]:
    """Return which of the ``candidates``, given best first, is the first whose loss is within what is ``tolerated``.

    Args:
        judge: the loss on the first so many samples of those the race may use.
        verify: the loss on samples the race never uses.
        looks: the numbers of samples after which to look, growing.
        within_budget: asked before each candidate; once it is false, the rest is not judged.

    A candidate that raises ValueError is left out, with what it said.
    """
    steps: list[Step[Candidate]] = []
    for candidate in candidates:
        if any(step.outcome == "chosen" for step in steps) or not within_budget():
            steps.append(Step(candidate, "not judged"))
            continue
        try:
            steps.append(_judged(candidate, judge, verify, tolerated, looks))
        except ValueError as error:
            steps.append(Step(candidate, "failed", reason=str(error)))
    return Race(steps)


def looks_until(samples: int, first: int = 64) -> list[int]:
    """Return numbers of samples that double from ``first`` up to ``samples``."""
    looks = []
    while first < samples:
        looks.append(first)
        first *= 2
    return [*looks, samples]


def _judged(
    candidate: Candidate,
    judge: Callable[[Candidate, int], Loss],
    verify: Callable[[Candidate], Loss],
    tolerated: float,
    looks: Sequence[int],
) -> Step[Candidate]:
    for samples in looks:
        loss = judge(candidate, samples)
        if loss.low > tolerated:
            return Step(candidate, "loses too much", loss)
        if loss.high <= tolerated:
            verified = verify(candidate)
            return Step(candidate, "chosen" if verified.high <= tolerated else "did not hold", loss, verified)
    return Step(candidate, "not shown", loss)
