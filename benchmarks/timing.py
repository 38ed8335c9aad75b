"""Interleaved timing: a variant and its float baseline in one process, in the order A B B A, through pytest-benchmark.

Interleaving cancels what both see (clock frequency, a busy neighbour); one untimed call before each timed one refills
the caches that the others evicted. The ratio is taken over pairs of neighbouring rounds.

A second handle of the float model, the twin, is timed in the same rounds on the other side of the first. Float against
float is an A/A comparison: whatever its ratio shows besides one is no property of the variant. Where it differs from
one by more than ``TOLERATED_NULL``, or other programs leave too few cores, the rounds are taken once more; then the
ratio and the times are refused, because nobody could tell them from the noise. Where rounds only scatter, more of them
are taken: what a case's few rounds cannot tell apart, a gate cannot judge.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmarks.load import Load, Watch
from quant.hardware import pages
from reports.record import pack_outcomes
from reports.statistics import SpeedRatio, speed_ratio

PROTOCOL = "interleaved A' A B B A A', one untimed call before each, one process"
FEWEST_ROUNDS = 12
MOST_ROUNDS = 1000
ROUNDS_FOR_P99 = 200
KEPT_ROUNDS = 300
WIDE = 0.03
"""From which relative half-width on the interval of the ratio calls for more rounds."""

MORE_ROUNDS = 2
"""How many times the rounds are then added."""

TOLERATED_NULL = 0.015
"""How far from one the whole interval of float against float may lie.

Where a model's memory happens to lie makes two handles of it differ: by 0.3 to 0.5 % (one standard deviation) and at
most 1.1 % over 17 processes with digits. So much says nothing of the machine, and means nothing beside a ratio. Weights
of hundreds of MB in small pages differ by more: ``quant.hardware.pages``.
"""

DISABLED = "timing is disabled in this run"
TOO_BUSY = "not timed: other programs left too few cores, in two attempts; try again on a quieter machine"
NOT_EQUAL = "not timed: float differed from float in the same rounds, in two attempts; try again on a quieter machine"
_REFUSED = ("ratio", "ci95", "p50", "p90", "p99", "baseline_p50", "samples")

Call = Callable[[], object]


class Models(NamedTuple):
    """What is timed together, each as a call without arguments; the twin is the baseline loaded a second time."""

    variant: Call
    baseline: Call
    twin: Call


@dataclass(frozen=True)
class PairedTimes:
    """Seconds per call of each round, float64 [rounds]; entries of one position are neighbours in time."""

    baseline: np.ndarray
    variant: np.ndarray
    twin: np.ndarray
    load: Load

    @property
    def null(self) -> SpeedRatio:
        """Float against float."""
        return speed_ratio(self.baseline, self.twin)


class Interleaver:
    """The float models' calls, placed before the variant's round or after it by turns, the twin's farther away.

    pytest-benchmark calls ``setup`` before each round and ``teardown`` after it, and times what lies between.
    """

    def __init__(self, models: Models) -> None:
        self.baseline: list[float] = []
        self.twin: list[float] = []
        self._models, self._round = models, 0

    def setup(self) -> None:
        if self._round % 2 == 0:
            self.twin.append(seconds_of(self._models.twin))
            self.baseline.append(seconds_of(self._models.baseline))
        self._models.variant()

    def teardown(self) -> None:
        if self._round % 2 == 1:
            self.baseline.append(seconds_of(self._models.baseline))
            self.twin.append(seconds_of(self._models.twin))
        self._round += 1

    def run(self, rounds: int) -> list[float]:
        """Return the variant's seconds of each round: what pytest-benchmark does, without it."""
        variant = []
        for _ in range(rounds):
            self.setup()
            start = time.perf_counter()
            self._models.variant()
            variant.append(time.perf_counter() - start)
            self.teardown()
        return variant


Rounds = Callable[[Interleaver, int], Sequence[float]]
"""Runs so many rounds and returns the variant's seconds."""


def time_paired(benchmark, models: Models, seconds: float, threads: int) -> PairedTimes | None:
    """Time the variant as pytest-benchmark's subject, interleaved with float, as :func:`compare` does.

    Where pytest-benchmark is disabled it runs once, untimed, and None is returned.
    """
    if benchmark.disabled:
        benchmark.pedantic(models.variant)
        return None

    times = compare(models, seconds, threads, through(benchmark, models.variant))
    # A fixture runs once: rounds taken again were not its own.
    benchmark.stats.stats.data[:] = times.variant.tolist()
    return times


