"""Judging a run against a baseline: which losses are shown, which are excluded, and which nobody can tell yet."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from reports.findings import Finding, Pair, Verdict, decided, finding_of
from reports.limits import Limit
from reports.measures import MEASURES, is_share
from reports.record import record_name
from reports.runs import Run

__all__ = ["Finding", "Judgement", "Verdict", "judge", "pairs_of"]


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
    else it is *inconclusive*. Measures without a sampling error, such as sizes, regress or pass by their value.
    """
    pairs = pairs_of(base, head)
    findings = decided([found for pair in pairs for limit in limits if (found := finding_of(pair, limit))])
    known = {record_name(record) for record in base.records}
    return Judgement(
        base,
        head,
        findings,
        lost=_lost(base, head),
        failed=_failed(base, head),
        elsewhere={pair.name: pair.elsewhere for pair in pairs if pair.elsewhere},
        added=[name for record in head.records if (name := record_name(record)) not in known],
        problems=list(_problems(pairs, findings, limits)),
        notes=list(_notes(pairs, limits)) if limits else [],
    )


def pairs_of(base: Run, head: Run) -> list[Pair]:
    """Return the cases that both runs hold, in the order of the second."""
    before = {record_name(record): record for record in base.records}
    return [
        Pair(base, head, before[name], record) for record in head.records if (name := record_name(record)) in before
    ]


def _failed(base: Run, head: Run) -> dict[str, str]:
    return {name: how for name, how in _outcomes(head, "failed").items() if name not in _outcomes(base, "failed")}


def _lost(base: Run, head: Run) -> dict[str, str]:
    """Cases of the baseline that this run neither ran, nor deselected, nor saw fail."""
    skipped, failed = _outcomes(head, "skipped"), _outcomes(head, "failed")
    accounted = {*map(record_name, head.records), *(head.quant.get("deselected") or ()), *failed}
    planned = set(head.quant.get("planned") or ())
    lost = [name for record in base.records if (name := record_name(record)) not in accounted]
    otherwise = {True: "it was planned, and did not come to its end", False: "there is no such case any more"}
    return {name: skipped.get(name) or otherwise[name in planned] for name in lost}


def _outcomes(run: Run, key: str) -> dict[str, str]:
    return run.quant.get(key) or {}


def _problems(pairs: Sequence[Pair], findings: Sequence[Finding], limits: Sequence[Limit]) -> Iterator[str]:
    """Why the gate has not checked what it was asked to; without limits it was asked nothing."""
    if limits and not pairs:
        yield "the two runs have no case in common, so nothing was compared"
        return
    for limit in limits:
        own = [finding for finding in findings if finding.limit is limit]
        if not any(finding.verdict != "not judged" for finding in own):
            yield f"{limit.text} judged nothing: {_why_nothing(limit, own, pairs)}"
    for finding in findings:
        if (
            finding.verdict == "not judged"
            and finding.base is not None
            and finding.head is None
            and _is_of_data(finding)
        ):
            yield f"{finding.case}: {finding.limit.metric} was known in the baseline and is not here: {finding.reason}"


def _is_of_data(finding: Finding) -> bool:
    """Whether the figure comes from data, which every run has, rather than from a clock, which some do without."""
    measure = MEASURES.get(finding.limit.metric)
    return measure is None or measure.comparable == "anywhere"


def _why_nothing(limit: Limit, findings: Sequence[Finding], pairs: Sequence[Pair]) -> str:
    if findings:
        return Counter(finding.reason for finding in findings).most_common(1)[0][0]
    if not any(limit.applies_to(pair.name) for pair in pairs):
        return f"no case of both runs matches {limit.cases!r}"
    own = sorted({metric for pair in pairs if (metric := pair.after["accuracy"].get("metric"))})
    if limit.metric not in MEASURES and limit.metric not in own:
        return f"there is no metric {limit.metric}; there are {', '.join([*MEASURES, *own])}"
    return f"no case of both runs has such a {limit.metric}"


def _notes(pairs: Sequence[Pair], limits: Sequence[Limit]) -> Iterator[str]:
    yield from _not_gated(pairs, limits)
    changed = {
        pair.after["case"]["model"]
        for pair in pairs
        if pair.before["model"].get("weights_sha256") != pair.after["model"].get("weights_sha256")
    }
    for model in sorted(changed):
        yield f"{model}: the float model's weights are not the baseline's"


def _not_gated(pairs: Sequence[Pair], limits: Sequence[Limit]) -> Iterator[str]:
    """Models whose own metric no limit speaks of, although accuracy is limited in points."""
    if not any(limit.metric == "accuracy" for limit in limits):
        return
    told = set()
    for pair in pairs:
        model, metric = pair.after["case"]["model"], pair.after["accuracy"].get("metric")
        gated = any(_limits_metric(limit, metric, pair) for limit in limits)
        if metric and not gated and model not in told:
            told.add(model)
            yield f"{model}: {metric} is not gated; give it a limit of its own, such as {metric}:1%"


def _limits_metric(limit: Limit, metric: str | None, pair: Pair) -> bool:
    named = limit.metric in ("accuracy", metric) and limit.applies_to(pair.name)
    return named and (limit.unit != "points" or is_share(pair.after))
