"""Interleaved timing: a variant and its float baseline in one process, in the order A B B A, through pytest-benchmark.

Interleaving cancels what both see (clock frequency, a busy neighbour); one untimed call before each timed one refills
the caches that the other evicted. The ratio is taken over pairs of neighbouring rounds.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from reports.statistics import speed_ratio

PROTOCOL = "interleaved A B B A, one untimed call before each, one process"
FEWEST_ROUNDS = 12
MOST_ROUNDS = 1000
ROUNDS_FOR_P99 = 200


@dataclass(frozen=True)
class PairedTimes:
    """Seconds per call of each round, float64 [rounds]; entries of one position are neighbours in time."""

    baseline: np.ndarray
    variant: np.ndarray


class Interleaver:
    """The baseline's calls, placed before the variant's round or after it by turns.

    pytest-benchmark calls ``setup`` before each round and ``teardown`` after it, and times what lies between.
    """

    def __init__(self, variant: Callable[[], object], baseline: Callable[[], object]) -> None:
        self.times: list[float] = []
        self._variant, self._baseline, self._round = variant, baseline, 0

    def setup(self) -> None:
        if self._round % 2 == 0:
            self._time_baseline()
        self._variant()

    def teardown(self) -> None:
        if self._round % 2 == 1:
            self._time_baseline()
        self._round += 1

    def _time_baseline(self) -> None:
        self._baseline()
        start = time.perf_counter()
        self._baseline()
        self.times.append(time.perf_counter() - start)


def time_paired(benchmark, variant: Callable, baseline: Callable, seconds: float) -> PairedTimes | None:
    """Time ``variant`` as pytest-benchmark's subject, interleaved with ``baseline``, for about ``seconds``.

    Where pytest-benchmark is disabled it runs once, untimed, and None is returned.
    """
    if benchmark.disabled:
        benchmark.pedantic(variant)
        return None
    interleaver = Interleaver(variant, baseline)
    rounds = rounds_within(seconds, variant, baseline)
    benchmark.pedantic(variant, setup=interleaver.setup, teardown=interleaver.teardown, rounds=rounds)
    return PairedTimes(np.array(interleaver.times), np.array(benchmark.stats.stats.data))


def rounds_within(seconds: float, variant: Callable, baseline: Callable) -> int:
    """Return how many rounds fit into ``seconds``, judged by the second call of each, which also warms them up."""
    variant(), baseline()
    start = time.perf_counter()
    variant(), baseline()
    per_round = 2 * (time.perf_counter() - start)
    # A clock may be too coarse to see two calls.
    return max(FEWEST_ROUNDS, int(min(MOST_ROUNDS, seconds / max(per_round, 1e-9))))


def speed(times: PairedTimes) -> dict[str, object]:
    """Return the speed section of a record; the ratio is float's time over the variant's."""
    ratio = speed_ratio(times.baseline, times.variant)
    section = {
        "protocol": PROTOCOL,
        "rounds": len(times.variant),
        "ratio": ratio.ratio,
        "ci95": [ratio.interval.low, ratio.interval.high],
        "p50": np.quantile(times.variant, 0.5),
        "p90": np.quantile(times.variant, 0.9),
        "p99": np.quantile(times.variant, 0.99) if len(times.variant) >= ROUNDS_FOR_P99 else None,
        "baseline_p50": np.quantile(times.baseline, 0.5),
    }
    if section["p99"] is None:
        section["reason"] = f"p99 needs {ROUNDS_FOR_P99} rounds"
    return section
