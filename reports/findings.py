"""One case under one limit: how much was lost, what chance leaves open, and the verdict that follows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy

from reports.figures import figure
from reports.limits import Limit
from reports.machines import RUNTIME, differences, environment_of
from reports.measures import MEASURES, Measure, is_share
from reports.paired import Change, Contributions, change
from reports.record import Record, record_name, unpack_outcomes
from reports.runs import Run
from reports.scores import PAIRED, Scores, scores_of, shared_samples
from reports.statistics import Interval, holm, speed_change, time_change

Verdict = Literal["pass", "regressed", "inconclusive", "not judged"]

LEVEL = 0.05
"""The chance of a false alarm among all cases of a run."""


@dataclass(frozen=True)
class Finding:
    """What became of one case under one limit; losses are positive where the run is worse, in the limit's unit.

    case      name as rows call it
    base      the metric in the baseline, None where it is not known
    head      the metric in this run
    loss      how much worse this run is
    interval  95 % interval of the loss, None where the metric has no sampling error
    p_value   that there is no loss, before correction for the number of cases
    samples   how many samples the two runs share; None where it is not samples that decide
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


@dataclass(frozen=True, eq=False)
class Pair:
    """A case in the baseline and in this run."""

    base: Run
    head: Run
    before: Record
    after: Record

    @property
    def name(self) -> str:
        return record_name(self.after)

    @cached_property
    def elsewhere(self) -> str | None:
        """What differs between the environments of both, or in how the case ran there, if anything does."""
        return self._differing(None)

    @cached_property
    def other_runtime(self) -> str | None:
        """What differs of that which decides ratios of times, if anything does."""
        return self._differing(RUNTIME)

    @cached_property
    def scores(self) -> tuple[Scores, Scores, int]:
        """Both sides' scores, and how many samples they share."""
        before, after = scores_of(self.before), scores_of(self.after)
        return before, after, shared_samples(before, after)

    def _differing(self, names: tuple[str, ...] | None) -> str | None:
        environments = environment_of(self.head, self.after), environment_of(self.base, self.before)
        found = differences(*environments, names)
        for what, old, new in (
            ("evidence", self.before.get("evidence"), self.after.get("evidence")),
            ("samples per call", self.before["speed"].get("batch"), self.after["speed"].get("batch")),
        ):
            found += [f"{what}: {new}, was {old}"] if None not in (old, new) and old != new else []
        return "; ".join(found) or None


def finding_of(pair: Pair, limit: Limit, tested: bool = True) -> Finding | None:
    """Judge a case under a limit; None where the limit is not about such a case.

    Without a test, which takes longest, what is paired has its interval but no p-value, and no verdict can follow.
    """
    measure = _measure(limit, pair.before)
    if measure is None or not limit.applies_to(pair.name) or pair.after["kind"] not in measure.kinds:
        return None
    values = measure.value(pair.before), measure.value(pair.after)
    reason = _obstacle(pair, measure, *values)
    if reason:
        return Finding(pair.name, limit, "not judged", *values, reason=reason)
    if limit.metric in PAIRED or measure is MEASURES["accuracy"]:
        return _paired(pair, limit, measure, tested)
    if measure in (MEASURES["speed"], MEASURES["time"]):
        return _timed(pair, limit, measure)
    return _exact(pair, limit, measure, *values)


def finding_against_float(record: Record, limit: Limit) -> Finding:
    """Judge what a case lost of its own metric, or of agreement, against float on the same samples.

    The limit must be one that speaks of what the record knows; :func:`decided` gives the verdict.
    """
    name, accuracy = record_name(record), record["accuracy"]
    if limit.metric == "agreement":
        found, samples = _disagreement(record)
        # One sample that disagrees refutes that nothing was lost.
        found = replace(found, p_value=0.0 if found.after < found.before else 1.0)
        return _of_change(name, limit, found, True, samples)
    interval = accuracy.get("ci95") and Interval(*accuracy["ci95"], accuracy.get("interval_method") or "as recorded")
    p_value = accuracy.get("p_value")
    found = Change(accuracy["baseline"], accuracy["value"], interval or None, 1.0 if p_value is None else p_value)
    return _of_change(name, limit, found, accuracy["better"] == "higher", accuracy.get("n"))


def decided(findings: Sequence[Finding]) -> list[Finding]:
    """Give findings with an interval their verdicts, with Holm's correction over all that were tested."""
    tested = [index for index, finding in enumerate(findings) if finding.p_value is not None]
    corrected = dict(zip(tested, holm([findings[index].p_value for index in tested]), strict=True))
    return [_decide(finding, corrected.get(index)) for index, finding in enumerate(findings)]


def _measure(limit: Limit, record: Record) -> Measure | None:
    own = record["accuracy"].get("metric")
    if limit.metric in (own, "accuracy") and limit.unit == "points" and own and not is_share(record):
        return None
    return MEASURES["accuracy"] if limit.metric == own else MEASURES.get(limit.metric)


def _obstacle(pair: Pair, measure: Measure, before: float | None, after: float | None) -> str | None:
    """Why the two figures cannot be compared, if they cannot."""
    for value, record, where in ((after, pair.after, ""), (before, pair.before, "in the baseline: ")):
        if value is None:
            return f"{where}{measure.reason(record)}"
    if measure.comparable == "machine" and pair.elsewhere:
        return f"the baseline ran elsewhere ({pair.elsewhere})"
    if measure.comparable == "runtime" and pair.other_runtime:
        return f"the baseline ran elsewhere ({pair.other_runtime})"
    if measure is MEASURES["cost"] and (pair.before["cost"].get("cached") or pair.after["cost"].get("cached")):
        return "the quantized model came from the cache"
    return None


