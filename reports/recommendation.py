"""Which of the measured cases to ship under given requirements, and what every alternative would lose or gain.

A case qualifies only where the far end of its interval is within the drop. A size is that of the saved artefact. A time
is one that the runtime itself took on quantized kernels: a simulated, evaluated or refused one meets no limit. Of those
that qualify the fastest is chosen, if any is shown to be faster than float; else the smallest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

from reports.chips import machine
from reports.figures import figure, figure_text
from reports.findings import Finding, Pair, decided, finding_against_float, finding_of
from reports.limits import Limit
from reports.measures import is_share
from reports.record import Record, record_name
from reports.requirements import Requirements
from reports.runs import Run
from reports.tables import order


class Obstacle(NamedTuple):
    """Why a case does not qualify: in a word or two, and in full."""

    word: str
    reason: str


@dataclass(frozen=True, eq=False)
class Candidate:
    """A case, what it lost against float (None where no drop speaks of it), and why it does not qualify, if so."""

    record: Record
    drop: Finding | None
    obstacles: tuple[Obstacle, ...]

    @property
    def name(self) -> str:
        return record_name(self.record)

    @property
    def qualifies(self) -> bool:
        return not self.obstacles

    @property
    def seconds(self) -> float:
        """Median time where the runtime itself ran quantized, else infinity."""
        p50 = self.record["speed"].get("p50")
        return p50 if self.record["evidence"] == "measured" and p50 is not None else math.inf

    @property
    def size(self) -> float:
        """Bytes of the saved artefact, infinity where they are not known."""
        size = self.record["size"].get("bytes")
        return math.inf if size is None else size

    @property
    def is_faster(self) -> bool:
        """Whether the whole interval of the speed lies above that of float."""
        speed = self.record["speed"]
        bounds = speed.get("ci95")
        return math.isfinite(self.seconds) and speed.get("ratio") is not None and bool(bounds) and bounds[0] > 1


@dataclass(frozen=True, eq=False)
class Alternative:
    """A case beside the recommended one: what it would lose (or gain, where negative) of the figures both have."""

    candidate: Candidate
    losses: dict[str, Finding]


@dataclass(frozen=True, eq=False)
class Recommendation:
    """The answer for one model on one backend of one machine; ``best`` is None where no case qualifies."""

    run: Run
    candidates: Sequence[Candidate]
    requirements: Requirements

    @property
    def case(self) -> dict[str, str]:
        return self.candidates[0].record["case"]

    @property
    def family(self) -> str:
        return self.candidates[0].record["model"].get("family") or "unknown family"

    @property
    def machine(self) -> str:
        return machine(self.run, self.candidates[0].record)

    @cached_property
    def best(self) -> Candidate | None:
        return best(self.candidates)

    @cached_property
    def alternatives(self) -> list[Alternative]:
        """The other cases, those that qualify first."""
        others = sorted((one for one in self.candidates if one is not self.best), key=lambda one: not one.qualifies)
        return [Alternative(one, self._losses(one)) for one in others]

    def _losses(self, other: Candidate) -> dict[str, Finding]:
        if self.best is None:
            return {}
        pair = Pair(self.run, self.run, self.best.record, other.record)
        metric = "accuracy" if other.record["accuracy"].get("value") is not None else "agreement"
        share = metric == "agreement" or is_share(other.record)
        limits = {
            metric: Limit(metric, math.inf, "points" if share else "percent", "*", metric),
            **{name: Limit(name, math.inf, "percent", "*", name) for name in ("size", "speed")},
        }
        if math.isinf(other.seconds) or math.isinf(self.best.seconds):
            del limits["speed"]
        found = {name: finding_of(pair, limit, tested=False) for name, limit in limits.items()}
        return {name: finding for name, finding in found.items() if finding and finding.loss is not None}


def recommend(run: Run, requirements: Requirements) -> list[Recommendation]:
    """Answer for every model, backend and machine of a run, in this order."""

    def group(record: Record) -> tuple[str, str, str]:
        return record["case"]["model"], record["case"]["backend"], machine(run, record)

    cases = sorted(quantized_cases(run.records), key=lambda record: (group(record), order(record)))
    return [
        Recommendation(run, assess(list(members), requirements), requirements)
        for _, members in groupby(cases, key=group)
    ]


def quantized_cases(records: Sequence[Record]) -> list[Record]:
    """The cases that can be shipped instead of float."""
    return [record for record in records if record["kind"] == "inference" and record["case"]["bits"] != "fp32"]


def assess(records: Sequence[Record], requirements: Requirements) -> list[Candidate]:
    """Say of each case whether it qualifies, with Holm's correction over all of them."""
    limits = [requirements.drop_of(record) for record in records]
    known = [index for index, limit in enumerate(limits) if limit]
    findings = decided([finding_against_float(records[index], limits[index]) for index in known])
    drops = dict(zip(known, findings, strict=True))
    return [
        Candidate(record, drops.get(index), tuple(_obstacles(record, drops.get(index), requirements)))
        for index, record in enumerate(records)
    ]