def through(benchmark, variant: Call) -> Rounds:
    """Return what runs rounds with pytest-benchmark timing the variant."""

    def run(interleaver: Interleaver, rounds: int) -> Sequence[float]:
        benchmark.pedantic(variant, setup=interleaver.setup, teardown=interleaver.teardown, rounds=rounds)
        return benchmark.stats.stats.data

    return run


def compare(models: Models, seconds: float, threads: int, first: Rounds = Interleaver.run) -> PairedTimes:
    """Time interleaved rounds for about ``seconds``, longer where they scatter, once more where they would be refused.

    With one more handle of the float model as the variant it is an A/A comparison.
    """
    rounds = rounds_within(seconds, models)
    times = measured(models, rounds, threads, first)
    return measured(models, rounds, threads, Interleaver.run) if refusal(times) else times


def rounds_within(seconds: float, models: Models) -> int:
    """Return how many rounds fit into ``seconds``, judged by the second call of each, which also warms them up."""
    for call in models:
        call()
    start = time.perf_counter()
    for call in models:
        call()
    per_round = 2 * (time.perf_counter() - start)
    # A clock may be too coarse to see the calls.
    return max(FEWEST_ROUNDS, int(min(MOST_ROUNDS, seconds / max(per_round, 1e-9))))


def refusal(times: PairedTimes) -> str | None:
    """Return why nothing may be concluded from these times, or None."""
    if times.load.too_high:
        return TOO_BUSY
    low, high, _ = times.null.interval
    if low <= 1 + TOLERATED_NULL and high >= 1 / (1 + TOLERATED_NULL):
        return None
    return f"{NOT_EQUAL}, or with {pages.ASK}" if pages.in_use() is False else NOT_EQUAL


def speed(times: PairedTimes) -> dict[str, object]:
    """Return the speed section of a record; the ratio is float's time over the variant's."""
    ratio, null, reason = speed_ratio(times.baseline, times.variant), times.null, refusal(times)
    rounds = len(times.variant)
    section = {
        "protocol": PROTOCOL,
        "rounds": rounds,
        "refused": reason is not None,
        "ratio": ratio.ratio,
        "ci95": ratio.interval[:2],
        "p50": np.quantile(times.variant, 0.5),
        "p90": np.quantile(times.variant, 0.9),
        "p99": np.quantile(times.variant, 0.99) if rounds >= ROUNDS_FOR_P99 else None,
        "baseline_p50": np.quantile(times.baseline, 0.5),
        "null": {"ratio": null.ratio, "ci95": null.interval[:2]},
        "load": {"others": times.load.others, "free": times.load.free, "stolen": times.load.stolen},
        "samples": samples(times),
    }
    if reason:
        return {**section, **dict.fromkeys(_REFUSED), "reason": reason}
    if section["p99"] is None:
        section["reason"] = f"p99 needs {ROUNDS_FOR_P99} rounds"
    return section


def samples(times: PairedTimes) -> dict[str, object]:
    """Return the seconds of at most ``KEPT_ROUNDS`` rounds, packed, from which two runs can be compared.

    They are thinned evenly by twos: of a single one, the order is either A B or B A.
    """
    twos = len(times.variant) // 2
    picked = np.unique(np.linspace(0, twos - 1, min(twos, KEPT_ROUNDS // 2)).round().astype(int))
    kept = (2 * picked[:, None] + [0, 1]).reshape(-1)
    packed = {name: pack_outcomes(getattr(times, name)[kept]) for name in ("baseline", "variant")}
    return {"rounds": len(kept), **packed}


def measured(models: Models, rounds: int, threads: int, run: Rounds, more: int = MORE_ROUNDS) -> PairedTimes:
    """Time so many rounds, and ``more`` times as many where they scatter."""
    interleaver = Interleaver(models)
    with garbage_kept():
        watch = Watch(threads)
        variant = list(run(interleaver, rounds))
        if more and _scattered(interleaver.baseline, variant):
            variant += interleaver.run(more * rounds)
        load = watch.read()
    return PairedTimes(np.array(interleaver.baseline), np.array(variant), np.array(interleaver.twin), load)


def _scattered(baseline: Sequence[float], variant: Sequence[float]) -> bool:
    low, high, _ = speed_ratio(np.array(baseline), np.array(variant)).interval
    return math.log(high / low) > 2 * WIDE


def seconds_of(call: Call) -> float:
    """Return the seconds of a call, after one that is not timed."""
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Keep the collector off through untimed calls too: what they leave would fall into the next timed one."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
