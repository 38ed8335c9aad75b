"""Static W8A8: activation ranges fixed beforehand from calibration data, the whole path kept in integers.

The inputs of quantized linear and convolution operators are quantized, and those of the residual additions and poolings
that lie between them, so that a convolutional net never leaves integers. Biases are rounded to the grid of the integer
accumulator, ``activation scale * weight scale``, as kernels that stay in integers store them. Scheme and placement
follow Nagel et al., "A White Paper on Neural Network Quantization", 2021 (arXiv:2106.08295).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from quant.bias import correct_fast, correct_full
from quant.calibrate import Batch, observe_ranges
from quant.equalize import equalize
from quant.graph import ActivationQuantizer, Edge, FloatGraph, QuantizedModel
from quant.methods import gptq
from quant.methods.rtn import round_weights
from quant.nodes import QUANTIZABLE, RESIDUAL, Graph, Node, Value
from quant.scheme import Scheme
from quant.tensor import QuantizedTensor, scale_and_zero_point

METHODS = {
    "static": {"family": "static", "bits": ("int8", "int8_sym", "int8_reduced"), "core": ("int8",), "calibrates": True},
    "static_plain": {
        "family": "static",
        "bits": ("int8",),
        "calibrates": True,
        "settings": {"equalization": False, "correction": "none"},
    },
    "static_equalized": {
        "family": "static",
        "bits": ("int8",),
        "calibrates": True,
        "settings": {"correction": "none"},
    },
    "static_fast": {"family": "static", "bits": ("int8",), "calibrates": True, "settings": {"correction": "fast"}},
    "static_percentile": {
        "family": "static",
        "bits": ("int8",),
        "calibrates": True,
        "settings": {"ranges": "percentile"},
    },
    "static_mse": {"family": "static", "bits": ("int8",), "calibrates": True, "settings": {"ranges": "mse"}},
    "static_gptq": {
        "family": "static",
        "bits": ("int8",),
        "calibrates": True,
        "settings": {"ranges": "mse", "correction": "fast", "rounding": "gptq", "residuals": False},
    },
    "static_entropy": {"family": "static", "bits": ("int8",), "calibrates": True, "settings": {"ranges": "entropy"}},
}

_POOLING = {"aten.mean.dim", "aten.adaptive_avg_pool2d.default", "aten.avg_pool2d.default"}
_KEEPS_INTEGERS = {
    "aten.relu.default",
    "aten.relu6.default",
    "aten.hardtanh.default",
    "aten.clamp.default",
    "aten.max_pool2d.default",
    "aten.view.default",
    "aten.flatten.using_ints",
}
"""Operators that a runtime can apply to codes, or fold into the operator before them."""


def quantize(
    graph: FloatGraph,
    scheme: Scheme,
    calibration: Sequence[Batch] = (),
    ranges: str = "minmax",
    equalization: bool = True,
    correction: Literal["none", "fast", "full"] = "full",
    rounding: Literal["nearest", "gptq"] = "nearest",
    residuals: bool = True,
) -> QuantizedModel:
    """Return ``graph`` in W8A8 with per-tensor activation ranges from calibration.

    Args:
        ranges: the calibrator that chooses the ranges, one of :data:`quant.calibrate.CALIBRATORS`.
        equalization: scale the channels of activations to each other's range first, :mod:`quant.equalize`.
        correction: how biases take out the mean error, :mod:`quant.bias`.
        rounding: how weights are rounded, to the nearest code or as :mod:`quant.methods.gptq` does.
        residuals: quantize the inputs of residual additions, too. Runtimes whose convolutions write floats as well can
            add what these write as it is.

    With ``static_gptq`` the outputs of MobileNetV2 are off by .083, with ``static_mse`` by .100, on the photographs by
    which the former was chosen; of that the sums are .009 and the weights .008. *Full* correction, whose means follow
    what few samples did to all layers before, would make it .103.

    Raises:
        ValueError: there is no calibration data, or a value or a weight holds NaN or infinity.
    """
    edges = quantized_edges(graph, list(graph.quantizable()))
    if not residuals:
        edges = [edge for edge in edges if graph.node(edge).operator not in RESIDUAL]
    values = {edge: graph.node(edge).arguments[edge[2]].name for edge in edges}
    names = sorted(set(values.values()))
    prepared = equalize(graph, names, calibration) if equalization else graph
    by_data = rounding == "gptq"
    weights = gptq.quantize(prepared, scheme, calibration).weights if by_data else round_weights(prepared, scheme)
    quantizers = {}
    for value, (low, high) in observe_ranges(prepared, names, calibration, ranges, scheme.activations).items():
        scale, zero_point = scale_and_zero_point(torch.tensor(low), torch.tensor(high), scheme.activations)
        quantizers[value] = ActivationQuantizer("static", scheme.activations, scale, zero_point)
    activations = {edge: quantizers[value] for edge, value in values.items()}
    if correction != "none":
        correct = correct_full if correction == "full" else correct_fast
        biases = correct(prepared, weights, activations, calibration)
        prepared = replace(prepared, parameters={**prepared.parameters, **biases})
    floats = {name: value for name, value in prepared.parameters.items() if value is not graph.parameters[name]}
    floats = {name: value for name, value in floats.items() if name not in weights}
    return QuantizedModel(graph, scheme, weights, floats | rounded_biases(prepared, weights, activations), activations)


def quantized_edges(graph: FloatGraph, weights: Sequence[str]) -> list[Edge]:
    """Return the data arguments of operators with quantized ``weights`` and of residual additions between them."""
    edges = []
    for name, source in graph.graphs.items():
        for node in source.nodes:
            if _is_quantized(node, weights):
                edges.append((name, node.name, QUANTIZABLE[node.operator].data))
            elif node.operator in RESIDUAL and _is_integer_residual(source, node, weights):
                edges += [(name, node.name, 0), (name, node.name, 1)]
            elif node.operator in _POOLING and _is_integer_pooling(source, node, weights):
                edges.append((name, node.name, 0))
    return edges


def activations_left(
    graph: FloatGraph, weights: Sequence[str], activations: dict[Edge, ActivationQuantizer]
) -> dict[Edge, ActivationQuantizer]:
    """Return what is left of ``activations`` where operators without quantized ``weights`` are left float.

    Quantized stays what the others read, and what convolutions among these write: their integer kernels write integers,
    which an operator that is left float has to convert.
    """
    read = set(quantized_edges(graph, weights))

    def stays(edge: Edge, quantizer: ActivationQuantizer) -> bool:
        value = graph.node(edge).arguments[edge[2]].name
        written = quantizer.input_scale is None and _written_by_convolution(graph.graphs[edge[0]], value, weights)
        return edge in read or written

    return {edge: quantizer for edge, quantizer in activations.items() if stays(edge, quantizer)}


def makers(graph: Graph, value: str, weights: Sequence[str]) -> list[str]:
    """Return the ``weights`` of the operators that make ``value``, if it could stay in integers all the way from them.

    The list is empty where an operator that computes in float lies between, and for the inputs of the graph.
    """
    node = graph.by_name.get(value)
    if node is None:
        return []
    if _is_quantized(node, weights):
        return [node.arguments[QUANTIZABLE[node.operator].weight].name]
    if node.operator not in RESIDUAL | _KEEPS_INTEGERS | _POOLING:
        return []
    operands = [argument.name for argument in node.arguments if isinstance(argument, Value)]
    found = [makers(graph, name, weights) for name in operands if graph.shapes.get(name)]
    return list(dict.fromkeys(name for of_operand in found for name in of_operand)) if all(found) else []


def rounded_biases(
    graph: FloatGraph, weights: dict[str, QuantizedTensor], activations: dict[Edge, ActivationQuantizer]
) -> dict[str, Tensor]:
    """Return the biases of quantized operators on the grid of their accumulators, where one operator alone has them."""
    biases = {}
    for name, (parameter, edge) in accumulated_biases(graph, activations).items():
        if parameter not in weights:
            continue  # left float, beside an integer operator that writes integers
        weight = weights[parameter]
        biases[name] = on_accumulator_grid(graph.parameters[name], weight.scale, weight.codes, activations[edge].scale)
    return biases


def accumulated_biases(graph: FloatGraph, edges: Iterable[Edge]) -> dict[str, tuple[str, Edge]]:
    """Return the biases that operators reading the quantized ``edges`` have for themselves, with weight and edge."""
    found = {}
    for edge in edges:
        node = graph.node(edge)
        if node.operator not in QUANTIZABLE or len(node.arguments) < 3 or node.arguments[2] is None:
            continue
        name = node.arguments[2].name
        if len(graph.consumers(name)) == 1:
            found[name] = node.arguments[1].name, edge
    return found


def on_accumulator_grid(bias: Tensor, scale: Tensor, values: Tensor, activation_scale: Tensor) -> Tensor:
    """Return ``bias`` [out] rounded to multiples of the scales of weight and activation.

    A dead output channel, all of whose ``values`` (or codes) are zero, may have any scale: for its bias the finest of
    the other channels is taken.
    """
    grid = _finest_where_dead(scale, values).double() * activation_scale.double()
    return ((bias.double() / grid).round() * grid).to(bias.dtype)


def _finest_where_dead(scale: Tensor, values: Tensor) -> Tensor:
    """Return the scales of output channels [out], for a channel of zeros the smallest of the others."""
    flat = scale.flatten().clone()
    if scale.shape[0] == len(flat) == len(values):
        dead = (values == 0).flatten(1).all(1)
        if dead.any() and not dead.all():
            flat[dead] = flat[~dead].min()
    return flat


def _is_integer_residual(graph: Graph, node: Node, weights: Sequence[str]) -> bool:
    """Whether an addition lies between quantized operators: all inputs come from such, and an output goes to one."""
    operands = node.arguments[:2]
    if not all(isinstance(operand, Value) and graph.shapes.get(operand.name) for operand in operands):
        return False
    if node.keywords.get("alpha", 1) != 1:
        return False
    return all(_made_by_integers(graph, operand.name, weights) for operand in operands) and any(
        _reaches_integers(graph, user, weights) for user, _ in graph.users(node.name)
    )


def _is_integer_pooling(graph: Graph, node: Node, weights: Sequence[str]) -> bool:
    """Whether a pooling takes what quantized operators made and passes it on to one."""
    made = isinstance(node.arguments[0], Value) and _made_by_integers(graph, node.arguments[0].name, weights)
    return made and any(_reaches_integers(graph, user, weights) for user, _ in graph.users(node.name))


def _made_by_integers(graph: Graph, value: str, weights: Sequence[str]) -> bool:
    node = graph.by_name.get(value)
    if node is None:
        return False
    if _is_quantized(node, weights):
        return True
    if node.operator in RESIDUAL | _KEEPS_INTEGERS:
        return all(
            _made_by_integers(graph, argument.name, weights)
            for argument in node.arguments
            if isinstance(argument, Value) and graph.shapes.get(argument.name)
        )
    return False


def _written_by_convolution(graph: Graph, value: str, weights: Sequence[str]) -> bool:
    """Whether a convolution with quantized weights makes ``value``, perhaps with operators after it that keep codes."""
    node = graph.by_name.get(value)
    if node is None:
        return False
    if node.operator in _KEEPS_INTEGERS and isinstance(node.arguments[0], Value):
        return _written_by_convolution(graph, node.arguments[0].name, weights)
    return _is_quantized(node, weights) and QUANTIZABLE[node.operator].kind == "convolution"


def _reaches_integers(graph: Graph, node: Node, weights: Sequence[str]) -> bool:
    if _is_quantized(node, weights):
        return True
    passes = node.operator in RESIDUAL | _KEEPS_INTEGERS | _POOLING
    return passes and any(_reaches_integers(graph, user, weights) for user, _ in graph.users(node.name))


def _is_quantized(node: Node, weights: Sequence[str]) -> bool:
    operator = QUANTIZABLE.get(node.operator)
    if operator is None or operator.kind == "embedding":
        return False
    return getattr(node.arguments[operator.weight], "name", None) in weights
