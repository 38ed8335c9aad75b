"""A load test: requests that arrive whether or not the last one was answered, and the ladder that answers them.

Arrivals are drawn, in phases of different load, as of many users who know nothing of each other (Poisson). What float,
or the narrowest precision, alone would have done with the same requests follows from what its calls take.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate

from fixtures.model import Samples
from quant.ladder import Clock, Ladder, Response

PHASES = (("calm", 0.25), ("busy", 0.6), ("calm", 0.25), ("rush", 0.75), ("calm", 0.25))
"""Loads, as shares of what the widest precision could answer; of what the narrowest could in a rush."""


@dataclass(frozen=True)
class Served:
    """A request's response, and the position of its sample."""

    response: Response
    sample: int


def arrivals(rates: Sequence[float], seconds: float, seed: int = 0) -> np.ndarray:
    """Return the times, in seconds from the start, of requests at each of ``rates`` a second for so many seconds."""
    random, found = np.random.default_rng(seed), []
    for phase, rate in enumerate(rates):
        times = phase * seconds + np.cumsum(random.exponential(1 / rate, int(2 * rate * seconds) + 20))
        found.append(times[times < (phase + 1) * seconds])
    return np.concatenate(found)


def serve(
    ladder: Ladder,
    times: np.ndarray,
    samples: Samples,
    report: Callable[[Served], None] = lambda served: None,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Served]:
    """Answer requests one at a time in the order of their arrival; each brings the next of the samples."""
    start, found = clock(), []
    for position, arrival in enumerate(start + times):
        sample = position % len(samples)
        inputs = samples.between(sample, sample + 1).inputs
        early = arrival - clock()
        if early > 0:
            sleep(early)
        _, response = ladder.answer(arrival, *inputs)
        found.append(Served(response, sample))
        report(found[-1])
    return found


def latencies_alone(times: np.ndarray, service: float) -> np.ndarray:
    """Return how long the same requests would have taken with calls of ``service`` seconds each (Lindley 1952)."""
    found, free = [], 0.0
    for arrival in times:
        free = max(free, arrival) + service
        found.append(free - arrival)
    return np.array(found)


def within(latencies: np.ndarray, target: float) -> float:
    """Return the share of latencies within the target."""
    return float(np.mean(np.asarray(latencies) <= target))


def p99(latencies: np.ndarray) -> float:
    """Return the latency that 99 % do not exceed."""
    return float(np.quantile(latencies, 0.99, method="inverted_cdf"))


def table(
    served: Sequence[Served], names: Sequence[str], target: float, lost: np.ndarray, every: float, start: float
) -> str:
    """Return a row for every so many seconds from ``start`` on.

    ``lost`` [rungs, samples] is what an answer on a rung loses against the widest precision's.
    """
    rows = []
    bins = [int((one.response.arrived - start) // every) for one in served]
    for row in sorted(set(bins)):
        inside = [one for one, its in zip(served, bins, strict=True) if its == row]
        latencies = np.array([one.response.latency for one in inside])
        rungs = np.array([one.response.rung for one in inside])
        losses = lost[rungs, [one.sample for one in inside]]
        rows.append(
            [
                f"{row * every:.0f}-{(row + 1) * every:.0f}",
                f"{len(inside) / every:.1f}",
                _shares(rungs, names),
                f"{1000 * p99(latencies):.1f}",
                f"{100 * within(latencies, target):.1f}",
                f"{100 * losses.mean():.2f}",
            ]
        )
    headers = ["seconds", "requests/s", "answered by", "p99 ms", "% within target", "points lost"]
    return tabulate(
        rows, headers, disable_numparse=True, colalign=("right", "right", "left", "right", "right", "right")
    )


def _shares(rungs: np.ndarray, names: Sequence[str]) -> str:
    """``int8 81 %, fp32 19 %``: the most frequent first."""
    counts = np.bincount(rungs, minlength=len(names))
    shown = [rung for rung in np.argsort(-counts, kind="stable") if counts[rung]]
    return ", ".join(f"{names[rung]} {100 * counts[rung] / len(rungs):.0f} %" for rung in shown)
