"""Searching for the best of many candidates without judging all of them on all samples.

Candidates come best first, by what they cost in time or size, which is measured quickly. What takes long is their
accuracy: each is judged on a growing number of samples until its loss is shown to be within the tolerance or beyond it,
or the samples of the race end. What looks good then is judged once on samples nobody has looked at, because the best of
several chances looks better than it is; the search ends when its loss is shown to be within the tolerance there.
Everything behind it costs more, and is never judged at all.

Sequential testing as in races: Maron and Moore, "The Racing Algorithm" (Artificial Intelligence Review 11, 1997).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Generic, Literal, TypeVar

Candidate = TypeVar("Candidate")
Outcome = Literal["chosen", "loses too much", "not shown", "did not hold", "failed", "not judged"]

TIME_IS_OVER = "the time was over"
COMES_AFTER = "it comes after what was chosen"
_TAIL = 0.025


class OutOfTime(Exception):
    """The time of a search is over: raised by whoever judges, it ends the race with what is known."""


@dataclass(frozen=True)
class Loss:
    """How much a candidate loses, in the unit of the tolerance, with its interval and the samples it was seen on."""

    value: float
    low: float
    high: float
    samples: int

    def after(self, others: int) -> "Loss":
        """Return the loss with the interval it needs where ``others`` were verified on the same samples before.

        The first of several chances that turns up good is good by chance more often than one would be. The interval's
        tails, 2.5 % each, are halved with each chance that went before, so that of all of them together no more than
        5 % are wrong (Bonferroni, spent in the order of trials); its width grows as a normal distribution's would.
        """
        wider = NormalDist().inv_cdf(1 - _TAIL / 2**others) / NormalDist().inv_cdf(1 - _TAIL)
        low, high = (self.value + wider * (end - self.value) for end in (self.low, self.high))
        return replace(self, low=low, high=high)


@dataclass(frozen=True)
class Step(Generic[Candidate]):
    """What became of one candidate: the last loss in the race, that on fresh samples, and why it failed or was left."""

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

    @property
    def is_over(self) -> bool:
        """Whether time ended it."""
        return any(step.reason == TIME_IS_OVER for step in self.steps)


def race(
    candidates: Sequence[Candidate],
    judge: Callable[[Candidate, int], Loss],
    verify: Callable[[Candidate], Loss],
    tolerated: float,
    looks: Sequence[int],
    skip: Callable[[Candidate], str | None] = lambda candidate: None,
    told: Callable[[Step[Candidate]], None] = lambda step: None,
) -> Race[Candidate]:
    """Return which of the ``candidates``, given best first, is the first whose loss is within what is ``tolerated``.

    Args:
        judge: the loss on the first so many samples of those the race may use.
        verify: the loss on samples the race never uses.
        looks: the numbers of samples after which to look, growing.
        skip: asked before each candidate; returns why it need not be judged, or None.
        told: called with each step when it is known.

    A candidate that raises ValueError is left out, with what it said.
    """
    steps: list[Step[Candidate]] = []
    ended: str | None = None
    for candidate in candidates:
        reason = ended or skip(candidate)
        if reason:
            step = Step(candidate, "not judged", reason=reason)
        else:
            step = _judged(candidate, judge, verify, tolerated, looks)
        steps.append(step)
        told(step)
        if step.outcome == "chosen":
            ended = COMES_AFTER
        elif step.reason == TIME_IS_OVER:
            ended = TIME_IS_OVER
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
    loss = None
    try:
        for samples in looks:
            loss = judge(candidate, samples)
            if loss.low > tolerated:
                return Step(candidate, "loses too much", loss)
            if loss.high <= tolerated:
                break
        if loss is None or loss.value > tolerated:
            return Step(candidate, "not shown", loss)
        verified = verify(candidate)
    except OutOfTime:
        return Step(candidate, "not judged", loss, reason=TIME_IS_OVER)
    except ValueError as error:
        return Step(candidate, "failed", loss, reason=str(error))
    return Step(candidate, "chosen" if verified.high <= tolerated else "did not hold", loss, verified)
