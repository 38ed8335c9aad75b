"""Clip search: scales of least squared error instead of scales that cover the extremes.

A range a little narrower than the extremes clips few weights and rounds all others finer. Every block takes the best of
a grid of narrower ranges (Banner et al., "Post training 4-bit quantization of convolutional networks for
rapid-deployment", 2019, arXiv:1810.05723), then the scale that fits its codes in least squares where that is better.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from quant.calibrate import Batch
from quant.graph import FloatGraph, QuantizedModel
from quant.grids import Blocks, Grid, fit_grids
from quant.layers import weight_formats
from quant.progress import steps
from quant.scheme import NumberFormat, Scheme
from quant.tensor import quantize_with

METHODS = {"mse": {"family": "weight_only", "bits": ("int8", "int6", "int5", "int4", "int3", "int2")}}

_NARROWEST = {8: 0.9, 7: 0.85, 6: 0.8, 5: 0.7, 4: 0.55, 3: 0.45, 2: 0.3}
"""The narrowest range tried, as a share of the extremes: the fewer codes, the more clipping pays."""
_RANGES = 10
_REFITS = 2


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
    """Return scale and zero point of least squared error, as :func:`quant.grids.fit_grids` does."""
    return fit_grids(weight, format, block, _search, importance)


def _search(blocks: Blocks) -> Grid:
    best = blocks.squared_error(*blocks.covering(1.0))
    for share in torch.linspace(1.0, _NARROWEST[blocks.format.bits], _RANGES).tolist()[1:]:
        best = best.or_better(blocks.squared_error(*blocks.covering(share)))
    for _ in range(_REFITS):
        codes = blocks.codes(best.scale, best.zero_point)
        scale = blocks.least_squares(codes, blocks.values, best.scale)
        best = best.or_better(blocks.squared_error(scale, best.zero_point))
    return best
