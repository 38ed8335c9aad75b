"""SmoothQuant: what is hard to quantize in activations moved into the weights, channel by channel.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2023
(arXiv:2211.10438): each channel of a layer's input is divided by ``max|x|^a / max|w|^(1-a)``, and its column of the
weight multiplied by it. Here the strength ``a`` is searched for each group of layers that read one value, and with it a
floor, as in Wei et al., "Outlier Suppression+", 2023 (arXiv:2304.09145): channels whose extremes are below it are taken
to reach it, so that small channels are not blown up. Scales fold into the operator before where that is exact; where
they would cost a multiplication they must be worth it. Weights are then rounded with GPTQ's compensation.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.calibrate import Batch, Extremes, require_finite
from quant.channels import Group, InputSample, linear_groups, sample_inputs
from quant.folding import Scaled, choose_scale, scale_inputs
from quant.graph import ActivationQuantizer, Edge, FloatGraph, QuantizedModel
from quant.layers import layer_of, weight_formats
from quant.methods.gptq import solve_layer
from quant.methods.static import activations_left, quantized_edges, rounded_biases
from quant.progress import steps
from quant.scheme import NumberFormat, Scheme
from quant.sensitivity import most_sensitive
from quant.tensor import QuantizedTensor, scale_and_zero_point
from quant.tensor import quantize as quantize_tensor

METHODS = {
    "smoothquant": {"family": "static", "bits": ("int8", "int8_sym", "int8_reduced"), "calibrates": True},
    "smoothquant_dynamic": {"family": "dynamic", "bits": ("int8",), "calibrates": True},
    "smoothquant_outliers": {
        "family": "static",
        "bits": ("int8",),
        "calibrates": True,
        "settings": {"left_float": 0.05},
    },
}

_STRENGTHS = (1.0, 0.9, 0.8, 0.7, 0.6)
_FLOORS = (0.0, 0.06, 0.12, 0.25)
_SMALLEST = 1e-5
"""Channels smaller than this share of the largest are scaled like one of this size."""


def quantize(
    graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch] = (), left_float: float = 0.0
) -> QuantizedModel:
    """Return ``graph`` in W8A8 with smoothed inputs of linear layers; all else as ``static`` or ``dynamic`` have it.

    ``left_float`` is the share of multiply-accumulates that may stay in float: those of the operators whose
    quantization costs the output most.
    """
    smoothed = smooth(graph, scheme, calibration)
    if not left_float:
        return smoothed.leaving()
    return smoothed.leaving(most_sensitive(smoothed.whole, calibration, left_float))


@dataclass(frozen=True)
class Smoothed:
    """A graph in W8A8 with smoothed inputs, of which single operators can still be left float.

    graph   the float graph
    scaled  the graph with the scales folded into its parameters, and those that are still to be applied
    whole   the tables of the scaled graph with everything quantized
    """

    graph: FloatGraph
    scaled: Scaled
    whole: QuantizedModel

    def leaving(self, names: Sequence[str] = ()) -> QuantizedModel:
        """Return the tables with the operators of the weights ``names`` left float, which the recipe lists."""
        whole, scaled = self.whole, self.scaled
        weights, activations, recipe = whole.weights, whole.activations, {}
        restored = {name: _unscaled(scaled, name) for name in names}
        if names:
            weights = {name: weight for name, weight in weights.items() if name not in restored}
            activations = activations_left(whole.graph, list(weights), activations)
            recipe = {"left_float": list(names)}
        floats = {name: whole.graph.parameters[name] for name in scaled.changed if name not in weights} | restored
        if whole.scheme.family == "static":
            floats |= rounded_biases(whole.graph, weights, activations)
        return QuantizedModel(self.graph, whole.scheme, weights, floats, activations, recipe)


def smooth(graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch]) -> Smoothed:
    """Return ``graph`` with smoothed inputs and everything in W8A8.

    Raises:
        ValueError: there is no calibration data, or a value or a weight holds NaN or infinity.
    """
    formats = _formats(graph, scheme)
    groups = linear_groups(graph, formats)
    others = _other_edges(graph, formats, groups) if scheme.family == "static" else {}
    extremes = {value: Extremes() for value in others.values()}
    observers = {edge[1:]: extremes[value] for edge, value in others.items()}
    samples = sample_inputs(graph, groups, calibration, moments=True, others=observers)
    scales = _search(graph, scheme, formats, samples)
    scaled = scale_inputs(graph, scales)
    weights = _weights(scaled.graph, formats, samples, scales)
    activations = _activations(scheme, scaled, samples, scales)
    activations |= _other_activations(scheme, others, extremes)
    return Smoothed(graph, scaled, QuantizedModel(scaled.graph, scheme, weights, {}, activations))


def _unscaled(scaled: Scaled, name: str) -> Tensor:
    """Return the weight of a linear layer for inputs as they are, without the scale that was still to be applied."""
    graph_name, node, _ = scaled.graph.consumers(name)[0]
    weight, remaining = scaled.graph.parameters[name], scaled.input_scales.get((graph_name, node, 0))
    return weight if remaining is None else weight * remaining


def _formats(graph: FloatGraph, scheme: Scheme) -> dict[str, tuple[NumberFormat, tuple[int, ...]]]:
    """Return format and block of the weights to quantize: without convolutions if activations are so at run time."""
    formats = weight_formats(graph, scheme)
    if scheme.family == "static":
        return formats
    return {name: format for name, format in formats.items() if layer_of(graph, name).kind != "convolution"}


def _search(
    graph: FloatGraph, scheme: Scheme, formats: dict[str, tuple], samples: dict[Group, InputSample]
) -> dict[Group, Tensor]:
    """Return the input scales (float32 [c]) of the groups that are better off with one."""
    found = {}
    for group, sample in steps(list(samples.items()), "scale"):
        weight = torch.cat([graph.parameters[name] for name in group.parameters]).float()
        error = _Error(weight, sample, formats[group.parameters[0]][0], scheme.activations, scheme.family)
        candidates = [smoothing(weight, sample, strength, floor) for strength in _STRENGTHS for floor in _FLOORS]
        scale = choose_scale(graph, group, candidates, error)
        if scale is not None:
            found[group] = scale
    return found


def smoothing(weight: Tensor, sample: InputSample, strength: float, floor: float) -> Tensor:
    """Return the input scale (float32 [c], geometric mean 1) that smooths inputs of ``weight`` [out, c]."""
    inputs, columns = torch.maximum(-sample.low, sample.high), weight.abs().amax(0)
    inputs = _at_least(inputs, max(floor, _SMALLEST))
    scale = _at_least(columns, _SMALLEST) ** (1 - strength) / inputs**strength
    return scale / scale.log().mean().exp()


def _at_least(extents: Tensor, share: float) -> Tensor:
    """Raise ``extents`` to a share of the largest; where there is none, all are 1."""
    largest = extents.max()
    return extents.clamp(min=share * largest) if largest > 0 else torch.ones_like(extents)


@dataclass(frozen=True)
class _Error:
    """The squared error of the outputs of linear layers in W8A8, by the scale of their inputs, per row.

    Errors of rounding are taken to be independent from channel to channel, but for their means; so no product of
    matrices is needed.
    """

    weight: Tensor
    sample: InputSample
    format: NumberFormat
    activations: NumberFormat
    family: str

    def __call__(self, input_scale: Tensor) -> float:
        return float(self._of_inputs(input_scale) + self._of_weights(input_scale))

    def _of_inputs(self, input_scale: Tensor) -> Tensor:
        quantizer = _quantizer(self.family, self.activations, self.sample, input_scale, input_scale)
        rows = self.sample.rows
        variance, mean = torch.var_mean(quantizer(rows) / input_scale - rows, dim=0, correction=0)
        return (variance * self.weight.square().sum(0)).sum() + (self.weight @ mean).square().sum()

    def _of_weights(self, input_scale: Tensor) -> Tensor:
        weight = self.weight / input_scale
        rounded = quantize_tensor(weight, self.format, (1, weight.shape[1])).dequantize()
        return ((rounded - weight).square().sum(0) * input_scale.square() * self.sample.energy).sum()


def _quantizer(
    family: str, format: NumberFormat, sample: InputSample, scale: Tensor | None, remaining: Tensor | None
) -> ActivationQuantizer:
    """Return the quantizer of inputs with ``scale``, of which the factor ``remaining`` is still to be applied."""
    if family == "dynamic":
        return ActivationQuantizer("dynamic", format, input_scale=remaining)
    low, high = (extremes if scale is None else extremes * scale for extremes in (sample.low, sample.high))
    return ActivationQuantizer("static", format, *scale_and_zero_point(low.min(), high.max(), format), remaining)


def _weights(
    graph: FloatGraph,
    formats: dict[str, tuple],
    samples: dict[Group, InputSample],
    scales: dict[Group, Tensor],
) -> dict[str, QuantizedTensor]:
    """Return all quantized weights of the scaled ``graph``: compensated where calibration comes by, else rounded."""
    found = {}
    for group, sample in steps(list(samples.items()), "group"):
        moments = sample.scaled_moments(scales[group]) if group in scales else sample.moments
        for name in group.parameters:
            found[name] = solve_layer(layer_of(graph, name), graph.parameters[name], moments, *formats[name])
    rest = {name: format for name, format in formats.items() if name not in found}
    return found | {name: quantize_tensor(graph.parameters[name], *format) for name, format in rest.items()}


def _activations(
    scheme: Scheme, scaled: Scaled, samples: dict[Group, InputSample], scales: dict[Group, Tensor]
) -> dict[Edge, ActivationQuantizer]:
    """Return the quantizers of the inputs of linear layers."""
    found = {}
    for group, sample in samples.items():
        remaining = scaled.input_scales.get(group.edges[0])
        quantizer = _quantizer(scheme.family, scheme.activations, sample, scales.get(group), remaining)
        found |= dict.fromkeys(group.edges, quantizer)
    return found


def _other_edges(graph: FloatGraph, weights: Collection[str], groups: Sequence[Group]) -> dict[Edge, str]:
    """Return what else ``static`` quantizes in ``forward``: inputs of convolutions, sums and poolings, by edge."""
    known = {edge for group in groups for edge in group.edges}
    edges = [edge for edge in quantized_edges(graph, weights) if edge[0] == "forward" and edge not in known]
    return {edge: graph.node(edge).arguments[edge[2]].name for edge in edges}


def _other_activations(
    scheme: Scheme, others: dict[Edge, str], extremes: dict[str, Extremes]
) -> dict[Edge, ActivationQuantizer]:
    quantizers = {}
    for value, seen in extremes.items():
        require_finite(value, seen)
        scale, zero_point = scale_and_zero_point(seen.low[0], seen.high[0], scheme.activations)
        quantizers[value] = ActivationQuantizer("static", scheme.activations, scale, zero_point)
    return {edge: quantizers[value] for edge, value in others.items()}
