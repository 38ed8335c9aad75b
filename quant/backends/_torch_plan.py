"""Which operators of a quantized model run on int8 kernels of torch, and which values exist as codes alone."""

import math
from functools import cached_property

import torch

from quant.backends import _torch_kernels as kernels
from quant.backends._torch_kernels import Affine
from quant.graph import ActivationQuantizer, QuantizedModel, shared_quantizers
from quant.nodes import (
    ATTENTION,
    LSTM,
    QUANTIZABLE,
    RESIDUAL,
    Node,
    Parameter,
    Value,
    data_of,
    lstm_parameters,
    references,
    transposed_groups,
    weights_of,
)
from quant.tensor import QuantizedTensor

MOVES_CODES = {"aten.view.default", "aten.flatten.using_ints", "aten.transpose.int", "aten.permute.default"}
"""Operators that codes pass unchanged. Max pooling is not among them: torch counts its uint8 windows in uint8."""

RUN_TIME_ALONE = {LSTM, ATTENTION}
"""Operators whose kernels read codes that were found at run time, and write float as it is."""

_CLAMPS = {
    "aten.relu.default": (0.0, math.inf),
    "aten.relu6.default": (0.0, 6.0),
    "aten.hardtanh.default": (-1.0, 1.0),
    "aten.clamp.default": (-math.inf, math.inf),
}
"""Operators that are a clamp, with the bounds they have where arguments leave them out."""


class Plan:
    """What can be said of the ``forward`` graph of a quantized model on one device before any call is made.

    integer   names of the nodes that read codes
    refusal   why nodes that would fit a kernel are not among them, or None
    """

    def __init__(self, quantized: QuantizedModel, device: str) -> None:
        self.quantized = quantized
        self.graph = quantized.graph.graphs["forward"]
        self._quantizers = _by_argument(quantized)
        fitting = {node.name for node in self.graph.nodes if self._fits_kernel(node)}
        self.refusal = _refusal(quantized, device) if fitting else None
        self.integer = set() if self.refusal else fitting

    def is_quantized(self, node: Node) -> bool:
        """Whether the tables want ``node`` in integers: they hold its weights, or it has none and reads codes."""
        weights = weights_of(node)
        if weights:  # one that is left float may still read what a neighbour writes in integers
            return any(weight.name in self.quantized.weights for weight in weights)
        return any((node.name, position) in self._quantizers for position in (*range(len(node.arguments)), "p"))

    def weight(self, node: Node) -> QuantizedTensor | None:
        operator = QUANTIZABLE.get(node.operator)
        return operator and self.quantized.weights.get(getattr(node.arguments[operator.weight], "name", None))

    def quantizer(self, node: Node, position: int | str) -> tuple[int, ActivationQuantizer] | None:
        """Return the quantizer of an argument, and a number that arguments share if it makes the same codes."""
        return self._quantizers.get((node.name, position))

    def affine(self, node: Node, position: int | str) -> Affine | None:
        """Return the quantizer of an argument, if it is one that kernels read: static, uint8, per tensor."""
        _, quantizer = self.quantizer(node, position) or (None, None)
        if quantizer is None or quantizer.mode != "static" or quantizer.format.symmetric or quantizer.format.bits != 8:
            return None
        if quantizer.scale.numel() != 1:
            return None
        return Affine(quantizer.scale.item(), int(quantizer.zero_point))

    @cached_property
    def clamps(self) -> dict[str, Node]:
        """For integer nodes that feed nothing but a clamp with constant bounds: that clamp."""
        found = {}
        for name in self.integer:
            if self.graph.by_name[name].operator in RUN_TIME_ALONE:
                continue
            uses = self._uses.get(name, [])
            if len(uses) == 1 and uses[0][1] == 0 and bounds_of(uses[0][0]):
                found[name] = uses[0][0]
        return found

    def wanted(self, value: str) -> Affine | None:
        """Return the quantizer in which all readers of ``value`` want its codes, or None if any wants it in float."""
        wishes = {self._wish(node, position) for node, position in self._uses.get(value, [(None, None)])}
        return wishes.pop() if len(wishes) == 1 else None

    def _wish(self, node: Node | None, position: int | None) -> Affine | None:
        if position is None:
            return None
        if shared := self.quantizer(node, position):
            return self.affine(node, position) if shared[1].input_scale is None else None
        return self.wanted(node.name) if position == 0 and node.operator in MOVES_CODES else None

    @cached_property
    def _uses(self) -> dict[str, list[tuple[Node | None, int | None]]]:
        """Who reads each value: (node, position), without position in nested and keyword arguments."""
        uses: dict[str, list[tuple[Node | None, int | None]]] = {name: [(None, None)] for name in self.graph.outputs}
        for node in self.graph.nodes:
            positions = [(argument, position) for position, argument in enumerate(node.arguments)]
            for argument, position in [*positions, (tuple(node.keywords.values()), None)]:
                for reference in references(argument):
                    if isinstance(reference, Value):
                        where = position if reference is argument else None
                        uses.setdefault(reference.name, []).append((node, where))
        return uses

    def _fits_kernel(self, node: Node) -> bool:
        if node.operator in RESIDUAL:
            return not node.keywords and all(self.affine(node, position) for position in (0, 1))
        if node.operator == LSTM:
            return self._is_quantized_lstm(node)
        if node.operator == ATTENTION:
            return self._is_quantized_attention(node)
        weight, operator = self.weight(node), QUANTIZABLE.get(node.operator)
        if weight is None or not _is_symmetric_per_channel(weight):
            return False
        bias = node.arguments[2] if len(node.arguments) > 2 else None
        if not (bias is None or (isinstance(bias, Parameter) and bias.name not in self.quantized.weights)):
            return False
        if operator.kind == "linear":
            return bool(self.affine(node, 0)) or self._is_found_at_run_time(node, 0)
        return operator.kind == "convolution" and self._is_plain_convolution(node, weight)

    def _is_plain_convolution(self, node: Node, weight: QuantizedTensor) -> bool:
        if self.affine(node, 0) is None or self.quantizer(node, 0)[1].input_scale is not None:
            return False
        rank = len(self.graph.shapes[node.arguments[0].name])
        return transposed_groups(node) is None and rank == weight.codes.ndim and rank in (3, 4)

    def _is_quantized_lstm(self, node: Node) -> bool:
        weights = [self.quantized.weights.get(weight.name) for weight in weights_of(node)]
        suit = all(weight is not None and _is_symmetric_per_channel(weight) for weight in weights)
        biases = {bias.name for own in lstm_parameters(node) for bias in own[2:]}
        whole = node.arguments[4] == 1 and all(len(own) in (2, 4) for own in lstm_parameters(node))
        known = all(self._is_found_at_run_time(node, position) for position in ("x", "h"))
        return suit and whole and known and not biases & self.quantized.weights.keys()

    def _is_quantized_attention(self, node: Node) -> bool:
        """Whether it has quantizers of 8 bits, values in one scale, and as many heads of keys as of queries."""
        if not all(self._is_found_at_run_time(node, position) for position in (0, 1, 2, "p")):
            return False
        of_values = self.quantizer(node, 2)[1].format.granularity
        outer = [self.graph.shapes[node.arguments[position].name][:-2] for position in (0, 1, 2)]
        return of_values == "tensor" and outer[0] == outer[1] == outer[2] and not node.keywords.get("enable_gqa")

    def _is_found_at_run_time(self, node: Node, position: int | str) -> bool:
        """Whether an argument has a quantizer of 8 bits that finds the range of a tensor or its rows at run time."""
        _, quantizer = self.quantizer(node, position) or (None, None)
        if quantizer is None or quantizer.mode != "dynamic":
            return False
        return quantizer.format.bits == 8 and quantizer.format.granularity in ("token", "tensor")


