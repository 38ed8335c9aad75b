"""Calls of operators as plain data: what a float graph is made of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    """One call. Arguments are nested tuples of values, parameters, numbers, text, None and torch dtypes."""

    name: str
    operator: str
    arguments: tuple
    keywords: dict[str, object]


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
    """Where a quantizable operator takes its data and its weight."""

    kind: Literal["linear", "convolution", "embedding"]
    data: int
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
RESIDUAL = {"aten.add.Tensor"}


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
