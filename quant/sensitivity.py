"""Sensitivity: what quantizing one operator alone costs the output of the whole model."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from quant.calibrate import Batch, as_tensors
from quant.graph import Edge, QuantizedModel, simulate
from quant.progress import steps

_SAMPLES = 8


def most_sensitive(quantized: QuantizedModel, batches: Sequence[Batch], share: float) -> list[str]:
    """Return the weights to leave in float, so that the output error falls most for the work that is slower then.

    Weights are ranked by the squared error of the output with them alone quantized, over their multiply-accumulates,
    and taken while they make at most ``share`` of all multiply-accumulates of ``forward``.
    """
    graph = quantized.graph
    errors = output_errors(quantized, batches)
    work = {name: sum(graph.macs(edge[0], graph.node(edge)) for edge in graph.consumers(name)) for name in errors}
    left = share * sum(graph.macs("forward", node) for node in graph.graphs["forward"].nodes)
    found = []
    for name in sorted(errors, key=lambda name: errors[name] / work[name], reverse=True):
        if work[name] <= left:
            found.append(name)
            left -= work[name]
    return found


def output_errors(quantized: QuantizedModel, batches: Sequence[Batch]) -> dict[str, float]:
    """Return, for each weight whose operators read quantized inputs, the squared error that it alone causes.

    The error is relative to the output's square, over the first few samples.
    """
    inputs = [array[:_SAMPLES] for array in as_tensors(batches[0])]
    edges = {name: _data_edges(quantized, name) for name in quantized.weights}
    candidates = [name for name, of_name in edges.items() if of_name]
    scaling = {edge: replace(quantizer, mode="none") for edge, quantizer in quantized.activations.items()}
    found = {}
    with torch.inference_mode():
        expected = simulate(replace(quantized, weights={}, activations=scaling))(*inputs)[0]
        for name in steps(candidates, "sensitivity"):
            activations = scaling | {edge: quantized.activations[edge] for edge in edges[name]}
            alone = replace(quantized, weights={name: quantized.weights[name]}, activations=activations)
            difference = simulate(alone)(*inputs)[0] - expected
            found[name] = float(difference.square().sum() / expected.square().sum())
    return found


def _data_edges(quantized: QuantizedModel, weight: str) -> list[Edge]:
    consumers = quantized.graph.quantizable()[weight]
    edges = [(*edge[:2], operator.data) for edge, operator in consumers]
    return [edge for edge in edges if edge in quantized.activations]
