"""Operators cut out of a model, with their tables, as models of their own: so can they be run, and timed, alone."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, fx

from quant.graph import ActivationQuantizer, FloatGraph, QuantizedModel
from quant.methods.static import makers
from quant.nodes import QUANTIZABLE, Graph, Node, Parameter, Value, map_references, references

_RESULT = "_operator.getitem"
_READER = "aten.relu.default"


def cut(
    quantized: QuantizedModel,
    nodes: Sequence[Node],
    examples: Mapping[str, Tensor],
    readers: Mapping[str, ActivationQuantizer | None] | None = None,
) -> QuantizedModel:
    """Return ``nodes`` of ``forward`` as a model of their own, whose inputs are the values that they read.

    Args:
        examples: those values, as they are on the example inputs of the graph.
        readers: values that a ReLU reads besides, through a quantizer or as they are. An integer kernel that writes
            integers runs only where what it writes is read so.
    """
    source, readers = quantized.graph.graphs["forward"], readers or {}
    added = {value: Node(f"reader_of_{value}", _READER, (Value(value),), {}) for value in readers}
    calls = [part for node in nodes for part in (node, *_results(source, node))] + list(added.values())
    made = {node.name for node in calls}
    used = [reference for node in calls for reference in references((node.arguments, tuple(node.keywords.values())))]
    inputs = tuple(dict.fromkeys(one.name for one in used if isinstance(one, Value) and one.name not in made))
    names = list(dict.fromkeys(one.name for one in used if isinstance(one, Parameter)))
    read = {one.name for one in used if isinstance(one, Value)}
    shapes = {name: source.shapes[name] for name in (*inputs, *made) if name in source.shapes}
    shapes |= {node.name: source.shapes[value] for value, node in added.items()}
    outputs = tuple(node.name for node in calls if node.name not in read)
    axes = tuple(_dynamic_axes(source, name) for name in inputs)
    graph = FloatGraph(
        {"forward": Graph(inputs, tuple(calls), outputs, axes, shapes)},
        {name: quantized.graph.parameters[name] for name in names},
        {"forward": tuple(examples[name] for name in inputs)},
    )
    activations = {edge: one for edge, one in quantized.activations.items() if edge[0] == "forward" and edge[1] in made}
    activations |= {("forward", added[value].name, 0): one for value, one in readers.items() if one is not None}
    tables = ({name: table[name] for name in names if name in table} for table in (quantized.weights, quantized.floats))
    return QuantizedModel(graph, quantized.scheme, *tables, activations)


def written_in_integers(quantized: QuantizedModel) -> dict[str, ActivationQuantizer]:
    """Return the convolutions, by node, that could write integers, with a quantizer through which these are read."""
    source, found = quantized.graph.graphs["forward"], {}
    of_weight = {}
    for node in source.nodes:
        operator = QUANTIZABLE.get(node.operator)
        if operator and operator.kind == "convolution" and isinstance(node.arguments[operator.weight], Parameter):
            of_weight[node.arguments[operator.weight].name] = node.name
    for (name, node, position), quantizer in quantized.activations.items():
        if name == "forward" and isinstance(position, int):
            value = source.by_name[node].arguments[position].name
            made = makers(source, value, list(quantized.weights))
            found |= {of_weight[weight]: quantizer for weight in made if weight in of_weight}
    return found


def record(graph: FloatGraph, inputs: Sequence[Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return the values called ``names`` that ``forward`` computes from ``inputs``."""
    found: dict[str, Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            result = super().run_node(node)
            if node.name in names:
                found[node.name] = result
            return result

    with torch.inference_mode():
        Recorder(graph.module()).run(*inputs)
    # torch.fx gives inputs other names where theirs mean something in Python, as "input" does.
    given = dict(zip(graph.graphs["forward"].inputs, inputs, strict=True))
    return found | {name: given[name] for name in names if name in given}


def signature(quantized: QuantizedModel) -> str:
    """Return text that is the same for models that differ in names and numbers alone, not in what is computed."""
    graph = quantized.graph.graphs["forward"]
    order = {name: index for index, name in enumerate([*graph.inputs, *graph.by_name])}

    def described(reference: Value | Parameter) -> tuple:
        if isinstance(reference, Value):
            return "value", order[reference.name], *(graph.shapes.get(reference.name) or ())
        weight, real = quantized.weights.get(reference.name), quantized.graph.parameters[reference.name]
        return "weight", str(weight.format) if weight else real.dtype, *real.shape

    calls = [
        (
            node.operator,
            map_references(node.arguments, described),
            map_references(tuple(node.keywords.items()), described),
        )
        for node in graph.nodes
    ]
    edges = [
        (order[edge[1]], edge[2], quantizer.mode, str(quantizer.format), quantizer.input_scale is None)
        for edge, quantizer in quantized.activations.items()
    ]
    return repr((calls, edges))


def values_read(node: Node) -> list[str]:
    """Return the names of all values that a node takes."""
    return [one.name for one in references((node.arguments, tuple(node.keywords.values()))) if isinstance(one, Value)]


def _results(source: Graph, node: Node) -> list[Node]:
    """Return the calls that take the first of several results."""
    users = [user for user, position in source.users(node.name) if user.operator == _RESULT and position == 0]
    return users[:1]


def _dynamic_axes(source: Graph, value: str) -> dict[int, str]:
    """Return the axes of a value that look as if they vary with an input's: those as long as one of its."""
    open_sizes = {
        source.shapes[name][axis]
        for name, axes in zip(source.inputs, source.dynamic_axes, strict=True)
        for axis in axes
    }
    return {axis: f"size_{size}" for axis, size in enumerate(source.shapes[value]) if size in open_sizes}
