"""Checks of ``--benchmark-compare-fail``: a statistic of pytest-benchmark's against the same one of the baseline."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from reports.findings import Finding
from reports.judgement import Judgement
from reports.limits import Limit
from reports.machines import differences, environment_of
from reports.record import record_name
from reports.runs import Run


def with_checks(judgement: Judgement, checks: Sequence[Limit], session: object) -> Judgement:
    """Add what the checks find in pytest-benchmark's ``session``; each must find something to judge."""
    base = {name: bench for mapping in session.compared_mapping.values() for name, bench in mapping.items()}
    pairs = [(bench, base[bench.fullname]) for bench in session.benchmarks if bench.fullname in base]
    findings = [
        _checked(judgement, bench, before, check)
        for bench, before in pairs
        if bench and not bench.has_error
        for check in checks
    ]
    problems = [*judgement.problems, *_unjudged(findings, checks)]
    return replace(judgement, findings=[*judgement.findings, *findings], problems=problems)


def _unjudged(findings: Sequence[Finding], checks: Sequence[Limit]) -> Iterator[str]:
    for check in checks:
        own = [finding for finding in findings if finding.limit is check]
        if all(finding.verdict == "not judged" for finding in own):
            reasons = dict.fromkeys(finding.reason for finding in own)
            yield f"{check.text} judged nothing: {'; '.join(reasons) or 'no case has a time in both runs'}"


def _checked(judgement: Judgement, bench: object, base: dict, check: Limit) -> Finding:
    record, previous = (extra.get("quant") for extra in (bench.extra_info, base.get("extra_info") or {}))
    name = record_name(record) if record else bench.name
    before, after = base["stats"].get(check.metric), bench[check.metric]
    untimed = next((one for one in (record, previous) if one and one["speed"].get("p50") is None), None)
    if untimed:
        return Finding(name, check, "not judged", reason=untimed["speed"].get("reason") or "it was not timed")
    elsewhere = differences(_environment(judgement.head, record), _environment(judgement.base, previous))
    if elsewhere:
        reason = f"the baseline ran elsewhere ({'; '.join(elsewhere)})"
        return Finding(name, check, "not judged", before, after, reason=reason)
    if before is None or (before == 0 and check.unit == "percent"):
        return Finding(name, check, "not judged", before, after, reason=f"the baseline has no {check.metric}")
    loss = 100 * (after / before - 1) if check.unit == "percent" else after - before
    return Finding(name, check, "regressed" if loss > check.amount else "pass", before, after, loss)


def _environment(run: Run, record: dict | None) -> dict:
    return environment_of(run, record or {})
