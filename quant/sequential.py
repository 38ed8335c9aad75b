"""Quantizing a graph layer by layer, each layer with what the layers before it, already quantized, really pass on.

Calibration data goes through the graph once, node by node, as two models side by side: the float one, and the one
whose earlier layers are quantized. Only values that later nodes still need are held, of all samples.

A method that looks at several layers together refines them at the end of their block: a stretch of the graph that one
value alone leaves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quant.calibrate import Batch, as_tensors, observe_edges
from quant.execution import resolve
from quant.graph import FloatGraph
from quant.layers import Layer, Moments, layer_of
from quant.nodes import Graph, Node, Parameter, Value, map_references, references
from quant.progress import steps
from quant.recurrent import hidden_before
from quant.tensor import QuantizedTensor

Solve = Callable[[Layer, Tensor, Moments | None], QuantizedTensor]
"""Layer, float weight, moments of its inputs (None for an embedding, and where calibration never comes by)."""

_FEWEST_LAYERS = 3
"""Blocks with fewer layers are joined with the next."""


@dataclass
class Block:
    """A stretch of the graph whose weights have been solved for one by one.

    nodes    its calls; the last one's value is all that leaves it
    layers   its quantizable layers
    weights  their quantized weights, which a refinement replaces
    inputs   for each batch, the values that come in, from the model as quantized so far
    targets  for each batch, the value that leaves it in the float model
    """

    nodes: list[Node] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    weights: dict[str, QuantizedTensor] = field(default_factory=dict)
    inputs: list[dict[str, Tensor]] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)


Refine = Callable[[Block], dict[str, QuantizedTensor]]


def quantize_sequentially(
    graph: FloatGraph,
    parameters: Sequence[str],
    batches: Sequence[Batch],
    solve: Solve,
    refine: Refine | None = None,
) -> dict[str, QuantizedTensor]:
    """Return the quantized ``parameters``, each solved for in the order of ``forward`` and refined block by block.

    Raises:
        ValueError: there is no calibration data, or a value was NaN or infinite.
    """
    if not batches:
        raise ValueError("this method needs calibration data: pass at least one batch of inputs.")
    walk = _Walk(graph, parameters, batches, solve, refine)
    # Not inference mode: a refinement may train on these values.
    with torch.no_grad():
        for node in steps(graph.graphs["forward"].nodes, "operator"):
            walk.visit(node)
        walk.finish()
    return walk.weights


class _Walk:
    def __init__(
        self,
        graph: FloatGraph,
        parameters: Sequence[str],
        batches: Sequence[Batch],
        solve: Solve,
        refine: Refine | None,
    ) -> None:
        self.graph, self.batches, self.solve, self.refine = graph, batches, solve, refine
        self.source = graph.graphs["forward"]
        self.pending = {name: layer_of(graph, name) for name in parameters}
        self.weights: dict[str, QuantizedTensor] = {}
        self.replaced: dict[str, Tensor] = {}
        self.original = [dict(zip(self.source.inputs, batch, strict=True)) for batch in map(as_tensors, batches)]
        self.quantized = [dict(values) for values in self.original]
        self.last_use = _last_uses(self.source)
        self.moments: dict[tuple, Moments] = {}
        self.ends = _block_ends(self.source, set(parameters)) if refine else set()
        self.block = Block(inputs=[dict(values) for values in self.quantized]) if refine else None

    def visit(self, node: Node) -> None:
        for reference in references(node.arguments):
            if isinstance(reference, Parameter) and reference.name in self.pending:
                layer = self.pending.pop(reference.name)
                if layer.node == node:
                    self._solve(layer, self._moments(layer))
                    self._enter_block(layer)
                else:
                    self._solve(layer, self._moments_ahead(layer))
        if not self.pending and self.block is None:
            return  # nothing is left to be solved; the logits of a language model alone may take gigabytes
        dead = self.last_use.get(node.name, ())
        for original, quantized in zip(self.original, self.quantized, strict=True):
            self._run(node, original, quantized)
            # At once, batch by batch: the values before and after an operator are never both held of all samples.
            for name in dead:
                original.pop(name, None)
                quantized.pop(name, None)
        self.moments = {key: value for key, value in self.moments.items() if key[0] not in dead}
        if self.block:
            self.block.nodes.append(node)
        else:
            self._drop_weights(node)
        if node.name in self.ends:
            self._end_block(node)

    def finish(self) -> None:
        """Solve for what calibration never comes by: weights that only other graphs of the model use."""
        for layer in self.pending.values():
            self._solve(layer, None)

    def _solve(self, layer: Layer, moments: Moments | None) -> None:
        self._replace(layer.parameter, self.solve(layer, self.graph.parameters[layer.parameter], moments))

    def _enter_block(self, layer: Layer) -> None:
        if self.block and layer.kind != "embedding":
            self.block.layers.append(layer)

    def _replace(self, parameter: str, weight: QuantizedTensor) -> None:
        self.weights[parameter], self.replaced[parameter] = weight, weight.dequantize()

    def _drop_weights(self, node: Node) -> None:
        """Forget the float values of quantized weights that no other operator takes."""
        for reference in references(node.arguments):
            if isinstance(reference, Parameter) and len(self.graph.consumers(reference.name)) == 1:
                self.replaced.pop(reference.name, None)

    def _end_block(self, last: Node) -> None:
        """Refine the weights of the block that ends here, and let its value follow from them."""
        block = self.block
        block.weights = {layer.parameter: self.weights[layer.parameter] for layer in block.layers}
        block.targets = [values[last.name] for values in self.original]
        for parameter, weight in self.refine(block).items():
            self._replace(parameter, weight)
        for quantized, inputs in zip(self.quantized, block.inputs, strict=True):
            values = dict(inputs)
            for node in block.nodes:
                values[node.name] = self._call(node, values, self.replaced)
            quantized[last.name] = values[last.name]
        self.block = Block(inputs=[dict(values) for values in self.quantized])

    def _moments(self, layer: Layer) -> Moments | None:
        """Return the moments of a layer's inputs, computed once for all layers that read them in the same way."""
        if layer.kind == "embedding":
            return None
        key = layer.reads_like()
        if key not in self.moments:
            moments = Moments(layer)
            for original, quantized in zip(self.original, self.quantized, strict=True):
                if layer.reads_hidden:
                    moments.add(self._hidden(layer, quantized, self.replaced), self._hidden(layer, original, {}))
                    continue
                same = original[layer.data] is quantized[layer.data]
                moments.add(quantized[layer.data], None if same else original[layer.data])
            self.moments[key] = moments
        return self.moments[key]

    def _moments_ahead(self, layer: Layer) -> Moments | None:
        """Return the moments, in the float model, of a layer that comes later: its weight is an embedding before."""
        if layer.node.name not in self.source.by_name:
            return None
        moments = Moments(layer)

        def observe(values: Tensor) -> Tensor:
            moments.add(values)
            return values

        observe_edges(self.graph, {(layer.node.name, layer.operator.data): observe}, self.batches)
        return moments

    def _hidden(self, layer: Layer, values: dict[str, Tensor], replaced: dict[str, Tensor]) -> Tensor:
        """Return the states that a recurrent weight, itself still float, multiplies with."""
        output, *_ = self._call(layer.node, values, replaced)
        initial = layer.node.arguments[1][0]
        return hidden_before(layer.node, output, values[initial.name], layer.parameter)

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
    """Return, for each node, the values that nothing needs after it; outputs are needed to the end."""
    last = {node.name: node.name for node in graph.nodes}
    for node in graph.nodes:
        for reference in references((node.arguments, tuple(node.keywords.values()))):
            if isinstance(reference, Value):
                last[reference.name] = node.name
    dead: dict[str, list[str]] = {}
    for value, node in last.items():
        if value in graph.outputs:
            continue
        dead.setdefault(node, []).append(value)
    return dead


def _block_ends(graph: Graph, parameters: set[str]) -> set[str]:
    """Return the nodes after which one value alone goes on, besides values that depend on none of ``parameters``."""
    last_use = {value: node for node, values in _last_uses(graph).items() for value in values}
    last_use |= dict.fromkeys(graph.outputs, graph.nodes[-1].name)
    position = {node.name: index for index, node in enumerate(graph.nodes)}
    weighted = [_takes_any(node, parameters) for node in graph.nodes]
    dependent, ends, layers = set(), set(), 0
    for index, node in enumerate(graph.nodes):
        taken = references((node.arguments, tuple(node.keywords.values())))
        if weighted[index] or any(reference.name in dependent for reference in taken if isinstance(reference, Value)):
            dependent.add(node.name)
        layers += weighted[index]
        live = {value for value in dependent if position[last_use[value]] > index}
        is_last = index == len(graph.nodes) - 1
        if is_last or (live == {node.name} and weighted[index + 1] and layers >= _FEWEST_LAYERS):
            ends.add(node.name)
            layers = 0
    return ends


def _takes_any(node: Node, parameters: set[str]) -> bool:
    return any(isinstance(item, Parameter) and item.name in parameters for item in references(node.arguments))
