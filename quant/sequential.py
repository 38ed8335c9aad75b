"""Quantizing a graph layer by layer, each layer with what the layers before it, already quantized, really pass on.

Calibration data goes through the graph once, node by node, as two models side by side: the float one, and the one
whose earlier layers are quantized. At most the values that later nodes still need are held, of all samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.calibrate import Batch, as_tensors
from quant.execution import resolve
from quant.graph import FloatGraph
from quant.layers import Layer, Moments, layer_of
from quant.nodes import Graph, Node, Parameter, Value, map_references, references
from quant.progress import steps
from quant.tensor import QuantizedTensor


@dataclass
class Solution:
    """What became of a layer: its weight, and its bias where that changed too."""

    weight: QuantizedTensor
    bias: Tensor | None = None


Solve = Callable[[Layer, Tensor, Moments | None], Solution]
"""Layer, float weight, moments of its inputs (None for an embedding, and where calibration never comes by)."""


def quantize_sequentially(
    graph: FloatGraph, parameters: Sequence[str], batches: Sequence[Batch], solve: Solve
) -> tuple[dict[str, QuantizedTensor], dict[str, Tensor]]:
    """Return the quantized ``parameters`` and the changed biases, each solved for in the order of ``forward``.

    Raises:
        ValueError: there is no calibration data, or a value was NaN or infinite.
    """
    if not batches:
        raise ValueError("this method needs calibration data: pass at least one batch of inputs.")
    walk = _Walk(graph, parameters, batches, solve)
    with torch.inference_mode():
        for node in steps(graph.graphs["forward"].nodes, "operator"):
            walk.visit(node)
        walk.finish()
    return walk.weights, walk.floats


class _Walk:
    def __init__(self, graph: FloatGraph, parameters: Sequence[str], batches: Sequence[Batch], solve: Solve) -> None:
        self.graph, self.solve = graph, solve
        self.source = graph.graphs["forward"]
        self.pending = {name: layer_of(graph, name) for name in parameters}
        self.weights: dict[str, QuantizedTensor] = {}
        self.floats: dict[str, Tensor] = {}
        self.replaced: dict[str, Tensor] = {}
        self.original = [dict(zip(self.source.inputs, batch, strict=True)) for batch in as_tensors(batches)]
        self.quantized = [dict(values) for values in self.original]
        self.last_use = _last_uses(self.source)
        self.moments: dict[tuple, Moments] = {}

    def visit(self, node: Node) -> None:
        for reference in references(node.arguments):
            if isinstance(reference, Parameter) and reference.name in self.pending:
                layer = self.pending.pop(reference.name)
                self._solve(layer, self._moments(layer) if layer.node == node else None)
        for original, quantized in zip(self.original, self.quantized, strict=True):
            self._run(node, original, quantized)
        for name in self.last_use.get(node.name, ()):
            self.moments = {key: value for key, value in self.moments.items() if key[0] != name}
            for values in (*self.original, *self.quantized):
                values.pop(name, None)

    def finish(self) -> None:
        """Solve for what calibration never comes by: weights that only other graphs of the model use."""
        for layer in self.pending.values():
            self._solve(layer, None)

    def _solve(self, layer: Layer, moments: Moments | None) -> None:
        solution = self.solve(layer, self.graph.parameters[layer.parameter], moments)
        self.weights[layer.parameter] = solution.weight
        self.replaced[layer.parameter] = solution.weight.dequantize()
        if solution.bias is not None:
            self.floats[layer.bias] = self.replaced[layer.bias] = solution.bias

    def _moments(self, layer: Layer) -> Moments | None:
        """Return the moments of a layer's inputs, computed once for all layers that read them in the same way."""
        if layer.kind == "embedding":
            return None
        key = layer.reads_like()
        if key not in self.moments:
            moments = Moments(layer)
            for original, quantized in zip(self.original, self.quantized, strict=True):
                same = original[layer.data] is quantized[layer.data]
                moments.add(quantized[layer.data], None if same else original[layer.data])
            self.moments[key] = moments
        return self.moments[key]

    def _run(self, node: Node, original: dict[str, Tensor], quantized: dict[str, Tensor]) -> None:
        before = self._call(node, original, {})
        taken = list(references((node.arguments, tuple(node.keywords.values()))))
        changed = any(
            reference.name in self.replaced
            if isinstance(reference, Parameter)
            else quantized[reference.name] is not original[reference.name]
            for reference in taken
        )
        original[node.name] = before
        quantized[node.name] = self._call(node, quantized, self.replaced) if changed else before

    def _call(self, node: Node, values: dict[str, Tensor], replaced: dict[str, Tensor]) -> object:
        def fetch(reference: Value | Parameter) -> object:
            if isinstance(reference, Value):
                return values[reference.name]
            return replaced.get(reference.name, self.graph.parameters[reference.name])

        arguments = map_references(node.arguments, fetch)
        keywords = {key: map_references(value, fetch) for key, value in node.keywords.items()}
        return resolve(node.operator)(*arguments, **keywords)


def _last_uses(graph: Graph) -> dict[str, list[str]]:
    """Return, for each node, the values that nothing needs after it."""
    last = {node.name: node.name for node in graph.nodes}
    for node in graph.nodes:
        for reference in references((node.arguments, tuple(node.keywords.values()))):
            if isinstance(reference, Value):
                last[reference.name] = node.name
    dead: dict[str, list[str]] = {}
    for value, node in last.items():
        dead.setdefault(node, []).append(value)
    return dead
