"""Calibration: running sample inputs through the float graph and observing what passes its edges."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from quant.execution import build_module
from quant.graph import FloatGraph

Batch = Sequence[object]
"""One array (numpy or torch) per input of the graph."""


class RangeObserver:
    """The smallest and largest value seen on an edge, over any number of batches."""

    def __init__(self) -> None:
        self.low, self.high = float("inf"), float("-inf")

    def __call__(self, values: Tensor) -> Tensor:
        low, high = torch.aminmax(values)
        # minimum() and maximum() keep a NaN, which Python's min() and max() may drop.
        self.low = torch.minimum(low, torch.as_tensor(self.low)).item()
        self.high = torch.maximum(high, torch.as_tensor(self.high)).item()
        return values


def observe_ranges(
    graph: FloatGraph, values: Sequence[str], batches: Sequence[Batch]
) -> dict[str, tuple[float, float]]:
    """Return (lowest, highest) of each named value of ``forward`` over all calibration batches.

    Raises:
        ValueError: there is no calibration data, or a value was NaN or infinite.
    """
    if not batches:
        raise ValueError("static quantization needs calibration data: pass at least one batch of inputs.")
    observers = {value: RangeObserver() for value in values}
    source = graph.graphs["forward"]
    edges = {(node.name, position): observers[value] for value in values for node, position in source.users(value)}
    module = build_module(source, graph.parameters, edges)
    with torch.inference_mode():
        for batch in as_tensors(batches):
            module(*batch)
    for value, observer in observers.items():
        if not torch.isfinite(torch.tensor([observer.low, observer.high])).all():
            raise ValueError(f"calibration saw NaN or infinity at {value!r}: check the calibration data.")
    return {value: (observer.low, observer.high) for value, observer in observers.items()}


def as_tensors(batches: Sequence[Batch]) -> Iterator[tuple[Tensor, ...]]:
    for batch in batches:
        yield tuple(torch.as_tensor(array) for array in batch)