def best(candidates: Sequence[Candidate]) -> Candidate | None:
    """The fastest of those that qualify and are shown to be faster than float; else the smallest that qualifies."""
    qualified = [one for one in candidates if one.qualifies]
    faster = [one for one in qualified if one.is_faster]
    if faster:
        return min(faster, key=lambda one: one.seconds)
    return min(qualified, key=lambda one: one.size, default=None)


def _obstacles(record: Record, drop: Finding | None, requirements: Requirements) -> list[Obstacle]:
    found = [_of_drop(record, drop), _of_size(record, requirements.max_size)]
    return [one for one in [*found, _of_latency(record, requirements.max_latency)] if one]


def _of_drop(record: Record, drop: Finding | None) -> Obstacle | None:
    if drop is None:
        return Obstacle("accuracy not judged", _unspoken(record))
    if drop.verdict == "pass":
        return None
    if drop.verdict == "inconclusive":
        if drop.needed is None:
            return Obstacle("interval unknown", record["accuracy"].get("reason") or "")
        return Obstacle("inconclusive", f"about {drop.needed:,} samples would decide")
    return Obstacle("too lossy" if drop.verdict == "regressed" else "accuracy not judged", drop.reason or "")


def _unspoken(record: Record) -> str:
    """Why no drop speaks of a case, and which would."""
    accuracy, agreement = record["accuracy"], record["fidelity"].get("agreement")
    if accuracy.get("delta") is not None:
        remedy = "1pp" if is_share(record) else "1%"
        return f"the drops given say nothing of {accuracy['metric']}: add --max-drop {accuracy['metric']}:{remedy}"
    why = accuracy.get("reason") or "its accuracy is not known"
    return why if agreement is None else f"{why}; --max-drop agreement:5pp would judge its agreement with float"


def _of_size(record: Record, most: float | None) -> Obstacle | None:
    size = record["size"].get("bytes")
    if most is None or (size is not None and size <= most):
        return None
    if size is None:
        return Obstacle("size not known", record["size"].get("reason") or "its size is not recorded")
    return Obstacle("too large", figure_text(record, "size", size))


def _of_latency(record: Record, most: float | None) -> Obstacle | None:
    if most is None:
        return None
    if record["evidence"] != "measured":
        return Obstacle("no measured time", f"its time is {record['evidence']}, which meets no limit")
    time = figure(record, "time")
    if time is None:
        word = "time refused" if record["speed"].get("refused") else "no measured time"
        return Obstacle(word, record["speed"].get("reason") or "it was not timed")
    if time.high <= most:
        return None
    shown = figure_text(record, "time", time.value)
    if time.low > most:
        return Obstacle("too slow", shown)
    until = f", up to {figure_text(record, 'time', time.high)}" if math.isfinite(time.high) else ""
    return Obstacle("time inconclusive", f"{shown}{until}")