def bounds_of(node: Node) -> tuple[float, float] | None:
    """Return the constant bounds of a clamp, or None for any other node."""
    if node.operator not in _CLAMPS or node.keywords:
        return None
    bounds = list(_CLAMPS[node.operator])
    for position, bound in enumerate(node.arguments[1:]):
        if not (bound is None or isinstance(bound, int | float)):
            return None
        bounds[position] = bounds[position] if bound is None else float(bound)
    return bounds[0], bounds[1]


def _by_argument(quantized: QuantizedModel) -> dict[tuple[str, int | str], tuple[int, ActivationQuantizer]]:
    for edge in quantized.activations:
        node = quantized.graph.node(edge)
        inner = {LSTM: ("x", "h"), ATTENTION: (*range(len(node.arguments)), "p")}
        known = edge[2] in inner.get(node.operator, range(len(node.arguments)))
        if not known or not isinstance(data_of(node, edge[2]), Value):
            raise ValueError(f"table entry {edge!r} is not on a value of the graph: was it made for another model?")
    groups = enumerate(shared_quantizers(quantized))
    return {edge[1:]: (number, quantizer) for number, (quantizer, edges) in groups for edge in edges}


def _refusal(quantized: QuantizedModel, device: str) -> str | None:
    if quantized.scheme.float_dtype != "float32":
        return f"int8 kernels read float32, not {quantized.scheme.float_dtype}"
    if torch.device(device).type != "cpu":
        return f"torch has no int8 kernels on {device}"
    return kernels.unusable(_largest_code(quantized))


def _largest_code(quantized: QuantizedModel) -> int:
    """Return the largest code that the weights kernels would multiply with may have."""
    formats = (weight.format for weight in quantized.weights.values() if _is_symmetric_per_channel(weight))
    return max((int(format.highest) for format in formats if format.bits <= 8), default=0)


def _is_symmetric_per_channel(weight: QuantizedTensor) -> bool:
    channels = weight.codes.shape[0]
    one_each = weight.scale.shape[0] in (1, channels) and weight.scale[0].numel() == 1
    return weight.zero_point is None and weight.codebook is None and one_each
