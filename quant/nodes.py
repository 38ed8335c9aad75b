"""Calls of operators as plain data: what a float graph is made of."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal


@dataclass(frozen=True)
class Value:
    """A reference to an input of the graph or to the result of a node."""

    name: str


@dataclass(frozen=True)
class Parameter:
    """A reference to a parameter or constant by its canonical name."""

    name: str


@dataclass(frozen=True)
class Node:
    """One call. Arguments are nested tuples of values, parameters, numbers, text, None and torch dtypes.

    ``source`` is the line of the model's code that makes the call, where it is known. It is told to people, and is
    neither saved nor compared.
    """

    name: str
    operator: str
    arguments: tuple
    keywords: dict[str, object]
    source: str | None = field(default=None, compare=False, repr=False)

    @property
    def place(self) -> str:
        """Where the call is, for a sentence about it."""
        return f"node {self.name!r}" + (f", {self.source}" if self.source else "")


@dataclass(frozen=True)
class Graph:
    """One entry point of a model: ``forward``, or ``prefill`` and ``decode`` of a language model.

    ``shapes`` holds, for every value, its shape on the example inputs (None for a scalar size).
    ``dynamic_axes`` names, for every input, its axes of variable size.
    """

    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    dynamic_axes: tuple[dict[int, str], ...]
    shapes: dict[str, list[int] | None]

    @cached_property
    def by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def named_in(self, text: str) -> Node | None:
        """Return the first node whose name is a word of ``text``, as a runtime's complaint about it has it."""
        return next((self.by_name[word] for word in re.findall(r"\w+", text) if word in self.by_name), None)

    def users(self, value: str) -> list[tuple[Node, int]]:
        """Return the (node, position) pairs that take ``value`` as a direct argument."""
        return [
            (node, position)
            for node in self.nodes
            for position, argument in enumerate(node.arguments)
            if argument == Value(value)
        ]


@dataclass(frozen=True)
class Operator:
    """Where a quantizable operator takes its data and its weight; the data of an LSTM are called ``x`` and ``h``."""

    kind: Literal["linear", "convolution", "embedding", "recurrent"]
    data: int | str
    weight: int


_CONVOLUTION = Operator("convolution", data=0, weight=1)
QUANTIZABLE = {
    "aten.linear.default": Operator("linear", data=0, weight=1),
    "aten.conv1d.default": _CONVOLUTION,
    "aten.conv2d.default": _CONVOLUTION,
    "aten.conv_transpose1d.default": _CONVOLUTION,
    "aten.conv_transpose2d.input": _CONVOLUTION,
    "aten.convolution.default": _CONVOLUTION,
    "aten.embedding.default": Operator("embedding", data=1, weight=0),
}
LSTM = "aten.lstm.input"
"""Of one layer: capturing takes layers apart. Its weights lie together in one argument."""
_LSTM_DATA = 0
_LSTM_WEIGHTS = 2
_LSTM_OPERATORS = {data: Operator("recurrent", data=data, weight=_LSTM_WEIGHTS) for data in ("x", "h")}
ATTENTION = "aten.scaled_dot_product_attention.default"
"""Reads query, key and value at positions 0 to 2; its probabilities, which exist inside it alone, are called ``p``."""
RESIDUAL = {"aten.add.Tensor"}


def operator_of(node: Node, position: int, parameter: str) -> Operator | None:
    """Return the operator whose weight ``parameter`` is where ``node`` takes it at ``position``; None if it is none."""
    if node.operator != LSTM:
        operator = QUANTIZABLE.get(node.operator)
        return operator if operator and position == operator.weight else None
    if position != _LSTM_WEIGHTS or node.arguments[4] != 1:
        return None
    for direction in lstm_parameters(node):
        if len(direction) in (2, 4) and Parameter(parameter) in direction[:2]:
            return _LSTM_OPERATORS["x" if Parameter(parameter) == direction[0] else "h"]
    return None


def weights_of(node: Node) -> list[Parameter]:
    """Return the parameters that ``node`` takes as its weights."""
    if node.operator == LSTM:
        return [weight for direction in lstm_parameters(node) for weight in direction[:2]]
    operator = QUANTIZABLE.get(node.operator)
    weight = node.arguments[operator.weight] if operator else None
    return [weight] if isinstance(weight, Parameter) else []


def lstm_parameters(node: Node) -> list[tuple]:
    """Return for each direction of an LSTM of one layer its two weights and, if it has any, its two biases.

    weights [4 hidden, in] and [4 hidden, hidden], biases [4 hidden]; gates are in the order input, forget, cell, output
    """
    parameters, directions = node.arguments[_LSTM_WEIGHTS], 2 if node.arguments[7] else 1
    each = len(parameters) // directions
    return [parameters[first : first + each] for first in range(0, len(parameters), each)]


def data_of(node: Node, position: int | str) -> Value | Parameter:
    """Return what ``node`` takes at ``position``; what exists inside it alone, as the ``h`` of an LSTM, by a name."""
    if position in ("h", "p"):
        return Value(f"{node.name}.{position}")
    return node.arguments[_LSTM_DATA if position == "x" else position]


def map_references(argument: object, function: Callable[[Value | Parameter], object]) -> object:
    """Return ``argument`` with every reference in it replaced by ``function`` of it."""
    if isinstance(argument, Value | Parameter):
        return function(argument)
    if isinstance(argument, tuple):
        return tuple(map_references(item, function) for item in argument)
    return argument


def references(argument: object) -> Iterator[Value | Parameter]:
    if isinstance(argument, Value | Parameter):
        yield argument
    elif isinstance(argument, tuple):
        for item in argument:
            yield from references(item)


def transposed_groups(node: Node) -> int | None:
    """Return the groups of a transposed convolution, or None for any other node."""
    if node.operator.startswith("aten.conv_transpose"):
        return node.arguments[6] if len(node.arguments) > 6 else 1
    if node.operator == "aten.convolution.default" and node.arguments[6]:
        return node.arguments[8]
    return None
