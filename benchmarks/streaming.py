"""Timing over a stream of samples: for models whose time depends on what they are asked.

The stream is cut into blocks of batches. Variant, float and float's twin pass each block in turns, in the order and
with the untimed call before each that ``benchmarks.timing`` describes; the ratio is that of the whole stream's time.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from benchmarks import timing
from benchmarks.timing import Interleaver, Models, PairedTimes
from fixtures.model import Samples
from quant.backends import Executable
from reports.statistics import percentiles, resampled_totals

PROTOCOL = "the stream in blocks, three handles in balanced orders, one untimed call before each block, one process"
BLOCKS = 48
"""Into so many the stream is cut, if it has as many batches."""

Block = Sequence[tuple[np.ndarray, ...]]


def blocks_of(samples: Samples, batch: int) -> list[Block]:
    """Return the stream's batches in blocks of equally many; what is left over is not timed."""
    batches = [samples.between(start, start + batch).inputs for start in range(0, len(samples), batch)]
    size = max(1, len(batches) // BLOCKS)
    return [batches[start : start + size] for start in range(0, len(batches) - size + 1, size)]


def time_stream(benchmark, executables: Models, blocks: Sequence[Block], threads: int) -> PairedTimes | None:
    """Return the mean seconds of a call in each block; of executables, in the places of :class:`Models`.

    Where pytest-benchmark is disabled the variant runs once, untimed, and None is returned.
    """
    if benchmark.disabled:
        benchmark.pedantic(executables.variant, args=blocks[0][0])
        return None
    models = _passing(executables, blocks)
    times = timing.measured(models, len(blocks), threads, timing.through(benchmark, models.variant), more=0)
    if timing.refusal(times):
        times = timing.measured(_passing(executables, blocks), len(blocks), threads, Interleaver.run, more=0)
    calls = len(blocks[0])
    times = replace(times, **{name: getattr(times, name) / calls for name in ("baseline", "variant", "twin")})
    benchmark.stats.stats.data[:] = times.variant.tolist()
    return times


def speed(times: PairedTimes) -> dict[str, object]:
    """Return the speed section of a record, whose ratio is that of the stream's whole time."""
    section = timing.speed(times) | {"protocol": PROTOCOL}
    if section["refused"]:
        return section
    ratio = times.baseline.sum() / times.variant.sum()
    baseline, variant = resampled_totals(np.stack([times.baseline, times.variant], axis=1)).T
    return section | {"ratio": ratio, "ci95": percentiles(baseline / variant)}


class _Passing:
    """One model on its way through the stream; every other call only refills the caches for the next."""

    def __init__(self, executable: Executable, blocks: Sequence[Block]) -> None:
        self._executable, self._blocks, self._calls = executable, blocks, 0

    def __call__(self) -> None:
        position, timed = divmod(self._calls, 2)
        self._calls += 1
        block = self._blocks[position]
        for inputs in block if timed else block[:1]:
            self._executable(*inputs)


def _passing(executables: Models, blocks: Sequence[Block]) -> Models:
    return Models(*(_Passing(executable, blocks) for executable in executables))
