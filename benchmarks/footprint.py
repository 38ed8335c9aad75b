"""The memory that a saved artefact takes: loaded into its runtime and run, in a process that does nothing else."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np

from benchmarks import memory
from benchmarks.process import Process, ProcessError, answers
from quant.backends import target

BATCHES = 4


@dataclass(frozen=True)
class Footprint:
    """Most bytes resident at once.

    peak_bytes    of the whole process
    growth_bytes  by which that is more than the interpreter, with the runtime imported, held before
    """

    peak_bytes: int
    growth_bytes: int


@dataclass(frozen=True)
class Request:
    """What to run: an artefact's folder, on a backend; ``inputs`` is a file, read ``batch`` samples at a time.

    ``settings`` are the runtime's, where they are not its defaults.
    """

    backend: str
    folder: str
    inputs: str
    batch: int
    threads: int
    settings: dict[str, object] = field(default_factory=dict)


def measure(request: Request) -> Footprint:
    """Return the memory that the first batches take.

    Raises:
        ProcessError: the artefact does not load or run.
    """
    with Process("benchmarks.footprint", request.threads) as process:
        try:
            process.tell(asdict(request))
            return Footprint(**process.hear("memory"))
        except ProcessError as error:
            raise ProcessError(f"{request.folder} does not run on {request.backend} by itself: {error}") from None


def main() -> None:
    """Measure what the parent asks for: the entry point of the process."""
    serve(sys.stdin, answers())


def serve(requests: TextIO, channel: TextIO) -> None:
    """Answer the one request."""
    request = Request(**json.loads(requests.readline()))
    chosen, batches = target(request.backend), list(_batches(request))
    chosen.load().version()  # imports the runtime
    held = memory.start_peak()
    executable = chosen.open(Path(request.folder), request.threads, request.settings)
    for batch in batches:
        executable(*batch)
    peak = memory.peak()
    channel.write(json.dumps({"memory": asdict(Footprint(peak, max(0, peak - held)))}) + "\n")
    channel.flush()


def _batches(request: Request) -> Iterator[tuple[np.ndarray, ...]]:
    saved = np.load(request.inputs)
    inputs = [saved[name] for name in saved.files]
    for start in range(0, min(len(inputs[0]), BATCHES * request.batch), request.batch):
        yield tuple(np.ascontiguousarray(array[start : start + request.batch]) for array in inputs)
