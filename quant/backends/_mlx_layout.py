"""A float graph rewritten for MLX's channels-last convolutions.

MLX keeps channels in the last axis, ATen in axis 1. Transposing around every convolution would copy each activation
twice, so channels-last is carried on through all operators that can work in either layout (elementwise ones,
reductions, concatenations ...) and left only where an operator needs ATen's own order: a convolutional net transposes
at its borders. Conversions become nodes of their own, and what names an axis is renumbered.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from quant.backends._mlx_operators import ELEMENTWISE
from quant.backends._mlx_spatial import CONVOLUTIONS, SPATIAL
from quant.nodes import Graph, Node, Parameter, Value, map_references, references, transposed_groups

CHANNELS_LAST, CHANNELS_FIRST, ARRANGE = "mlx.channels_last", "mlx.channels_first", "mlx.arrange"

_REDUCTIONS = {
    "aten.amax.default": 2,
    "aten.amin.default": 2,
    "aten.linalg_vector_norm.default": 3,
    "aten.mean.dim": 2,
    "aten.sum.dim_IntList": 2,
}
"""Operators that reduce the axes given just before the position of ``keepdim``, which is what is listed."""

_WITH_AXIS = {
    "aten.cat.default": 1,
    "aten.chunk.default": 2,
    "aten.log_softmax.int": 1,
    "aten.slice.Tensor": 1,
    "aten.softmax.int": 1,
    "aten.split.Tensor": 2,
    "aten.split_with_sizes.default": 2,
    "aten.sym_size.int": 1,
}
"""Operators that keep the layout of their input, and the position of the axis they work along."""

_PADDING = {"aten.constant_pad_nd.default", "aten.pad.default"}


@dataclass(frozen=True)
class Layout:
    """A graph in MLX's layout. Values and argument positions keep their names and numbers.

    arrangements   parameter -> groups of the transposed convolution (0 for an ordinary one) whose weight it is: its
                   axes are those of :func:`quant.backends._mlx_weights.arrange`
    channels_last  the values whose channels are in the last axis
    """

    graph: Graph
    arrangements: dict[str, int]
    channels_last: frozenset[str]


def channels_last(graph: Graph, ranks: dict[str, int]) -> Layout:
    """Return ``graph`` with convolutions channels-last; ``ranks`` is the number of dimensions of each parameter."""
    return _Rewriter(graph, ranks).rewrite()


def moved(axis: int, rank: int) -> int:
    """Return where an axis of an ATen tensor (negative counts from the end) lies in channels-last."""
    axis %= rank
    return (0, rank - 1)[axis] if axis < 2 else axis - 1


class _Rewriter:
    def __init__(self, graph: Graph, ranks: dict[str, int]) -> None:
        self._graph, self._ranks = graph, ranks
        self._nodes: list[Node] = []
        self._last: set[str] = set()
        self._converted: dict[tuple[object, ...], Value] = {}
        self._arrangements = _arrangements(graph)

    def rewrite(self) -> Layout:
        for node in self._graph.nodes:
            self._nodes.append(self._rule(node)(node))
        outputs = tuple(self._as_first(Value(name)).name for name in self._graph.outputs)
        graph = Graph(self._graph.inputs, tuple(self._nodes), outputs, self._graph.dynamic_axes, self._graph.shapes)
        return Layout(graph, self._arrangements, frozenset(self._last))

    def _rule(self, node: Node) -> Callable[[Node], Node]:
        if node.operator in SPATIAL:
            return self._spatial
        if node.operator in ELEMENTWISE:
            return self._elementwise
        if not any(reference.name in self._last for reference in references(node.arguments)):
            return self._plain
        if node.operator in _REDUCTIONS and len(node.arguments) >= _REDUCTIONS[node.operator]:
            return self._reduction
        if node.operator in _WITH_AXIS and len(node.arguments) > _WITH_AXIS[node.operator]:
            return self._along_axis
        if node.operator in _PADDING:
            return self._padding
        return self._item if node.operator == "_operator.getitem" else self._plain

    def _plain(self, node: Node) -> Node:
        return _edited(node, map_references(node.arguments, self._as_first), self._as_first)

    def _spatial(self, node: Node) -> Node:
        data, *rest = node.arguments
        rank = self._rank(data)
        if rank < 3:
            return self._plain(node)
        if node.operator in CONVOLUTIONS:
            rest[0] = self._arranged(rest[0], transposed_groups(node) or 0)
        self._last.add(node.name)
        return _edited(node, (self._as_last(data, rank), *map_references(tuple(rest), self._as_first)), self._as_first)

    def _elementwise(self, node: Node) -> Node:
        operands = [*references((node.arguments, tuple(node.keywords.values())))]
        last = [operand for operand in operands if operand.name in self._last]
        rank = len(self._graph.shapes.get(node.name) or ())
        if not last or any(self._rank(operand) != rank for operand in last):
            return self._plain(node)
        self._last.add(node.name)

        def convert(operand: Value | Parameter) -> Value | Parameter:
            return self._as_last(operand, rank) if self._rank(operand) else operand

        return _edited(node, map_references(node.arguments, convert), convert)

    def _reduction(self, node: Node) -> Node:
        position = _REDUCTIONS[node.operator]
        data, axes = node.arguments[0], node.arguments[position - 1]
        rank = self._rank(data)
        axes = tuple(range(rank)) if axes in (None, ()) else (axes,) if isinstance(axes, int) else axes
        keeps = len(node.arguments) > position and node.arguments[position]
        reduced = {axis % rank for axis in axes}
        if not keeps and 0 in reduced:
            return self._plain(node)
        if keeps or (1 not in reduced and rank - len(reduced) > 2):
            self._last.add(node.name)
        arguments = list(node.arguments)
        arguments[position - 1] = tuple(moved(axis, rank) for axis in axes)
        return _edited(node, tuple(arguments))

    def _along_axis(self, node: Node) -> Node:
        position = _WITH_AXIS[node.operator]
        data = next(references(node.arguments))
        rank = self._rank(data)
        arguments = list(map_references(node.arguments[:1], lambda operand: self._as_last(operand, rank)))
        arguments += node.arguments[1:]
        arguments[position] = moved(node.arguments[position], rank)
        if node.operator != "aten.sym_size.int":
            self._last.add(node.name)
        return _edited(node, tuple(arguments))

    def _padding(self, node: Node) -> Node:
        data, pads, *rest = node.arguments
        rank = self._rank(data)
        pairs = {rank - 1 - i // 2: pads[i : i + 2] for i in range(0, len(pads), 2)}
        ordered = sorted(range(rank), key=lambda axis: -moved(axis, rank))
        flat = tuple(size for axis in ordered for size in pairs.get(axis, (0, 0)))
        self._last.add(node.name)
        return _edited(node, (data, flat, *rest))

    def _item(self, node: Node) -> Node:
        self._last.add(node.name)
        return node

    def _rank(self, operand: object) -> int:
        if isinstance(operand, Parameter):
            return self._ranks[operand.name]
        return len(self._graph.shapes.get(operand.name) or ()) if isinstance(operand, Value) else 0

    def _as_last(self, operand: Value | Parameter, rank: int) -> Value:
        if operand.name in self._last:
            return operand
        return self._convert(CHANNELS_LAST, operand, rank)

    def _as_first(self, operand: Value | Parameter) -> Value | Parameter:
        return self._convert(CHANNELS_FIRST, operand) if operand.name in self._last else operand

    def _arranged(self, weight: Value | Parameter, groups: int) -> Value | Parameter:
        if isinstance(weight, Parameter) and weight.name in self._arrangements:
            return weight
        return self._convert(ARRANGE, self._as_first(weight), groups)

    def _convert(self, operator: str, operand: Value | Parameter, *rest: int) -> Value:
        key = (operator, operand, *rest)
        if key not in self._converted:
            name = f"{operator}_{len(self._converted)}"
            self._nodes.append(Node(name, operator, (operand, *rest), {}))
            self._converted[key] = Value(name)
            if operator == CHANNELS_LAST:
                self._last.add(name)
        return self._converted[key]


def _edited(
    node: Node, arguments: tuple, convert: Callable[[Value | Parameter], object] = lambda operand: operand
) -> Node:
    keywords = {key: map_references(value, convert) for key, value in node.keywords.items()}
    return replace(node, arguments=arguments, keywords=keywords)


def _arrangements(graph: Graph) -> dict[str, int]:
    """Return the parameters that are weights of convolutions of one kind and nothing else."""
    uses: dict[str, list[int | None]] = defaultdict(list)
    for node in graph.nodes:
        weighted = node.operator in CONVOLUTIONS
        for position, argument in enumerate((*node.arguments, *node.keywords.values())):
            kind = transposed_groups(node) or 0 if weighted and position == 1 else None
            for name in _parameters(argument):
                uses[name].append(kind)
    return {name: kinds[0] for name, kinds in uses.items() if kinds[0] is not None and len(set(kinds)) == 1}


def _parameters(argument: object) -> Iterable[str]:
    return (reference.name for reference in references(argument) if isinstance(reference, Parameter))
