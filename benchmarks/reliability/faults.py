"""Faults that happen to quantized models: each takes sound tables and returns broken ones.

The pull of most on accuracy is small, which is why they survive review; a gate has to see them in the fidelity.
"""

from dataclasses import replace

import torch

from quant.graph import QuantizedModel
from quant.tensor import QuantizedTensor, quantize


def scale_off_by_5_percent(quantized: QuantizedModel) -> QuantizedModel:
    """Multiply every scale by 1.05, as an estimate of a range that is a little off does."""
    return _replaced(quantized, {name: _scaled(weight, 1.05) for name, weight in quantized.weights.items()})


def zero_point_dropped(quantized: QuantizedModel) -> QuantizedModel:
    """Take the middle of the codes for every zero point, as a kernel for symmetric weights would.

    Raises:
        ValueError: no weight has one.
    """
    asymmetric = {name: weight for name, weight in quantized.weights.items() if weight.zero_point is not None}
    if not asymmetric:
        raise ValueError("No weight has a zero point to drop; plant this fault in an asymmetric scheme.")
    middles = {name: 2 ** (weight.format.bits - 1) for name, weight in asymmetric.items()}
    changed = {
        name: replace(weight, zero_point=torch.full_like(weight.zero_point, middles[name]))
        for name, weight in asymmetric.items()
    }
    return _replaced(quantized, changed)


def channels_swapped(quantized: QuantizedModel) -> QuantizedModel:
    """Swap the codes of the first two output channels of the largest weight, whose scales stay where they are."""
    name = max(quantized.weights, key=lambda name: quantized.weights[name].codes.numel())
    codes = quantized.weights[name].codes.clone()
    codes[[0, 1]] = codes[[1, 0]]
    return _replaced(quantized, {name: replace(quantized.weights[name], codes=codes)})


def depthwise_per_tensor(quantized: QuantizedModel) -> QuantizedModel:
    """Quantize depthwise kernels with one scale for all their channels.

    Raises:
        ValueError: there is none.
    """
    depthwise = {
        name: value
        for name, value in quantized.real_parameters().items()
        if name in quantized.weights and value.ndim == 4 and value.shape[1] == 1 and value.shape[0] > 1
    }
    if not depthwise:
        raise ValueError("No weight belongs to a depthwise convolution; plant this fault in a model that has some.")
    changed = {
        name: quantize(value, quantized.weights[name].format, tuple(value.shape)) for name, value in depthwise.items()
    }
    return _replaced(quantized, changed)


FAULTS = {
    "scale off by 5 %": scale_off_by_5_percent,
    "zero point dropped": zero_point_dropped,
    "channels swapped": channels_swapped,
    "depthwise per tensor": depthwise_per_tensor,
}


def _scaled(weight: QuantizedTensor, factor: float) -> QuantizedTensor:
    return replace(weight, scale=weight.scale * factor)


def _replaced(quantized: QuantizedModel, changed: dict[str, QuantizedTensor]) -> QuantizedModel:
    return replace(quantized, weights={**quantized.weights, **changed})
