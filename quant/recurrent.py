"""LSTMs: taken apart into single layers, run step by step, and what their recurrent weights multiply with.

Hochreiter & Schmidhuber, "Long Short-Term Memory", 1997, with the forget gate of Gers et al., 2000, as
``torch.nn.LSTM`` computes it: gates in the order input, forget, cell, output.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._decomp import decomposition_table

from quant.nodes import LSTM, Graph, Node, Parameter, Value, lstm_parameters, map_references

_OPERANDS, _LAYERS, _DROPOUT, _BIDIRECTIONAL = 3, 4, 5, 7
_RESULTS = 3


@contextmanager
def traced_as_one() -> Iterator[None]:
    """Have torch trace an LSTM by the shapes of its results.

    It would otherwise trace every step of the example, a minute for long ones, and fix the length of sequences to its.
    """
    operator = torch.ops.aten.lstm.input
    # Torch looks in both: when it dispatches in Python, and when it computes with tensors that have no values.
    kernels, decomposition = dict(operator.py_kernels), decomposition_table[operator]
    operator.py_kernels.update(dict.fromkeys(kernels, _results_like))
    decomposition_table[operator] = _results_like
    operator._dispatch_cache.clear()
    try:
        yield
    finally:
        operator.py_kernels.update(kernels)
        decomposition_table[operator] = decomposition
        operator._dispatch_cache.clear()


def _results_like(
    data: Tensor, states: Sequence[Tensor], parameters: Sequence[Tensor], has_biases: bool, layers: int,
    dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return tensors without values in the shapes of what ``aten.lstm.input`` returns."""
    width = states[0].shape[-1] * (2 if bidirectional else 1)
    return data.new_empty((*data.shape[:-1], width)), *(torch.empty_like(state) for state in states)


def one_layer_each(graph: Graph) -> Graph:
    """Return ``graph`` with every LSTM of several layers as LSTMs of one layer.

    Every layer then reads a value of the graph, which can be observed and quantized, and is what runtimes have.
    """
    nodes: list[Node] = []
    results: dict[str, list[Value]] = {}
    followed: dict[str, Value] = {}

    def follow(reference: Value | Parameter) -> Value | Parameter:
        return followed.get(reference.name, reference) if isinstance(reference, Value) else reference

    for node in graph.nodes:
        keywords = {key: map_references(value, follow) for key, value in node.keywords.items()}
        node = replace(node, arguments=map_references(node.arguments, follow), keywords=keywords)
        if node.operator == LSTM and node.arguments[_LAYERS] > 1:
            layers, results[node.name] = _layers(node)
            nodes += layers
        elif node.operator == "_operator.getitem" and node.arguments[0].name in results:
            followed[node.name] = results[node.arguments[0].name][node.arguments[1]]
        else:
            nodes.append(node)
    outputs = tuple(follow(Value(name)).name for name in graph.outputs)
    return replace(graph, nodes=tuple(nodes), outputs=outputs)


def _layers(node: Node) -> tuple[list[Node], list[Value]]:
    """Return the calls that are the layers of an LSTM, and its results: outputs, and last states of all layers."""
    data, states, parameters, *rest = node.arguments
    count, directions = node.arguments[_LAYERS], 2 if node.arguments[_BIDIRECTIONAL] else 1
    each = len(parameters) // count
    rest[_LAYERS - _OPERANDS], rest[_DROPOUT - _OPERANDS] = 1, 0.0
    nodes, last = [], []

    def add(name: str, operator: str, *arguments: object) -> Value:
        nodes.append(Node(f"{node.name}_{name}", operator, arguments, {}, node.source))
        return Value(nodes[-1].name)

    for layer in range(count):
        begin, end = directions * layer, directions * (layer + 1)
        own = tuple(add(f"s{i}_{layer}", "aten.slice.Tensor", state, 0, begin, end) for i, state in enumerate(states))
        weights = parameters[each * layer : each * (layer + 1)]
        made = add(f"layer_{layer}", LSTM, data, own, weights, *rest)
        data, *final = (add(f"r{i}_{layer}", "_operator.getitem", made, i) for i in range(_RESULTS))
        last.append(final)
    states = [add(f"last_{i}", "aten.cat.default", tuple(states)) for i, states in enumerate(zip(*last, strict=True))]
    return nodes, [data, *states]


class SteppedLSTM(nn.Module):
    """An LSTM of one layer, called as ``aten.lstm.input``, whose hidden state passes ``on_hidden`` before each step."""

    def __init__(self, on_hidden: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.on_hidden = on_hidden

    def forward(
        self, data: Tensor, states: tuple, parameters: tuple, has_biases: bool, layers: int, dropout: float,
        train: bool, bidirectional: bool, batch_first: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        steps = data.transpose(0, 1) if batch_first else data
        each = len(parameters) // (2 if bidirectional else 1)
        found = []
        for direction, first in enumerate(range(0, len(parameters), each)):
            state = (states[0][direction], states[1][direction])
            found.append(self._run(steps, state, parameters[first : first + each], bool(direction)))
        outputs, hidden, cells = zip(*found, strict=True)
        joined = torch.cat(outputs, -1)
        return (joined.transpose(0, 1) if batch_first else joined), torch.stack(hidden), torch.stack(cells)

    def _run(
        self, steps: Tensor, state: tuple[Tensor, Tensor], parameters: tuple, backwards: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs [t, n, hidden] and the last state of one direction over steps [t, n, in]."""
        from_data, from_hidden, *biases = parameters
        given = F.linear(steps, from_data, sum(biases) if biases else None)
        (hidden, cell), outputs = state, []
        for gates in given.flip(0) if backwards else given:
            gates = gates + F.linear(self.on_hidden(hidden), from_hidden)
            enter, keep, candidate, leave = gates.chunk(4, -1)
            cell = keep.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
            hidden = leave.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return torch.stack(outputs[::-1] if backwards else outputs), hidden, cell


def hidden_before(node: Node, output: Tensor, initial: Tensor, parameter: str) -> Tensor:
    """Return the hidden state before every step, which the recurrent weight ``parameter`` multiplies with.

    ``output`` is what the LSTM puts out, [..., directions x hidden]; ``initial`` its first state, [directions, n,
    hidden]. The result has the shape of one direction's output.
    """
    directions = lstm_parameters(node)
    direction = next(i for i, own in enumerate(directions) if Parameter(parameter) in own)
    axis = 1 if node.arguments[8] else 0
    states, first = output.chunk(len(directions), -1)[direction], initial[direction].unsqueeze(axis)
    length = output.shape[axis]
    if direction:
        return torch.cat([states.narrow(axis, 1, length - 1), first], axis)
    return torch.cat([first, states.narrow(axis, 0, length - 1)], axis)
