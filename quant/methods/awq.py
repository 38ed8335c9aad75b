"""AWQ: the weights that large activations meet are made larger, so that rounding hurts them less.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", 2023 (arXiv:2306.00978):
the columns of a weight are multiplied by a power of the mean size of their inputs, searched on a grid, and the inputs
divided by it; then ranges are clipped where that lowers the error. All errors are weighed with the second moments of
the inputs. Of these the diagonal is enough, because errors of rounding are nearly independent from column to column
(the full matrix improved MiniLM's output error by 0.4 %, at the price of a product of matrices for each power tried),
and the powers are compared on some of the output channels. Scales fold into the operator before where that is exact;
elsewhere they cost a multiplication and are taken only if worth it. The bias takes up the mean error that is left.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from quant.calibrate import Batch
from quant.channels import Group, InputSample, linear_groups, sample_inputs
from quant.folding import Scaled, choose_scale, scale_inputs
from quant.graph import ActivationQuantizer, FloatGraph, QuantizedModel
from quant.layers import layer_of, weight_formats
from quant.methods.mse import search
from quant.progress import steps
from quant.scheme import NumberFormat, Scheme
from quant.tensor import QuantizedTensor, quantize_with
from quant.tensor import quantize as quantize_tensor

METHODS = {
    "awq": {
        "family": "weight_only",
        "bits": ("int8", "int6", "int5", "int4", "int3", "int2"),
        "calibrates": True,
    }
}

_POWERS = 10
_MOST_ROWS = 1024
"""Output channels that powers are compared on."""
_ENOUGH_ROWS = 4096
"""Rows of each input that its statistics are taken from: four times as many left MiniLM's error where it was."""
_SMALLEST = 1e-4
"""Inputs smaller than this share of the largest are scaled like one of this size."""


def quantize(graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch] = ()) -> QuantizedModel:
    """Return all quantizable weights with scales that protect the columns of large inputs, and clipped ranges.

    Convolutions and embeddings get scales of least squared error; the activations of all stay float.
    """
    formats = weight_formats(graph, scheme)
    samples = sample_inputs(graph, linear_groups(graph, formats), calibration, enough=_ENOUGH_ROWS)
    scales = {}
    for group, sample in steps(list(samples.items()), "scale"):
        weight = torch.cat([graph.parameters[name] for name in group.parameters]).float()
        scale = choose_scale(graph, group, candidates(sample), _Error(weight, sample, *formats[group.parameters[0]]))
        if scale is not None:
            scales[group] = scale
    scaled = scale_inputs(graph, scales)
    weights, biases = _clipped(scaled, formats, samples, scales)
    floats = {name: scaled.graph.parameters[name] for name in scaled.changed if name not in weights}
    activations = {edge: ActivationQuantizer("none", input_scale=scale) for edge, scale in scaled.input_scales.items()}
    return QuantizedModel(graph, scheme, weights, floats | biases, activations)


def candidates(sample: InputSample) -> list[Tensor]:
    """Return the input scales to try (float32 [c], each centred on 1): powers of the mean size of each channel."""
    size = sample.rows.abs().mean(0)
    size = size.clamp(min=_SMALLEST * size.max()) if size.max() > 0 else torch.ones_like(size)
    powers = [size ** (-step / _POWERS) for step in range(1, _POWERS + 1)]
    return [power / (power.max() * power.min()).sqrt() for power in powers]


class _Error:
    """The squared error of the outputs of linear layers with rounded weights, by the scale of their inputs."""

    def __init__(self, weight: Tensor, sample: InputSample, format: NumberFormat, block: tuple[int, ...]) -> None:
        self.weight = weight[:: -(-len(weight) // _MOST_ROWS)]
        self.energy, self.format, self.block = sample.energy, format, block

    def __call__(self, input_scale: Tensor) -> float:
        weight = self.weight / input_scale
        rounded = quantize_tensor(weight, self.format, self.block).dequantize()
        return float((rounded - weight).square().sum(0) @ (input_scale.square() * self.energy))


def _clipped(
    scaled: Scaled, formats: dict[str, tuple], samples: dict[Group, InputSample], scales: dict[Group, Tensor]
) -> tuple[dict[str, QuantizedTensor], dict[str, Tensor]]:
    """Return all weights in scales of least error, weighed with the inputs where these are known, and the biases."""
    inputs = {name: (group, sample) for group, sample in samples.items() for name in group.parameters}
    weights, biases = {}, {}
    for name, (format, block) in steps(list(formats.items()), "layer"):
        weight, importance = scaled.graph.parameters[name], None
        if name in inputs:
            group, sample = inputs[name]
            scale = scales.get(group, torch.ones_like(sample.mean))
            importance = scale.square() * sample.energy
        weights[name] = quantize_with(weight, *search(weight, format, block, importance), format, block)
        bias = layer_of(scaled.graph, name).bias
        if name in inputs and bias and len(scaled.graph.consumers(bias)) == 1:
            missing = (weight - weights[name].dequantize()) @ (scale * sample.mean)
            biases[bias] = scaled.graph.parameters[bias] + missing
    return weights, biases