def _paired(pair: Pair, limit: Limit, measure: Measure, tested: bool) -> Finding:
    """Judge on the samples that both runs share."""
    name = limit.metric if limit.metric in PAIRED else "accuracy"
    try:
        before, after, n = pair.scores
    except ValueError as error:
        return Finding(pair.name, limit, "not judged", reason=str(error))
    if n == 0 or name not in before.contributions or name not in after.contributions:
        reason = "the two runs were judged on other data" if n == 0 else "a record does not keep its samples' scores"
        return Finding(pair.name, limit, "not judged", reason=reason)
    n = min(n, *(len(scores.contributions[name]) for scores in (before, after)))
    parts = [scores.contributions[name].first(n) for scores in (before, after)]
    if before.outputs and before.outputs == after.outputs:
        # The same answers bit for bit: not a sample of no change, but no change.
        found = Change(*(part.value() for part in parts), Interval(0.0, 0.0, "the same outputs"), p_value=1.0)
    else:
        found = change(*parts, None if after.clusters is None else after.clusters[:n], tested=tested)
    return _of_change(pair.name, limit, found, measure.higher_is_better(pair.before), n)


def _disagreement(record: Record) -> tuple[Change, int | None]:
    """The change from agreeing with float on every sample, by the samples where a record keeps them."""
    if not record["scores"].get("agreement"):
        value, *ends = figure(record, "agreement")
        return Change(1.0, value, Interval(*(end - 1 for end in ends), "Wilson"), 1.0), record["fidelity"].get("n")
    scores = scores_of(record)
    agreeing = scores.contributions["agreement"]
    always = Contributions(numpy.ones_like(agreeing.numerators))
    clusters = None if scores.clusters is None else scores.clusters[: len(agreeing)]
    return change(always, agreeing, clusters), len(agreeing)


def _of_change(case: str, limit: Limit, found: Change, higher: bool, n: int | None) -> Finding:
    scale = _scale(limit, found.before)
    if scale is None or not math.isfinite(found.after - found.before):
        return _without_unit(case, limit, found.before, found.after)
    sign = -scale if higher else scale
    bounds = found.interval and tuple(sorted(sign * bound for bound in found.interval[:2]))
    loss = sign * (found.after - found.before)
    return Finding(case, limit, "inconclusive", found.before, found.after, loss, bounds, found.p_value, n)


def _timed(pair: Pair, limit: Limit, measure: Measure) -> Finding:
    """Judge a ratio to float, or a time, by both runs' rounds and what lies between any two runs."""
    values = measure.value(pair.before), measure.value(pair.after)
    try:
        rounds = [_rounds(record) for record in (pair.before, pair.after)]
        if measure is MEASURES["speed"]:
            found = speed_change(*rounds[0], *rounds[1])
        else:
            found = time_change(rounds[0][1], rounds[1][1])
    except (ValueError, KeyError, TypeError) as error:
        return Finding(pair.name, limit, "not judged", *values, reason=f"the rounds cannot be compared: {error}")
    scale = 100.0 if limit.unit == "percent" else values[0]
    bounds = (scale * found.interval.low, scale * found.interval.high)
    return Finding(pair.name, limit, "inconclusive", *values, scale * found.loss, bounds, found.p_value)


def _rounds(record: Record) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return the seconds of float and of the case in each round that was kept."""
    samples = record["speed"]["samples"]
    return tuple(unpack_outcomes(samples[name], samples["rounds"]) for name in ("baseline", "variant"))


def _exact(pair: Pair, limit: Limit, measure: Measure, before: float, after: float) -> Finding:
    """Judge a figure that has no sampling error."""
    scale = _scale(limit, before)
    if scale is None and after != before:
        return _without_unit(pair.name, limit, before, after)
    loss = (scale or 1.0) * (before - after if measure.higher_is_better(pair.before) else after - before)
    return Finding(pair.name, limit, "regressed" if loss > limit.amount else "pass", before, after, loss)


def _scale(limit: Limit, before: float) -> float | None:
    """The factor from a metric's own unit to the limit's."""
    if limit.unit == "percent":
        return 100 / abs(before) if before and math.isfinite(before) else None
    return 100.0 if limit.unit == "points" else 1.0


def _without_unit(case: str, limit: Limit, before: float, after: float) -> Finding:
    if before == after:
        return Finding(case, limit, "pass", before, after, 0.0, reason="equal")
    reason = f"the baseline is {before:g}, of which there is no percentage: limit {limit.metric} in its own unit"
    return Finding(case, limit, "not judged", before, after, reason=reason)


def _decide(finding: Finding, p_value: float | None) -> Finding:
    if finding.verdict != "inconclusive" or finding.loss is None:
        return finding
    amount, bounds = finding.limit.amount, finding.interval
    if finding.loss > amount and p_value is not None and p_value < LEVEL:
        return replace(finding, verdict="regressed")
    if bounds and bounds[1] <= amount:
        return replace(finding, verdict="pass")
    return replace(finding, needed=_needed(finding))


def _needed(finding: Finding) -> int | None:
    """How many samples would decide if the loss stays what it is: margins shrink with the root of their number."""
    loss, amount = finding.loss, finding.limit.amount
    distance = loss if loss > amount else amount - loss
    if not finding.interval or not finding.samples or distance <= 0:
        return None
    margin = max(finding.interval[1] - loss, loss - finding.interval[0])
    return _two_digits(max(finding.samples + 1, finding.samples * (margin / distance) ** 2))


def _two_digits(count: float) -> int:
    """Round up to two significant digits: a forecast is no better than that."""
    unit = 10 ** max(0, math.floor(math.log10(count)) - 1)
    return math.ceil(count / unit) * unit
