"""A float graph as a function of ``mlx.core`` arrays: an interpreter over its nodes, with tables of operators."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch

from quant.backends import _mlx_layout as layout
from quant.backends._mlx_arrays import ARRAYS
from quant.backends._mlx_blas import mx
from quant.backends._mlx_operators import ELEMENTWISE, PRODUCTS
from quant.backends._mlx_recurrent import lstm
from quant.backends._mlx_spatial import SPATIAL
from quant.backends._mlx_weights import PackedWeight
from quant.execution import resolve
from quant.nodes import LSTM, Graph, Node, Parameter, Value, map_references

Weight = mx.array | PackedWeight
Quantizer = Callable[[mx.array], mx.array]

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}

_OTHER_DTYPES = {
    torch.float16: mx.float16,
    torch.bfloat16: mx.bfloat16,
    torch.bool: mx.bool_,
    torch.int64: mx.int64,
    torch.int32: mx.int32,
    torch.int16: mx.int16,
    torch.int8: mx.int8,
    torch.uint8: mx.uint8,
}
_LARGEST = {dtype: torch.finfo(getattr(torch, name)).max for name, dtype in DTYPES.items()}


def _channels_last(x: mx.array, rank: int) -> mx.array:
    return mx.moveaxis(x.reshape(*(1,) * (rank - x.ndim), *x.shape), 1, -1)


def arrange(weight: mx.array, groups: int) -> mx.array:
    """Do what :func:`quant.backends._mlx_weights.arrange` does, to a weight that is computed."""
    if groups:
        inputs, outputs, *kernel = weight.shape
        grouped = mx.moveaxis(weight.reshape(groups, inputs // groups, outputs, *kernel), 2, 1)
        weight = grouped.reshape(groups * outputs, inputs // groups, *kernel)
    return mx.moveaxis(weight, 1, -1)


_LAYOUT = {
    layout.CHANNELS_LAST: _channels_last,
    layout.CHANNELS_FIRST: lambda x: mx.moveaxis(x, -1, 1),
    layout.ARRANGE: arrange,
}
OPERATORS: dict[str, Callable] = {**ELEMENTWISE, **PRODUCTS, **ARRAYS, **SPATIAL, **_LAYOUT, LSTM: lstm}


class Program:
    """A graph in MLX's layout with its parameters, callable on arrays.

    ``quantizers`` maps (node, position) to what is done to that argument; where arguments take one value through the
    same quantizer it is computed once. At the position ``h`` of an LSTM it is done before every step, at ``p`` of an
    attention to its probabilities. Values are of ``dtype`` wherever the graph says float32.
    """

    def __init__(
        self,
        graph: Graph,
        parameters: Mapping[str, Weight],
        dtype: mx.Dtype = mx.float32,
        quantizers: Mapping[tuple[str, int | str], Quantizer] | None = None,
    ) -> None:
        self.graph = graph
        self._parameters, self._dtype, self._quantizers = parameters, dtype, quantizers or {}
        self._steps: list[_Step] = []
        self._edges: dict[tuple[str, int], Value] = {}
        for node in graph.nodes:
            self._add(node)

    def __call__(self, *inputs: mx.array) -> list[mx.array]:
        """Return the outputs, not computed yet: MLX computes when :func:`mx.eval` asks."""
        values = dict(self.run(*inputs))
        return [values[name] for name in self.graph.outputs]

    def run(self, *inputs: mx.array) -> Iterator[tuple[str, object]]:
        """Yield the name and the value of every input and node, in order."""
        values: dict[str, object] = {}
        for name, value in zip(self.graph.inputs, inputs, strict=True):
            values[name] = self._rounded(value)
            yield name, values[name]
        for step in self._steps:
            arguments, keywords = map_references((step.arguments, step.keywords), lambda value: values[value.name])
            values[step.name] = self._rounded(step.function(*arguments, **dict(keywords)))
            yield step.name, values[step.name]

    def _add(self, node: Node) -> None:
        arguments = [self._prepared(argument) for argument in node.arguments]
        for position, argument in enumerate(arguments):
            quantizer = self._quantizers.get((node.name, position))
            if quantizer is not None:
                arguments[position] = self._edge(argument, quantizer)
        if (node.name, "x") in self._quantizers:
            arguments[0] = self._edge(arguments[0], self._quantizers[node.name, "x"])
        keywords = tuple((key, self._prepared(value)) for key, value in node.keywords.items())
        if (node.name, "h") in self._quantizers:
            keywords += (("on_hidden", self._quantizers[node.name, "h"]),)
        if (node.name, "p") in self._quantizers:
            keywords += (("on_probabilities", self._quantizers[node.name, "p"]),)
        self._steps.append(_Step(node.name, function_of(node), tuple(arguments), keywords))

    def _edge(self, value: Value, quantizer: Quantizer) -> Value:
        key = (value.name, id(quantizer))
        if key not in self._edges:
            self._edges[key] = Value(f"mlx.edge_{len(self._edges)}")
            self._steps.append(_Step(self._edges[key].name, quantizer, (value,), ()))
        return self._edges[key]

    def _prepared(self, argument: object) -> object:
        """Return an argument with parameters and dtypes as MLX's."""
        match argument:
            case tuple():
                return tuple(self._prepared(item) for item in argument)
            case Parameter(name):
                return self._parameters[name]
            case torch.dtype():
                return _OTHER_DTYPES.get(argument, self._dtype)
            case float() if math.isfinite(argument):
                # Masks add the lowest float32; rounded to minus infinity, a product with zero would be NaN.
                return max(-_LARGEST[self._dtype], min(argument, _LARGEST[self._dtype]))
            case _:
                return argument

    def _rounded(self, value: object) -> object:
        if self._dtype != mx.float32 and isinstance(value, mx.array) and value.dtype == mx.float32:
            return value.astype(self._dtype)
        return value


def function_of(node: Node) -> Callable:
    """Return what computes a node.

    Raises:
        ValueError: no table holds its operator.
    """
    if node.operator in OPERATORS:
        return OPERATORS[node.operator]
    if node.operator.startswith(("_operator.", "math.", "torch.sym_")):
        return resolve(node.operator)
    raise ValueError(
        f"the mlx backend does not know the operator {node.operator!r} ({node.place}): "
        "add it to the tables of quant/backends/_mlx_operators.py."
    )


class _Step(NamedTuple):
    name: str
    function: Callable
    arguments: tuple
    keywords: tuple[tuple[str, object], ...]
