"""The memory bandwidth that this process gets, measured by copying.

As STREAM's copy (McCalpin, 1995) does: arrays that no cache holds, the best of several passes, and a byte counted once
when it is read and once when it is written. What a cache fetches before it overwrites a line is not counted, so the
figure is a floor of what the memory moves.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from quant.hardware._parts import Machine

_TIMES_THE_CACHE = 2
"""An array's size: a copy passes through two of them in turn, so that at most a quarter is still there."""
_LEAST, _MOST = 2**28, 2**30
_SHARE_OF_MEMORY = 8
_PASSES = 5


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second, read and written together.

    cached  whether the arrays were so small, for want of memory, that the largest caches held part of them
    """

    one_thread: float
    all_threads: float
    threads: int
    cached: bool

    def __str__(self) -> str:
        figures = f"{self.one_thread / 1e9:.1f} GB/s copying on one thread"
        if self.threads > 1:
            figures += f", {self.all_threads / 1e9:.1f} on {self.threads}"
        return f"{figures}, partly from caches" if self.cached else figures


def measure(machine: Machine) -> Bandwidth:
    """Copy for a few seconds, on one thread and on as many as this process may use."""
    processor, caches = machine.processor, machine.processor.caches
    largest = sum(cache.size * (cache.count or 1) for cache in caches if cache.level == max(c.level for c in caches))
    size = _size(largest, machine)
    threads = max(1, int(min(processor.allowed or 1, processor.quota or processor.allowed or 1)))
    source, target = np.zeros(size, np.uint8), np.empty(size, np.uint8)
    source[:], target[:] = 1, 0  # give them pages of their own, which zeros and empty do not
    one = _rate(lambda: np.copyto(target, source), 2 * size)
    if threads == 1:
        return Bandwidth(one, one, 1, size < _TIMES_THE_CACHE * largest)
    pieces = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:  # numpy copies without holding the interpreter's lock
        every = _rate(lambda: list(pool.map(lambda piece: np.copyto(*piece), pieces)), 2 * size)
    return Bandwidth(one, every, threads, size < _TIMES_THE_CACHE * largest)


def _size(largest_caches: int, machine: Machine) -> int:
    """Return the bytes of an array: twice the caches, but never so many that memory runs short."""
    memory = machine.memory
    room = min(filter(None, (memory.available or memory.total, memory.limit)), default=_LEAST)
    return min(max(_TIMES_THE_CACHE * largest_caches, _LEAST), _MOST, max(room // _SHARE_OF_MEMORY, 2**20))


def _rate(work: Callable[[], object], size: int) -> float:
    best = float("inf")
    for _ in range(_PASSES):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return size / best
