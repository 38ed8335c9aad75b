"""What a candidate costs to run: the bytes of its artefact and, where its runtime computes in its numbers, its time."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks import timing
from benchmarks.workshop import Artifact, Workshop
from fixtures.cache import source_digest
from fixtures.model import Samples
from quant import hardware
from quant.replaying import environment
from reports.record import plain

SECONDS = 1.0
"""How long the interleaved rounds of a candidate take, if a few of them fit."""
_SIMULATED = "no kernel here computes in these numbers, so its time says nothing"

Priced = TypeVar("Priced")


@dataclass(frozen=True)
class Price:
    """What running a candidate costs.

    size           bytes of the artefact
    seconds        median of a call; None where ``reason`` says why it is not known
    low, high      95 % interval of ``seconds``, as wide as that of the ratio to float
    speed          float's time on the same backend over the candidate's
    float_seconds  median of a call of float on the same backend
    refused        whether a time was taken, and meant nothing
    """

    size: int
    seconds: float | None = None
    low: float = 0.0
    high: float = math.inf
    speed: float | None = None
    float_seconds: float | None = None
    reason: str | None = None
    refused: bool = False

    def __str__(self) -> str:
        size = f"{self.size / 1e6:.3g} MB"
        if self.seconds is None:
            return f"{size}, not timed: {self.reason}"
        return f"{size}, {1e3 * self.seconds:.3g} ms, {self.speed:.2f}× the speed of float there"


def price(workshop: Workshop, artifact: Artifact, samples: Samples, busy: bool = False) -> Price:
    """Return what an artefact costs to run on the first of the samples, timed interleaved with float.

    A time once taken on this machine is kept, so that a search that was stopped goes on with the same order. Where the
    machine is too ``busy`` to take any, only such a time is told.
    """
    size, executable = artifact.executable.size_bytes, artifact.executable
    reason = executable.untimed_reason or (None if executable.evidence == "measured" else _SIMULATED)
    if reason:
        return Price(size, reason=reason.rstrip("."))
    section = _speed(workshop, artifact, samples, busy)
    if section["refused"]:
        return Price(size, reason=section["reason"].removeprefix("not timed: "), refused=True)
    seconds, ratio, (slow, fast) = section["p50"], section["ratio"], section["ci95"]
    low, high = seconds * ratio / fast, seconds * ratio / slow
    return Price(size, seconds, low, high, ratio, section["baseline_p50"])


def by_price(priced: Sequence[tuple[Priced, Price]]) -> list[tuple[Priced, Price]]:
    """Return the cheapest first.

    That is the fastest of what is shown to be faster than float on every backend; then all else, the smallest first.
    What cannot be told apart in time is ordered by size.
    """
    quickest = quickest_float(price for _, price in priced)
    faster = [one for one in priced if one[1].high < quickest]
    others = [one for one in priced if one not in faster]
    ordered = sorted(faster, key=lambda one: one[1].seconds)
    return [*_ties_by_size(ordered), *sorted(others, key=lambda one: one[1].size)]


def quickest_float(prices: Iterable[Price]) -> float:
    """Return the median of a call of float where that is the shortest, 0 where none was timed."""
    return min((price.float_seconds for price in prices if price.float_seconds is not None), default=0.0)


def _ties_by_size(ordered: Sequence[tuple[Priced, Price]]) -> Iterator[tuple[Priced, Price]]:
    """Order by size whatever may be as fast as the fastest that is left."""
    left = list(ordered)
    while left:
        tied = [one for one in left if one[1].low <= left[0][1].high]
        yield from sorted(tied, key=lambda one: one[1].size)
        left = [one for one in left if one not in tied]


def _speed(workshop: Workshop, artifact: Artifact, samples: Samples, busy: bool) -> dict[str, object]:
    baseline, settings = workshop.baseline(artifact.case), workshop.settings
    key = {
        "artifacts": [artifact.entry.digest, baseline.entry.digest],
        "data": samples.first(settings.batch).digest,
        "threads": settings.threads,
        "machine": {**environment(), "cpu": hardware.processor().name},
        "source": source_digest("benchmarks.timing"),
    }
    refused: list[dict[str, object]] = []

    def build(folder: Path) -> None:
        if busy:
            refused.append({"refused": True, "reason": timing.TOO_BUSY})
            raise _Refused
        workshop.report(f"timing {artifact.case}")
        inputs, twin = workshop.first_batch(samples), workshop.twin(baseline)
        models = timing.Models(
            lambda: artifact.executable(*inputs), lambda: baseline.executable(*inputs), lambda: twin(*inputs)
        )
        section = plain(timing.speed(timing.compare(models, SECONDS, settings.threads)))
        if section["refused"]:
            refused.append(section)
            raise _Refused
        (folder / "speed.json").write_text(json.dumps(section))

    try:
        entry = workshop.cache.entry("times", key, build)
    except _Refused:
        return refused[0]
    return json.loads((entry.path / "speed.json").read_text())


class _Refused(Exception):
    """Times that mean nothing, which are not kept."""
