"""Half-quadratic quantization: grids that suit most weights, at the cost of few outliers. It needs no data.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023. Errors count with their p-th
power, p < 1, so that outliers do not rule. Splitting off an auxiliary error alternates two steps of closed form: the
auxiliary error is the error shrunk (generalized soft threshold), and the grid is fitted to the weights less it. The
paper fits real zero points to fixed scales. Runtimes store whole zero points, which such a step never moves, as codes
are off by less than half a step on average; so here the scale is fitted instead, and a block keeps the grid it came
from unless the new one is better.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from quant.calibrate import Batch
from quant.graph import FloatGraph, QuantizedModel
from quant.grids import Blocks, Grid, fit_grids
from quant.layers import weight_formats
from quant.progress import steps
from quant.scheme import Scheme
from quant.tensor import quantize_with

METHODS = {"hqq": {"family": "weight_only", "bits": ("int8", "int6", "int5", "int4", "int3", "int2")}}

POWER = 0.7
_PENALTY = 10.0
_PENALTY_GROWTH = 1.3
_ITERATIONS = 8


def quantize(graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch] = ()) -> QuantizedModel:
    """Return all quantizable weights in grids of least p-th power error; calibration is not used."""
    weights = {}
    for parameter, (format, block) in steps(list(weight_formats(graph, scheme).items()), "layer"):
        weight = graph.parameters[parameter]
        weights[parameter] = quantize_with(weight, *fit_grids(weight, format, block, fit), format, block)
    return QuantizedModel(graph, scheme, weights)


def fit(blocks: Blocks) -> Grid:
    """Return the grids that half-quadratic splitting reaches from those that cover the extremes."""
    scale, zero_point = blocks.covering(1.0)
    best = Grid(scale, zero_point, _error(blocks, scale, zero_point))
    # Errors are measured in steps of the first grid, so that one penalty suits blocks of every size.
    unit, penalty = scale, _PENALTY
    for _ in range(_ITERATIONS):
        codes = blocks.codes(scale, zero_point)
        target = blocks.values - _shrunk((blocks.values - codes * scale) / unit, penalty) * unit
        scale = blocks.least_squares(codes, target, scale)
        best = best.or_better(Grid(scale, zero_point, _error(blocks, scale, zero_point)))
        penalty *= _PENALTY_GROWTH
    return best


def _error(blocks: Blocks, scale: Tensor, zero_point: Tensor) -> Tensor:
    difference = blocks.codes(scale, zero_point).mul_(scale).sub_(blocks.values)
    return difference.abs_().pow_(POWER).sum(1, keepdim=True)


def _shrunk(error: Tensor, penalty: float) -> Tensor:
    """Return the proximal step of ``|error| ** POWER``: small errors vanish, large ones stay almost whole."""
    magnitude = error.abs()
    threshold = magnitude.clamp(min=torch.finfo(error.dtype).tiny).pow_(POWER - 1).div_(penalty)
    return magnitude.sub_(threshold).clamp_(min=0).copysign_(error)
