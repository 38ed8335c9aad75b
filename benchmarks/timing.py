"""Interleaved timing: a variant, its float baseline and that one's twin in one process, through pytest-benchmark.

Interleaving cancels what all see (clock frequency, a busy neighbour); one untimed call before each timed one refills
the caches that the others evicted, but not quite: a model that ran just before itself is up to 5 % faster than one
that ran after another. So each follows each of the others equally often, and none itself, in ``ORDERS``, a design
balanced for what a treatment leaves behind (Williams, Australian Journal of Scientific Research 2, 1949). The ratio is
taken over pairs of one round.

The twin is the float model loaded a second time. Float against float is an A/A comparison: whatever its ratio shows
besides one is no property of the variant. Where it differs from one by more than ``TOLERATED_NULL``, or other programs
leave too few cores, the rounds are taken once more; then the ratio and the times are refused, because nobody could tell
them from the noise. Where rounds only scatter, more of them are taken: what a case's few rounds cannot tell apart, a
gate cannot judge.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from benchmarks.load import Load, Watch
from quant.hardware import pages
from reports.record import pack_outcomes
from reports.statistics import SpeedRatio, speed_ratio

PROTOCOL = "three handles in balanced orders, one untimed call before each, one process"
ORDERS = tuple(
    tuple(order.split())
    for order in (
        "twin baseline variant",
        "twin variant baseline",
        "variant baseline twin",
        "baseline twin variant",
        "baseline variant twin",
        "variant twin baseline",
    )
)
"""What a round times, and when; after the last order comes the first."""

FEWEST_ROUNDS = 2 * len(ORDERS)
MOST_ROUNDS = 167 * len(ORDERS)
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
Name = TypeVar("Name")


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
    """The float models' calls, placed before the variant's round or after it as ``ORDERS`` say.

    pytest-benchmark calls ``setup`` before each round and ``teardown`` after it, and times what lies between.
    """

    def __init__(self, models: Models) -> None:
        self.baseline: list[float] = []
        self.twin: list[float] = []
        self._models, self._round = models, 0

    def setup(self) -> None:
        order = ORDERS[self._round % len(ORDERS)]
        self._time(order[: order.index("variant")])
        self._models.variant()

    def teardown(self) -> None:
        order = ORDERS[self._round % len(ORDERS)]
        self._time(order[order.index("variant") + 1 :])
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

    def _time(self, names: Sequence[str]) -> None:
        for name in names:
            getattr(self, name).append(seconds_of(getattr(self._models, name)))


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
    rounds = min(MOST_ROUNDS, seconds / max(per_round, 1e-9))
    return max(FEWEST_ROUNDS, round(rounds / len(ORDERS)) * len(ORDERS))


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

    They are thinned evenly by as many as there are orders, so that these stay balanced.
    """
    size = min(len(ORDERS), len(times.variant))
    cycles = len(times.variant) // size
    picked = np.unique(np.linspace(0, cycles - 1, min(cycles, KEPT_ROUNDS // size)).round().astype(int))
    kept = (size * picked[:, None] + np.arange(size)).reshape(-1)
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


def in_turn(names: Sequence[Name], after: Name | None, random: np.random.Generator) -> list[Name]:
    """Return ``names`` in an order drawn anew that does not begin with what ran last: it would have an advantage."""
    order = [names[place] for place in random.permutation(len(names))]
    if len(order) > 1 and order[0] == after:
        order[0], order[-1] = order[-1], order[0]
    return order


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
