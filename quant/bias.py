"""Bias correction: taking out of every layer the mean of the error that quantization makes in its outputs.

Rounding errors of weights and activations do not average to zero over the data, least of all in a depthwise
convolution, whose outputs sum over few weights. Their mean per output channel can be subtracted by the bias at no cost
at run time. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019
(arXiv:1906.04721), section 4.2 and appendix D; here the means come from calibration data.

*Fast* takes the error that each layer adds by itself to the float model; *full* goes through the layers in order and
takes the error that has come together at each, everything before it being quantized and corrected already.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quant.calibrate import Batch, ChannelMean, as_tensors, observe, observe_edges
from quant.execution import build_module, resolve
from quant.graph import ActivationQuantizer, Edge, FloatGraph
from quant.nodes import QUANTIZABLE, Graph, Node, Parameter, references
from quant.progress import steps
from quant.tensor import QuantizedTensor

_HELD_BYTES = 256 * 2**20
"""How much of the quantized model's state full correction keeps between layers where recomputing would avoid it."""


def correct_fast(
    graph: FloatGraph,
    weights: Mapping[str, QuantizedTensor],
    activations: Mapping[Edge, ActivationQuantizer],
    batches: Sequence[Batch],
) -> dict[str, Tensor]:
    """Return the corrected biases (float32), by parameter: each layer's own error on the inputs of the float model.

    Args:
        weights, activations: the tables; layers of ``forward`` whose bias is their own are corrected.
        batches: calibration data.

    Raises:
        ValueError: there is no calibration data.
    """
    layers = _layers(graph, weights)
    errors = {}
    for node in layers:
        quantizer = activations.get(("forward", node.name, QUANTIZABLE[node.operator].data))
        errors[node.name] = _LayerError(graph, node, weights[node.arguments[1].name].dequantize(), quantizer)
    edges = {(node.name, QUANTIZABLE[node.operator].data): errors[node.name] for node in layers}
    observe_edges(graph, edges, batches)
    biases = {node.arguments[2].name: errors[node.name].mean for node in layers}
    return {name: (graph.parameters[name].double() + shift).float() for name, shift in biases.items()}


def correct_full(
    graph: FloatGraph,
    weights: Mapping[str, QuantizedTensor],
    activations: Mapping[Edge, ActivationQuantizer],
    batches: Sequence[Batch],
) -> dict[str, Tensor]:
    """Return the corrected biases (float32), by parameter: the error of each layer in the model corrected before it.

    Arguments and errors are those of :func:`correct_fast`. Between layers the live values of all samples are kept, but
    never more than the inputs or ``_HELD_BYTES`` take: past that, layers are computed again until they need less.
    """
    source, layers = graph.graphs["forward"], _layers(graph, weights)
    means = {node.name: ChannelMean(_channel_axis(source, node)) for node in layers}
    observe(graph, means, batches)
    run = _QuantizedRun(graph, weights, activations, batches)
    for node in steps(layers, "layer"):
        run.correct(node, means[node.name].mean)
    return {node.arguments[2].name: run.parameters[node.arguments[2].name] for node in layers}


class _QuantizedRun:
    """The quantized model on its way through the layers: the values alive at ``start``, for each batch."""

    def __init__(
        self,
        graph: FloatGraph,
        weights: Mapping[str, QuantizedTensor],
        activations: Mapping[Edge, ActivationQuantizer],
        batches: Sequence[Batch],
    ) -> None:
        self._source = graph.graphs["forward"]
        self.parameters = {**graph.parameters, **{name: weight.dequantize() for name, weight in weights.items()}}
        self._edges = {edge[1:]: quantizer for edge, quantizer in activations.items() if edge[0] == "forward"}
        self._positions = {node.name: position for position, node in enumerate(self._source.nodes)}
        self._start, self._live = 0, self._source.inputs
        self._states = [list(as_tensors(batch)) for batch in batches]
        self._samples = sum(state[0].shape[0] for state in self._states)
        self._limit = max(_HELD_BYTES, sum(value.nbytes for state in self._states for value in state))

    def correct(self, node: Node, expected: Tensor) -> None:
        """Run on to ``node`` and correct its bias until the mean of its outputs is ``expected``, [channels]."""
        end = self._positions[node.name] + 1
        after = _live(self._source, end)
        advance = self._bytes(after) <= self._limit
        outputs = (node.name, *after) if advance else (node.name,)
        segment = Graph(self._live, self._source.nodes[self._start : end], outputs, (), self._source.shapes)
        module = build_module(segment, self.parameters, self._edges)
        axis, rank = _channel_axis(self._source, node), len(self._source.shapes[node.name])
        mean = ChannelMean(axis)
        with torch.inference_mode():
            for position, state in enumerate(self._states):
                output, *kept = module(*state)
                mean(output)
                if advance:
                    self._states[position] = kept
        name = node.arguments[2].name
        before = self.parameters[name]
        self.parameters[name] = (before.double() + expected - mean.mean).float()
        if advance:
            self._start, self._live = end, after
            self._shift(after.index(node.name), (self.parameters[name] - before).reshape(-1, *[1] * (rank - 1 - axis)))

    def _shift(self, index: int, shift: Tensor) -> None:
        """Add to a live value what a changed bias would have added: cheaper than running the layer again."""
        for state in self._states:
            state[index] = state[index] + shift

    def _bytes(self, values: Sequence[str]) -> int:
        shapes = [self._source.shapes[value] for value in values]
        return 4 * self._samples * sum(torch.Size(shape[1:]).numel() for shape in shapes if shape)


class _LayerError:
    """The mean error of each output channel of one layer, from the float inputs that pass its edge."""

    def __init__(self, graph: FloatGraph, node: Node, weight: Tensor, quantizer: ActivationQuantizer | None) -> None:
        self._function, self._node = resolve(node.operator), node
        self._float, self._rounded = graph.parameters[node.arguments[1].name], weight
        self._quantizer = quantizer
        self._mean = ChannelMean(_channel_axis(graph.graphs["forward"], node))

    def __call__(self, values: Tensor) -> Tensor:
        rounded = values if self._quantizer is None else self._quantizer(values)
        rest = self._node.arguments[3:]
        error = self._function(values, self._float, None, *rest)
        error = error - self._function(rounded, self._rounded, None, *rest)
        self._mean(error)
        return values

    @property
    def mean(self) -> Tensor:
        return self._mean.mean


def _layers(graph: FloatGraph, weights: Mapping[str, QuantizedTensor]) -> list[Node]:
    """Return the quantized linear layers and convolutions of ``forward``, in order, that alone have their bias."""
    found = []
    for node in graph.graphs["forward"].nodes:
        operator = QUANTIZABLE.get(node.operator)
        if operator is None or operator.kind == "embedding" or len(node.arguments) < 3:
            continue
        own = [isinstance(each, Parameter) and len(graph.consumers(each.name)) == 1 for each in node.arguments[1:3]]
        if all(own) and node.arguments[1].name in weights:
            found.append(node)
    return found


def _channel_axis(source: Graph, node: Node) -> int:
    return len(source.shapes[node.name]) - 1 if QUANTIZABLE[node.operator].kind == "linear" else 1


def _live(source: Graph, position: int) -> tuple[str, ...]:
    """Return the values that exist before the node at ``position`` and are needed from there on."""
    made = [*source.inputs, *(node.name for node in source.nodes[:position])]
    needed = set(source.outputs)
    for node in source.nodes[position:]:
        needed |= {reference.name for reference in references((node.arguments, tuple(node.keywords.values())))}
    return tuple(name for name in made if name in needed)
