"""Judging a run against a baseline: which losses are shown, which are excluded, and which nobody can tell yet."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from reports.limits import Limit
from reports.runs import Run

Verdict = Literal["pass", "regressed", "inconclusive", "not judged"]


@dataclass(frozen=True)
class Finding:
    """What became of one case under one limit; losses are positive where the run is worse, in the limit's unit.

    case      name as rows call it
    base      the metric in the baseline, None where it is not known
    head      the metric in this run
    loss      how much worse this run is
    interval  95 % interval of the loss, None where the metric has no sampling error
    p_value   that there is no loss, before correction for the number of cases
    samples   how many samples, or pairs of rounds, the two runs share
    needed    how many would decide, where it is inconclusive
    reason    why it is not judged, or what a reader must know besides
    """

    case: str
    limit: Limit
    verdict: Verdict
    base: float | None = None
    head: float | None = None
    loss: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    samples: int | None = None
    needed: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Judgement:
    """All that is to be said of a run beside its baseline.

    findings   one for each case in both runs and limit that applies to it
    lost       case in the baseline that this run neither ran nor deselected -> why, as far as it is known
    failed     case that failed here and did not there -> how
    elsewhere  case whose times cannot be compared -> what differs in its environment
    added      cases that the baseline does not have
    problems   why nothing, or not what was asked, could be judged; any of them fails the gate
    notes      what a reader must know, such as a metric without a limit
    """

    base: Run
    head: Run
    findings: list[Finding]
    lost: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fails(self, inconclusive: bool = False) -> bool:
        """Whether the gate is shut; ``inconclusive`` shuts it for findings that could not be decided too."""
        shut = {"regressed", "inconclusive"} if inconclusive else {"regressed"}
        judged = any(finding.verdict in shut for finding in self.findings)
        return judged or bool(self.lost or self.failed or self.problems)

    @property
    def verdict(self) -> Verdict:
        """The worst of all."""
        if self.fails():
            return "regressed"
        return "inconclusive" if self.fails(inconclusive=True) else "pass"


def judge(base: Run, head: Run, limits: Sequence[Limit]) -> Judgement:
    """Compare every case that both runs hold under every limit that applies to it.

    A case has *regressed* where the observed loss exceeds the limit and a paired test rejects that there is none (with
    Holm's correction over the run's cases); it *passes* where the upper end of the loss's interval is within the limit;
    else it is *inconclusive*.
    """
    raise NotImplementedError
