"""Cross-layer equalization: channels of one value rescaled so that one scale for the whole tensor fits them all.

A channel multiplied where it is made and divided where it is read leaves the float function as it was. Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", 2019 (arXiv:1906.04721) equalize the weights
of a pair of layers; weights with one scale per output channel need no help, so here the *activations* are equalized,
which have one scale per tensor, and what the division costs the weights that read them is weighed against it, as in
Xiao et al., "SmoothQuant", 2022 (arXiv:2211.10438).

Values that additions, poolings and ReLUs connect must be scaled alike: the linear bottlenecks of a whole stage of
MobileNetV2, with everything that reads them, are one group. A ReLU6 commutes with a scale only below its ceiling: a
channel that calibration sees at less than the ceiling over ``HEADROOM`` may be scaled as far as that, the others stay.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from quant.calibrate import Batch, Extremes, observe, require_finite
from quant.graph import FloatGraph
from quant.nodes import QUANTIZABLE, RESIDUAL, Graph, Node, Parameter, Value, references, transposed_groups

HEADROOM = 2.0
"""How far above its largest value in calibration a channel that was scaled up must still fit: under the ceiling of a
ReLU6, and into the range of its quantizer, because the channels of new data exceed those of calibration."""
_LARGEST_FACTOR = 64.0
_STRENGTHS = torch.linspace(0, 1, 21, dtype=torch.float64)
_RECTIFIERS = {"aten.relu.default"}
_CLAMPS = {"aten.hardtanh.default": (-1.0, 1.0), "aten.relu6.default": (0.0, 6.0), "aten.clamp.default": (None, None)}
"""Operators that cut values off, with the limits they have by default."""
_POOLINGS = {
    "aten.mean.dim",
    "aten.max_pool2d.default",
    "aten.avg_pool2d.default",
    "aten.adaptive_avg_pool2d.default",
}


@dataclass
class Group:
    """Values whose channels must be scaled alike, with the layers that make them and those that read them.

    axis      of each value: where its channels are
    ceilings  of each value that a clamp cuts off: the largest value that passes
    """

    axis: dict[str, int] = field(default_factory=dict)
    producers: list[Node] = field(default_factory=list)
    consumers: list[Node] = field(default_factory=list)
    ceilings: dict[str, float] = field(default_factory=dict)


def equalize(graph: FloatGraph, quantized: Sequence[str], batches: Sequence[Batch]) -> FloatGraph:
    """Return ``graph`` with parameters that compute the same and give the ``quantized`` values even channels.

    Args:
        quantized: the values of ``forward`` that will have one scale per tensor.
        batches: calibration data, which decides the factors.

    Raises:
        ValueError: there is no calibration data, or a value was NaN or infinite.
    """
    found = [group for group in groups(graph) if set(group.axis) & set(quantized)]
    statistics = {value: _Channels(axis) for group in found for value, axis in group.axis.items()}
    observe(graph, statistics, batches)
    for value, seen in statistics.items():
        require_finite(value, seen)
    parameters = dict(graph.parameters)
    for group in found:
        factors = _factors(parameters, group, {v: statistics[v] for v in group.axis}, quantized)
        for node in group.producers:
            parameters |= _scaled_outputs(node, parameters, factors)
        for node in group.consumers:
            parameters |= _scaled_inputs(node, parameters, 1 / factors)
    return replace(graph, parameters=parameters)


class _Channels(Extremes):
    """The extremes of each channel, and its mean square ``power``: float64 [channels]."""

    def __init__(self, axis: int) -> None:
        super().__init__(axis)
        self._squares, self._count = 0.0, 0

    def update(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        super().update(rows, low, high)
        self._squares = self._squares + rows.square().sum(1, dtype=torch.float64)
        self._count += rows.shape[1]

    @property
    def power(self) -> Tensor:
        return self._squares / self._count


def groups(graph: FloatGraph) -> Iterator[Group]:
    """Yield every group of values of ``forward`` whose channels may be scaled."""
    source, seen = graph.graphs["forward"], set()
    for node in source.nodes:
        if node.name in seen or not _is_scalable(graph, node):
            continue
        group = Group()
        complete = _gather(graph, group, node.name, _output_axis(source, node))
        seen |= set(group.axis)
        if complete:
            yield group


def _gather(graph: FloatGraph, group: Group, value: str, axis: int) -> bool:
    """Add ``value`` and all that must be scaled with it to ``group``; return whether all of it can be."""
    source = graph.graphs["forward"]
    pending, complete = [(value, axis)], True
    while pending:
        value, axis = pending.pop()
        if value in group.axis:
            complete &= group.axis[value] == axis
            continue
        group.axis[value] = axis
        maker, readers = source.by_name.get(value), _readers(source, value)
        if maker is None or readers is None or value in source.outputs:
            return False
        for node in (maker, *readers):
            if _is_scalable(graph, node):
                reads = node is not maker
                expected = _input_axis(source, node) if reads else _output_axis(source, node)
                complete &= axis == expected
                layers = group.consumers if reads else group.producers
                layers += [] if node in layers else [node]
                continue
            others = _scaled_alike(source, node, axis)
            if others is None:
                return False
            if node.operator in _CLAMPS:
                group.ceilings[node.arguments[0].name] = _limits(node)[1]
            pending += [(other, axis) for other in others]
    return complete


def _readers(source: Graph, value: str) -> list[Node] | None:
    """Return the nodes that take ``value`` as their data; None if one takes it in another way."""
    direct = {node.name for node, _ in source.users(value)}
    for node in source.nodes:
        inside = (node.arguments, tuple(node.keywords.values()))
        if node.name not in direct and any(reference == Value(value) for reference in references(inside)):
            return None
    for node, position in source.users(value):
        operator = QUANTIZABLE.get(node.operator)
        if operator and position != operator.data:
            return None
    return [node for node in source.nodes if node.name in direct]


def _is_scalable(graph: FloatGraph, node: Node) -> bool:
    """Whether the node is a linear layer or convolution with a weight and a bias of its own."""
    operator = QUANTIZABLE.get(node.operator)
    if operator is None or operator.kind == "embedding" or transposed_groups(node) is not None:
        return False
    own = [argument for argument in node.arguments[1:3] if argument is not None]
    return all(isinstance(each, Parameter) and len(graph.consumers(each.name)) == 1 for each in own)


def _scaled_alike(source: Graph, node: Node, axis: int) -> list[str] | None:
    """Return the values that a scale of channels passes between at ``node``; None if it does not pass."""
    data = node.arguments[0]
    if node.operator in RESIDUAL:
        operands = [argument for argument in node.arguments[:2] if isinstance(argument, Value)]
        same = all(source.shapes[operand.name] == source.shapes[node.name] for operand in operands)
        return [node.name, *(operand.name for operand in operands)] if same and len(operands) == 2 else None
    if node.operator in _CLAMPS and _limits(node)[0] != 0:
        return None
    if node.operator == "aten.mean.dim":
        rank = len(source.shapes[data.name])
        if any(dimension % rank <= axis for dimension in node.arguments[1] or range(rank)):
            return None
    elif node.operator in _POOLINGS and axis != 1:
        return None
    passes = node.operator in _POOLINGS | _RECTIFIERS or node.operator in _CLAMPS
    return [node.name, data.name] if passes else None


def _limits(node: Node) -> tuple[float | None, float]:
    low, high = (*node.arguments[1:3], *_CLAMPS[node.operator][len(node.arguments[1:3]) :])
    return low, float("inf") if high is None else high


def _factors(
    parameters: dict[str, Tensor], group: Group, statistics: dict[str, _Channels], quantized: Sequence[str]
) -> Tensor:
    """Return float64 [channels]: what to multiply each channel of the group by.

    Channels quieter than the loudest over ``HEADROOM`` are raised to that, all to the same power of the full way; the
    power is the one that adds least noise.
    """
    read = [statistics[value] for value in group.axis if value in quantized]
    extent = torch.stack([torch.maximum(-entry.low, entry.high) for entry in read]).amax(0).double()
    room = _room(group, statistics)
    movable = (room > 1) & (extent > 0)
    if not movable.any():
        return torch.ones_like(extent)
    full = (extent.max() / (HEADROOM * extent)).clamp(min=1, max=_LARGEST_FACTOR)
    candidates = [torch.where(movable, torch.minimum(full**strength, room), 1.0) for strength in _STRENGTHS]
    return min(candidates, key=lambda factors: _noise(parameters, group, read, factors))


def _room(group: Group, statistics: dict[str, _Channels]) -> Tensor:
    """Return float64 [channels]: how far each may be scaled up below all ceilings, with headroom."""
    rooms = [torch.full_like(next(iter(statistics.values())).low.double(), float("inf"))]
    for value, ceiling in group.ceilings.items():
        rooms.append(ceiling / (HEADROOM * statistics[value].high.double().clamp(min=0)))
    return torch.stack(rooms).amin(0)


def _noise(parameters: dict[str, Tensor], group: Group, ranged: list[_Channels], factors: Tensor) -> float:
    """Return what rounding to 8 bits adds to the variance of the outputs of the group's consumers, times 12.

    An activation step enters through every weight of its channel; a weight's step is that of its row, whose largest
    entry is now divided by the factor, and enters with the power of its channel.
    """
    power = torch.stack([entry.power for entry in ranged]).mean(0) * factors**2
    steps = [((factors * e.high).max() - (factors * e.low).min()).item() / 255 for e in ranged]
    activation_step = sum(step**2 for step in steps) / len(steps)
    total = 0.0
    for node in group.consumers:
        weight = _by_input(node, parameters[node.arguments[1].name].double())
        scaled = weight / factors.reshape(weight.shape[0], 1, -1, 1)
        weight_steps = scaled.abs().amax((2, 3)) / 127
        within = power.reshape(weight.shape[0], 1, -1).sum(2) * weight.shape[3]
        total += activation_step * scaled.square().sum().item() + (weight_steps**2 * within).sum().item()
    return total


def _by_input(node: Node, weight: Tensor) -> Tensor:
    """View a weight as [groups, outputs of a group, inputs of a group, kernel]."""
    groups = _groups(node)
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _groups(node: Node) -> int:
    position = 8 if node.operator == "aten.convolution.default" else 6
    return node.arguments[position] if len(node.arguments) > position else 1


def _scaled_outputs(node: Node, parameters: dict[str, Tensor], factors: Tensor) -> dict[str, Tensor]:
    own = [argument.name for argument in node.arguments[1:3] if argument is not None]
    return {
        name: (parameters[name].double() * factors.reshape(-1, *[1] * (parameters[name].ndim - 1))).float()
        for name in own
    }


def _scaled_inputs(node: Node, parameters: dict[str, Tensor], factors: Tensor) -> dict[str, Tensor]:
    name = node.arguments[1].name
    weight = _by_input(node, parameters[name].double())
    scaled = weight * factors.reshape(weight.shape[0], 1, -1, 1)
    return {name: scaled.reshape(parameters[name].shape).float()}


def _output_axis(source: Graph, node: Node) -> int:
    return len(source.shapes[node.name]) - 1 if QUANTIZABLE[node.operator].kind == "linear" else 1


def _input_axis(source: Graph, node: Node) -> int:
    operator = QUANTIZABLE[node.operator]
    return len(source.shapes[node.arguments[operator.data].name]) - 1 if operator.kind == "linear" else 1
