"""Clip search: scales of least squared error instead of scales that cover the extremes.

A range a little narrower than the extremes clips few weights and rounds all others finer. Every block takes the best of
a grid of narrower ranges (Banner et al., "Post training 4-bit quantization of convolutional networks for
rapid-deployment", 2019, arXiv:1810.05723), then the scale that fits its codes in least squares where that is better.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quant.calibrate import Batch
from quant.graph import FloatGraph, QuantizedModel
from quant.layers import weight_formats
from quant.progress import steps
from quant.scheme import NumberFormat, Scheme
from quant.tensor import _blocked, quantize_with, round_scale, scale_and_zero_point

METHODS = {"mse": {"family": "weight_only", "bits": ("int8", "int6", "int5", "int4", "int3", "int2")}}

_NARROWEST = {8: 0.9, 6: 0.8, 5: 0.7, 4: 0.55, 3: 0.45, 2: 0.3}
"""The narrowest range tried, as a share of the extremes: the fewer codes, the more clipping pays."""
_RANGES = 10
_REFITS = 2
_CHUNK = 1 << 18
"""Elements searched at once: few enough to stay in a core's cache."""


def quantize(graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch] = ()) -> QuantizedModel:
    """Return all quantizable weights in scales of least squared error; calibration is not used."""
    weights = {}
    for parameter, (format, block) in steps(list(weight_formats(graph, scheme).items()), "layer"):
        weight = graph.parameters[parameter]
        weights[parameter] = quantize_with(weight, *search(weight, format, block), format, block)
    return QuantizedModel(graph, scheme, weights)


def search(
    weight: Tensor, format: NumberFormat, block: tuple[int, ...], importance: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return scale and zero point (shaped as :func:`quant.tensor.block_extremes` shapes) of least squared error.

    ``importance`` (float, broadcastable to the weight, not negative) weighs the squared errors.
    """
    blocked = _blocked(weight.float(), block)
    counts = blocked.shape[::2]
    values = _elements(blocked)
    weights = None
    if importance is not None:
        weights = _elements(_blocked(importance.float().expand(weight.shape), block))
    at_once = max(1, _CHUNK // values.shape[1])
    found = [
        _search(part, format, None if weights is None else weights[start : start + at_once])
        for start, part in zip(range(0, len(values), at_once), values.split(at_once), strict=True)
    ]
    scale = torch.cat([best.scale for best in found]).reshape(counts)
    if format.symmetric:
        return scale, None
    return scale, torch.cat([best.zero_point for best in found]).to(torch.uint8).reshape(counts)


class _Candidate(NamedTuple):
    """For each of b blocks: scale and zero point (float32 [b, 1]) and weighted squared error [b, 1]."""

    scale: Tensor
    zero_point: Tensor
    error: Tensor

    def or_better(self, other: "_Candidate") -> "_Candidate":
        better = other.error < self.error
        return _Candidate(*(torch.where(better, new, old) for new, old in zip(other, self, strict=True)))


def _search(values: Tensor, format: NumberFormat, importance: Tensor | None) -> _Candidate:
    """Search the blocks ``values`` [b, elements]."""
    low, high = (
        extreme.clamp_(**bound)
        for extreme, bound in zip(torch.aminmax(values, dim=1, keepdim=True), ({"max": 0}, {"min": 0}), strict=True)
    )
    best, buffer = None, torch.empty_like(values)
    for ratio in torch.linspace(1.0, _NARROWEST[format.bits], _RANGES).tolist():
        scale, zero_point = scale_and_zero_point(low * ratio, high * ratio, format)
        zero = torch.zeros_like(scale) if zero_point is None else zero_point.float()
        candidate = _evaluate(values, scale, zero, format, importance, buffer)
        best = candidate if best is None else best.or_better(candidate)
    for _ in range(_REFITS):
        scale = _refit(values, best, format, importance, buffer)
        best = best.or_better(_evaluate(values, scale, best.zero_point, format, importance, buffer))
    return best


def _steps_of(values: Tensor, scale: Tensor, zero: Tensor, format: NumberFormat, buffer: Tensor) -> Tensor:
    """Write the codes less their zero points into ``buffer``."""
    torch.mul(values, scale.reciprocal(), out=buffer)
    buffer.round_()
    return torch.clamp(buffer, format.lowest - zero, format.highest - zero, out=buffer)


def _evaluate(
    values: Tensor, scale: Tensor, zero: Tensor, format: NumberFormat, importance: Tensor | None, buffer: Tensor
) -> _Candidate:
    difference = _steps_of(values, scale, zero, format, buffer).mul_(scale).sub_(values)
    weighted = difference if importance is None else difference * importance
    return _Candidate(scale, zero, torch.linalg.vecdot(weighted, difference).unsqueeze(1))


def _refit(values: Tensor, best: _Candidate, format: NumberFormat, importance: Tensor | None, buffer: Tensor) -> Tensor:
    """Return the scale that fits the best codes in least squares, rounded to storage."""
    codes = _steps_of(values, best.scale, best.zero_point, format, buffer)
    weighted = codes if importance is None else codes * importance
    norm = torch.linalg.vecdot(weighted, codes).unsqueeze(1)
    fitted = torch.linalg.vecdot(weighted, values).unsqueeze(1) / norm
    usable = (norm > 0) & (fitted > 0)
    return torch.where(usable, round_scale(torch.where(usable, fitted, 1.0), format), best.scale)


def _elements(blocked: Tensor) -> Tensor:
    """Return [blocks, elements] of [blocks, within, blocks, within, ...]."""
    dimensions = range(blocked.ndim)
    ordered = blocked.permute(*dimensions[::2], *dimensions[1::2])
    return ordered.reshape(torch.Size(blocked.shape[::2]).numel(), -1)
