"""What a step of quantization-aware training costs beside a step of float training: time and memory.

    python -m benchmarks.training_steps                 # two convolutional networks and a transformer
    python -m benchmarks.training_steps reviews_lstm

Both train the same captured graph, on the same batches, with the same loss and optimizer, on one thread; where there
are no labels the loss is the distance from what the float model answered beforehand. Times are processor seconds of
steps taken in turns, in one process; memory is how far a process of its own grows from before the model is made
trainable until some steps later.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from statistics import median

import torch
from torch import Tensor

import quant
from benchmarks import memory
from benchmarks.matrix import models
from fixtures.model import DataOptions
from quant.recipe import Loss, Training
from quant.trainable import TrainableModel
from quant.training import kl_divergence

MODELS = ("digits", "mobilenet_v2", "reviews_gpt")
KINDS = ("float", "qat")
BITS = "int3"
ROUNDS = 12
STEPS_FOR_MEMORY = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", default=MODELS, metavar="model", help="models that have training data")
    parser.add_argument("--grown", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.grown:
        print(json.dumps(_growth(options.models[0], options.grown)))
        return
    for name in options.models:
        seconds = _times(name)
        grown = {kind: _measured_apart(name, kind) for kind in KINDS}
        print(
            f"{name}: float {1e3 * median(seconds['float']):.1f} ms, qat {1e3 * median(seconds['qat']):.1f} ms a step, "
            f"{median(b / a for a, b in zip(*seconds.values(), strict=True)):.2f} times; memory "
            f"{grown['float'] / 1e6:.0f} and {grown['qat'] / 1e6:.0f} MB, {grown['qat'] / grown['float']:.2f} times"
        )


def _times(name: str) -> dict[str, list[float]]:
    """Return processor seconds of steps, in turns: float, qat, qat, float."""
    graph, training = _load(name)
    (batch,), loss = _batches(graph, training, 1)
    work = {kind: _steps(graph, loss, kind) for kind in KINDS}
    seconds = {kind: [] for kind in KINDS}
    for round in range(ROUNDS + 1):
        for kind in KINDS if round % 2 else reversed(KINDS):
            start = time.process_time()
            work[kind](batch)
            if round:  # the first of each warms up
                seconds[kind].append(time.process_time() - start)
    return seconds


def _measured_apart(name: str, kind: str) -> int:
    command = [sys.executable, "-m", "benchmarks.training_steps", name, "--grown", kind]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _growth(name: str, kind: str) -> int:
    """Return the bytes by which this process grows while it trains a few steps."""
    graph, training = _load(name)
    batches, loss = _batches(graph, training, STEPS_FOR_MEMORY)
    start = quant.quantize(graph, "rtn", BITS)
    resident = memory.start_peak()
    step = _steps(graph, loss, kind, start)
    for batch in batches:
        step(batch)
    return memory.peak() - resident


def _load(name: str) -> tuple[quant.FloatGraph, Training]:
    model = models()[name].load().load(DataOptions())
    examples = tuple(torch.from_numpy(values[:2].copy()) for values in model.calibration().inputs)
    return quant.capture(model.build(), examples, model.dynamic_axes), model.training()


def _batches(graph: quant.FloatGraph, training: Training, count: int) -> tuple[list[tuple[Tensor, ...]], Loss]:
    """Return so many batches and the loss of what the model answers to them."""
    batches = list(islice(training.loader, count))
    if training.loss is not None:
        return batches, training.loss
    module = graph.module()
    with torch.no_grad():
        return [(*batch, module(*batch)[0]) for batch in batches], kl_divergence


def _steps(
    graph: quant.FloatGraph, loss: Loss, kind: str, start: quant.QuantizedModel | None = None
) -> Callable[[tuple[Tensor, ...]], None]:
    """Return a function that takes a step of training on a batch."""
    if kind == "float":
        module = graph.module()
        module.requires_grad_(True)
    else:
        module = TrainableModel(start or quant.quantize(graph, "rtn", BITS))
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, 1e-5, fused=True)
    inputs = len(graph.graphs["forward"].inputs)

    def step(batch: tuple[Tensor, ...]) -> None:
        optimizer.zero_grad()
        loss(module(*batch[:inputs])[0], *batch[inputs:]).backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        if kind == "qat":
            module.keep_valid()

    return step


if __name__ == "__main__":
    main()
