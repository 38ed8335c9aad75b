"""The float graph, its tables, and what they mean together.

A :class:`FloatGraph` is a model as plain data: calls of ATen operators, by name, over one namespace of parameters. A
:class:`QuantizedModel` is a float graph and tables: quantized weights, replaced floats, activation quantizers. Methods
fill the tables and know no runtime; backends read them and know no method; :func:`simulate` is what they mean.
"""

import copy
import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, fx

from quant.execution import build_module, export, rename, trace
from quant.nodes import (
    ATTENTION,
    LSTM,
    QUANTIZABLE,
    Graph,
    Node,
    Operator,
    Parameter,
    Value,
    data_of,
    operator_of,
    references,
    transposed_groups,
    weights_of,
)
from quant.scheme import NumberFormat, Scheme
from quant.tensor import QuantizedTensor, block_extremes, expand, scale_and_zero_point

Edge = tuple[str, str, int | str]
"""One argument of one node of one graph: (graph, node, position), or a name where an operator has inner inputs, as the
``x`` and ``h`` of an LSTM and the probabilities ``p`` of an attention."""

_ROUNDING = 1e-7
_BILINEAR = "aten.bilinear.default"
_RECURRENT = ("aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input")


@dataclass(frozen=True)
class FloatGraph:
    """A float model as data. ``examples`` holds example inputs of each graph, with a batch of two."""

    graphs: dict[str, Graph]
    parameters: dict[str, Tensor]
    examples: dict[str, tuple[Tensor, ...]]

    @cached_property
    def weights_sha256(self) -> str:
        """Digest of the names, shapes and values of all parameters."""
        digest = hashlib.sha256()
        for name, value in sorted(self.parameters.items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def parameter_count(self) -> int:
        return sum(value.numel() for value in self.parameters.values() if value.is_floating_point())

    def consumers(self, parameter: str) -> list[Edge]:
        """Return every argument, of any operator, that takes ``parameter``."""
        return self._consumers.get(parameter, [])

    @cached_property
    def _consumers(self) -> dict[str, list[Edge]]:
        found: dict[str, list[Edge]] = {}
        for graph_name, graph in self.graphs.items():
            for node in graph.nodes:
                for position, argument in enumerate(node.arguments):
                    for reference in references(argument):
                        if isinstance(reference, Parameter):
                            found.setdefault(reference.name, []).append((graph_name, node.name, position))
        return found

    def node(self, edge: Edge) -> Node:
        return self.graphs[edge[0]].by_name[edge[1]]

    def quantizable(self) -> dict[str, list[tuple[Edge, Operator]]]:
        """Return the parameters the tables can express, each with the operators that take it as their weight.

        A parameter that is sliced or computed with anywhere stays float.
        """
        found = {}
        for parameter in self.parameters:
            edges = self.consumers(parameter)
            consumers = [(edge, operator_of(self.node(edge), edge[2], parameter)) for edge in edges]
            if consumers and all(operator for _, operator in consumers):
                found[parameter] = consumers
        return found

    def channel_block(self, parameter: str) -> tuple[int, ...]:
        """Return the block that one output channel makes of the weight ``parameter``."""
        shape = tuple(self.parameters[parameter].shape)
        node = self.node(self.consumers(parameter)[0])
        groups = transposed_groups(node)
        return (1, *shape[1:]) if groups is None else (shape[0] // groups, 1, *shape[2:])

    def macs(self, graph: str, node: Node) -> int:
        """Return the multiply-accumulates of ``node`` on the example inputs, per sample of the batch."""
        shapes, batch = self.graphs[graph].shapes, self.examples[graph][0].shape[0]
        if node.operator == LSTM or node.operator in _RECURRENT:
            steps = torch.Size(shapes[node.arguments[0].name][:-1]).numel()
            named = weights_of(node) if node.operator == LSTM else references(node.arguments)
            weights = (self.parameters[one.name] for one in named if isinstance(one, Parameter))
            return steps * sum(weight.numel() for weight in weights if weight.ndim == 2) // batch
        output = shapes.get(node.name)
        return _multiply_accumulates(node, output, shapes, self.parameters) // batch if output else 0

    def module(self, graph: str = "forward", parameters: dict[str, Tensor] | None = None) -> fx.GraphModule:
        """Return the graph as a torch module, with some parameters replaced."""
        return build_module(self.graphs[graph], {**self.parameters, **(parameters or {})})

    def export(self, graph: str = "forward") -> torch.export.ExportedProgram:
        """Return the graph as an exported program whose node and parameter names are those of this graph.

        Raises:
            RuntimeError: exporting changed the operators, so that names could not be matched.
        """
        return rename(export(*self._exportable(graph)), self.graphs[graph])

    def trace(self, graph: str = "forward") -> torch.export.ExportedProgram:
        """Return what :meth:`export` does, sooner, for exporters that decompose a program themselves."""
        return rename(trace(*self._exportable(graph)), self.graphs[graph])

    def _exportable(self, graph: str) -> tuple[fx.GraphModule, tuple[Tensor, ...], tuple[dict[int, str], ...]]:
        return self.module(graph), self.examples[graph], self.graphs[graph].dynamic_axes


@dataclass(frozen=True)
class ActivationQuantizer:
    """How the value that feeds one argument is quantized.

    ``input_scale`` (float32, one per channel of the last axis) multiplies the value first. ``scale`` (float32) and
    ``zero_point`` (uint8) are fixed in static mode and found at run time in dynamic mode.
    """

    mode: Literal["static", "dynamic", "none"]
    format: NumberFormat | None = None
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    input_scale: Tensor | None = None

    def same_as(self, other: "ActivationQuantizer") -> bool:
        """Whether both map every value to the same codes, so that one value needs to be quantized only once."""
        tensors = ((getattr(self, name), getattr(other, name)) for name in ("scale", "zero_point", "input_scale"))
        return (self.mode, self.format) == (other.mode, other.format) and all(_equal(a, b) for a, b in tensors)

    def __call__(self, values: Tensor) -> Tensor:
        """Return ``values`` (float, any shape) scaled, quantized and dequantized."""
        if self.input_scale is not None:
            values = values * self.input_scale
        if self.mode == "none":
            return values
        scale, zero_point = (self.scale, self.zero_point) if self.mode == "static" else self.dynamic_range(values)
        offset = 0 if zero_point is None else zero_point.float()
        codes = (values / scale).round_().add_(offset).clamp_(self.format.lowest, self.format.highest)
        return (codes - offset) * scale

    def dynamic_range(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scale and zero point from the extremes of ``values``: per row or group of the last axis, or of all."""
        if self.format.granularity == "group":
            return self._group_range(values)
        if self.format.granularity == "token":
            return scale_and_zero_point(values.amin(-1, keepdim=True), values.amax(-1, keepdim=True), self.format)
        return scale_and_zero_point(values.amin(), values.amax(), self.format)

    def _group_range(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        block = (*[1] * (values.ndim - 1), min(self.format.group_size, values.shape[-1]))
        per_group = scale_and_zero_point(*block_extremes(values, block), self.format)
        return tuple(None if part is None else expand(part, block, values.shape) for part in per_group)


@dataclass(frozen=True)
class QuantizedModel:
    """A float graph and its tables.

    weights      quantized parameters; tied weights are one entry with several consumers
    floats       parameters that stay float but change value or type (bias correction, half precision)
    activations  quantizers on the arguments of nodes
    recipe       how the tables were made: method, its settings, plain JSON
    """

    graph: FloatGraph
    scheme: Scheme
    weights: dict[str, QuantizedTensor] = field(default_factory=dict)
    floats: dict[str, Tensor] = field(default_factory=dict)
    activations: dict[Edge, ActivationQuantizer] = field(default_factory=dict)
    recipe: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [name for name in (*self.weights, *self.floats) if name not in self.graph.parameters]
        unknown += [edge for edge in self.activations if edge[1] not in self.graph.graphs[edge[0]].by_name]
        if unknown:
            raise ValueError(f"table entry {unknown[0]!r} has no target in the graph: was it made for another model?")

    @property
    def bits_per_weight(self) -> float:
        """All bits the parameters take, packed, over the number of parameters."""
        bits = sum(weight.nbits for weight in self.weights.values())
        for name, value in self.graph.parameters.items():
            if name not in self.weights and value.is_floating_point():
                bits += 8 * value.numel() * self.floats.get(name, value).element_size()
        return bits / self.graph.parameter_count

    @property
    def parameters_quantized(self) -> float:
        """Share of all parameters that are quantized."""
        return sum(weight.codes.numel() for weight in self.weights.values()) / self.graph.parameter_count

    def left_float(self) -> list[str]:
        """Return the matrices and kernels that stayed float: those the tables cannot express or the method left."""
        parameters = self.graph.parameters.items()
        return [name for name, value in parameters if value.ndim > 1 and name not in self.weights]

    def real_parameters(self) -> dict[str, Tensor]:
        """Return all parameters as float32, as the tables have them."""
        replaced = {name: value.float() for name, value in self.floats.items()}
        dequantized = {name: weight.dequantize() for name, weight in self.weights.items()}
        return {**self.graph.parameters, **replaced, **dequantized}


def simulate(quantized: QuantizedModel, graph: str = "forward") -> fx.GraphModule:
    """Return what the tables mean, as a torch module: dequantized weights, fake-quantized activations, float32."""
    source = quantized.graph.graphs[graph]
    edges = {edge[1:]: quantizer for quantizer, shared in shared_quantizers(quantized, graph) for edge in shared}
    return build_module(source, quantized.real_parameters(), edges)


def simulate_perturbed(quantized: QuantizedModel) -> fx.GraphModule:
    """Return the simulation of ``forward`` with every float parameter changed by about one rounding of float32.

    Where activations are quantized, a value near the border of two codes then falls to the other side: the distance of
    its outputs to the simulation's is what two correct implementations may differ by.
    """
    module = copy.deepcopy(simulate(quantized))  # its float parameters are the graph's own
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1 + _ROUNDING * torch.randn(parameter.shape, generator=generator))
    return module


def shared_quantizers(
    quantized: QuantizedModel, graph: str = "forward"
) -> list[tuple[ActivationQuantizer, list[Edge]]]:
    """Return the activation quantizers of a graph, each with all the edges of one value that share it."""
    groups: dict[str, list[tuple[ActivationQuantizer, list[Edge]]]] = {}
    for edge, quantizer in quantized.activations.items():
        if edge[0] != graph:
            continue
        value = data_of(quantized.graph.node(edge), edge[2]).name
        for known, edges in groups.setdefault(value, []):
            if known.same_as(quantizer):
                edges.append(edge)
                break
        else:
            groups[value].append((quantizer, [edge]))
    return [group for of_value in groups.values() for group in of_value]


def _multiply_accumulates(node: Node, output: list[int], shapes: dict, parameters: dict[str, Tensor]) -> int:
    count = torch.Size(output).numel()
    first = node.arguments[0] if node.arguments else None
    data = shapes.get(first.name) if isinstance(first, Value) else None
    operator = QUANTIZABLE.get(node.operator)
    if operator and operator.kind != "embedding":
        weight = node.arguments[operator.weight]
        shape = parameters[weight.name].shape if isinstance(weight, Parameter) else shapes[weight.name]
        per_element = torch.Size(shape[1:]).numel()
        return per_element * (count if transposed_groups(node) is None else torch.Size(data).numel())
    if node.operator.split(".")[1] in ("matmul", "bmm", "mm", "addmm") and data:
        return count * data[-1]
    if node.operator == _BILINEAR and isinstance(node.arguments[2], Parameter):
        return count * torch.Size(parameters[node.arguments[2].name].shape[1:]).numel()
    if node.operator == ATTENTION:
        keys = shapes[node.arguments[1].name]
        return torch.Size(data).numel() * keys[-2] * 2
    return 0


def _equal(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)
