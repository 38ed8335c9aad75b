"""Rounds of pytest over the default matrix in one process, in a cache too small for it, and what each leaves behind.

``python -m benchmarks.reliability.soaking FOLDER ROUNDS [OPTIONS]`` is that process: a cache below FOLDER, one line of
JSON for every round, and what pytest prints on stderr. OPTIONS go to pytest.
"""

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.reliability.sessions import environment
from reports.record import Record, case_id

LIMIT = 600_000_000
"""Bytes of the cache: what the largest model needs for a case on one backend, and far from all."""
SAMPLES = 8
WARM_UP = "digits-float"
"""What pytest runs before the first round: it keeps the items of its first session for good, besides its last one's."""

_ROOT = Path(__file__).parents[2]
_CACHE, _LOG = "cache", "soak.log"
_DIFFERENT = ("seconds", "cost", "artifact")
"""Of a record: how long it took, what was in the cache already, and the checksum of files that other libraries write:
coremltools draws a number for every package, and torchao's are not the same twice."""


@dataclass(frozen=True)
class Round:
    """What there is after a round.

    memory_bytes  of the process, after unused memory was given back
    files         that it holds open
    threads       that it has
    children      processes that it has started and that live
    cache_bytes   that the cache takes
    records       by case, without what differs from run to run
    """

    memory_bytes: int
    files: int
    threads: int
    children: int
    cache_bytes: int
    records: dict[str, Record]

    def __str__(self) -> str:
        return (
            f"{len(self.records)} cases, {self.memory_bytes / 1e6:.0f} MB, {self.files} open files, "
            f"{self.threads} threads, {self.children} children, cache {self.cache_bytes / 1e6:.0f} MB"
        )


def rounds(folder: Path, count: int, *options: str) -> Iterator[Round]:
    """Yield rounds as they end, in a fresh process that runs all of them.

    Raises:
        RuntimeError: a case failed, or a cache outgrew its limit; the message has the end of what pytest printed.
    """
    command = [sys.executable, "-m", "benchmarks.reliability.soaking", str(folder), str(count), *options]
    log = folder / _LOG
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, cwd=_ROOT, env=environment(), stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        for line in process.stdout:
            yield Round(**json.loads(line))
    if process.returncode:
        raise RuntimeError(f"`{' '.join(command)}` ended with {process.returncode}: {log.read_text()[-2000:]}")


def main(arguments: Sequence[str]) -> None:
    folder, count, *options = arguments
    cache = Path(folder) / _CACHE
    _run(cache, [*options, "-k", WARM_UP])
    for _ in range(int(count)):
        records = _run(cache, options)
        print(json.dumps(asdict(_left_behind(cache, records))), flush=True)


class _Recorder:
    """Keeps every record of a run of pytest."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}

    def pytest_quant_record(self, record: Record) -> None:
        self.records[case_id(record)] = {name: part for name, part in record.items() if name not in _DIFFERENT}


def _run(cache: Path, options: Sequence[str]) -> dict[str, Record]:
    """Return the records of a run of pytest; one that fails ends the process with its status."""
    import pytest

    recorder = _Recorder()
    command = ["benchmarks", "-q", "-p", "no:cacheprovider", "--benchmark-disable", f"--eval-samples={SAMPLES}"]
    command += [f"--cache-dir={cache}", f"--cache-limit={LIMIT / 1e6:.0f}MB"]
    command += ["-W", "error::fixtures.cache.CacheWarning"]
    with redirect_stdout(sys.stderr):
        status = pytest.main([*command, *options], plugins=[recorder])
    if status:
        sys.exit(status)
    return recorder.records


def _left_behind(cache: Path, records: dict[str, Record]) -> Round:
    import psutil

    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    process = psutil.Process()
    return Round(
        memory_bytes=process.memory_info().rss,
        files=process.num_fds(),
        threads=process.num_threads(),
        children=len(process.children(recursive=True)),
        cache_bytes=sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()),
        records=records,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
