"""The process that quantizes once, on one thread of one core, and tells its parent what that cost.

It reads a :class:`Job` from its standard input and answers on its standard output, one JSON object a line: ``ready``
when everything is loaded; once told to go on, ``progress`` at work and then the ``cost``; and ``done`` when the outputs
that were asked for are saved. Whatever a library prints goes to the standard error.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
import torch

from benchmarks import memory
from benchmarks.process import answers
from quant.graph import FloatGraph, simulate
from quant.methods import method, quantize
from quant.scheme import Scheme, parse
from quant.storage import load_graph

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 16

Batch = tuple["Tensor", ...]
Outputs = Callable[..., "Tensor | np.ndarray"]
"""What a quantizer made, as a function from the model's inputs to its first output."""


@dataclass(frozen=True)
class Job:
    """What to quantize, and with what.

    library      the module of a peer, which has the function :func:`prepare`; None for a method of this suite
    method       the method's name, ours or the peer's
    bits         the scheme's word
    granularity  of activations quantized at run time
    model        its name; a peer is given the module that it builds
    graph        the folder of its float graph
    calibration  a file of inputs
    linear_only  whether weights of linear layers alone are quantized
    """

    library: str | None
    method: str
    bits: str
    granularity: str
    model: str
    graph: str
    calibration: str
    linear_only: bool = False


class LinearOnly(FloatGraph):
    """A float graph that offers the weights of its linear layers alone, as most peers do."""

    def quantizable(self) -> dict[str, list]:
        offered = super().quantizable().items()
        return {name: uses for name, uses in offered if all(operator.kind == "linear" for _, operator in uses)}


@dataclass(frozen=True)
class Subject:
    """What a quantizer is given."""

    job: Job
    graph: FloatGraph
    calibration: list[Batch]
    progress: Callable[[str], None]

    @property
    def scheme(self) -> Scheme:
        return parse(self.job.bits)

    @cached_property
    def module(self) -> "nn.Module":
        """The float model as a module of its own, in eval mode; its parameters have the graph's names."""
        from benchmarks.matrix import model
        from fixtures.model import DataOptions

        return model(self.job.model).load().load(DataOptions()).build()


def prepare(subject: Subject) -> Callable[[], Outputs]:
    """Return the work of a method of this suite; everything it imports is imported before it starts."""
    job = subject.job
    method(job.method).entry.load()

    def work() -> Outputs:
        batches = subject.calibration if method(job.method).calibrates else []
        quantized = quantize(subject.graph, job.method, job.bits, batches, job.granularity, subject.progress)
        return _first_output(lambda: simulate(quantized))

    return work


def main() -> None:
    """Serve the parent: the entry point of the process."""
    channel = answers()
    if hasattr(os, "sched_setaffinity"):  # some libraries start a thread for every core, whatever they are told
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    serve(sys.stdin, channel)


def serve(requests: TextIO, channel: TextIO) -> None:
    """Do the job that ``requests`` begins with, waiting for another line before it starts; then save outputs."""

    def answer(**message: object) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    job = Job(**json.loads(requests.readline()))
    work = _load(job, lambda text: answer(progress=text))
    answer(ready=True)
    requests.readline()
    cost, outputs = _measured(work)
    answer(cost=cost)
    for line in requests:
        save_outputs(outputs, **json.loads(line))
        answer(done=True)


def batches_of(file: str) -> list[Batch]:
    """Return the inputs saved in ``file``, in batches."""
    arrays = np.load(file)
    inputs = [torch.from_numpy(arrays[name]) for name in arrays.files]
    return list(zip(*(values.split(BATCH) for values in inputs), strict=True))


def save_outputs(outputs: Outputs, inputs: str, file: str) -> None:
    """Save float32 [n, ...], what the quantized model makes of the ``inputs`` in another file."""
    with torch.inference_mode():
        parts = [np.asarray(outputs(*batch), dtype=np.float32) for batch in batches_of(inputs)]
    np.save(file, np.concatenate(parts))


def with_parameters(graph: FloatGraph, replaced: Callable[[], "dict[str, Tensor]"]) -> Outputs:
    """Return the float graph with some parameters ``replaced``, which is asked for them at the first call."""
    return _first_output(lambda: graph.module(parameters=replaced()))


def linear_layers(module: "nn.Module") -> "Iterator[tuple[str, nn.Linear]]":
    """Yield the linear layers of a module with the names of their weights."""
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear):
            yield f"{name}.weight", layer


def _load(job: Job, progress: Callable[[str], None]) -> Callable[[], Outputs]:
    graph = load_graph(Path(job.graph))
    if job.linear_only:
        graph = LinearOnly(**{field.name: getattr(graph, field.name) for field in fields(graph)})
    _ = graph.weights_sha256  # reading every weight brings the pages of its file into memory before that is measured
    maker = importlib.import_module(job.library) if job.library else sys.modules[__name__]
    return maker.prepare(Subject(job, graph, batches_of(job.calibration), progress))


def _measured(work: Callable[[], Outputs]) -> tuple[dict[str, float], Outputs]:
    resident = memory.start_peak()
    start, start_cpu = time.perf_counter(), time.process_time()
    outputs = work()
    elapsed, seconds = time.perf_counter() - start, time.process_time() - start_cpu
    cost = {"seconds": seconds, "elapsed_seconds": elapsed, "peak_bytes": max(0, memory.peak() - resident)}
    return cost, outputs


def _first_output(make: Callable[[], Callable]) -> Outputs:
    made = []

    def run(*batch: "Tensor") -> "Tensor":
        if not made:
            made.append(make())
        return made[0](*batch)[0]

    return run
