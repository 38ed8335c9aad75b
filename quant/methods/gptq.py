"""GPTQ: codes chosen one column at a time, the error of each made good by the columns after it.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2023
(arXiv:2210.17323): columns in the order of falling activation energy, scales fixed beforehand in the weight's own
groups, lazy updates in blocks, layers in their true order through the graph. What a layer is fitted to are the outputs
of the float model, given inputs that earlier quantized layers have changed, as in Li et al., "GPTAQ: Efficient
Finetuning-Free Quantization for Asymmetric Calibration", 2025 (arXiv:2504.02692); here the least-squares target is
solved for before rounding, and the bias takes up what is left of the mean.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from quant.calibrate import Batch
from quant.graph import FloatGraph, QuantizedModel
from quant.layers import Layer, Moments, weight_formats
from quant.methods.mse import search
from quant.scheme import NumberFormat, Scheme
from quant.sequential import Solution, quantize_sequentially
from quant.tensor import QuantizedTensor, expand, quantize_with

METHODS = {
    "gptq": {
        "family": "weight_only",
        "bits": ("int8", "int6", "int5", "int4", "int3", "int2"),
        "core": ("int4",),
        "calibrates": True,
    }
}

DAMPING = 0.1
"""Added to the diagonal of the second moments, as a share of its mean: keeps them invertible and the fit general."""
_BLOCK = 128
_INNER_BLOCK = 16


def quantize(graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch] = ()) -> QuantizedModel:
    """Return all quantizable weights rounded with their errors compensated on the calibration data."""
    formats = weight_formats(graph, scheme)

    def solve(layer: Layer, weight: Tensor, moments: Moments | None) -> Solution:
        format, block = formats[layer.parameter]
        if moments is None:
            return Solution(quantize_with(weight, *search(weight, format, block), format, block))
        return Solution(solve_layer(layer, weight, moments, format, block))

    weights, floats = quantize_sequentially(graph, list(formats), calibration, solve)
    return QuantizedModel(graph, scheme, weights, floats)


def solve_layer(
    layer: Layer, weight: Tensor, moments: Moments, format: NumberFormat, block: tuple[int, ...]
) -> QuantizedTensor:
    """Return ``weight`` quantized so that the layer's outputs on the calibration data change least."""
    gram = damped(moments.gram / moments.count)
    target = retargeted(layer.matrix(weight), moments, gram)
    energy = torch.diagonal(gram, dim1=-2, dim2=-1).unsqueeze(1).expand_as(target)
    scale, zero_point = search(layer.weight(target), format, block, layer.weight(energy))

    def per_element(per_block: Tensor) -> Tensor:
        return layer.matrix(expand(per_block.float(), block, weight.shape).expand(weight.shape))

    scales = per_element(scale)
    zeros = torch.zeros_like(scales) if zero_point is None else per_element(zero_point)
    steps = compensated_rounding(target, scales, format.lowest - zeros, format.highest - zeros, gram)
    codes = layer.weight(steps + zeros).to(torch.int8 if format.symmetric else torch.uint8)
    return QuantizedTensor(codes.contiguous(), scale, zero_point, None, tuple(block), format)


def damped(gram: Tensor) -> Tensor:
    """Return second moments [groups, columns, columns] that are safely positive definite."""
    diagonal = torch.diagonal(gram, dim1=-2, dim2=-1)
    mean = diagonal.mean(-1, keepdim=True)
    # Where calibration saw only zeros any fit is as good as another: that of plain rounding.
    added = torch.where(mean > 0, DAMPING * mean, torch.ones_like(mean))
    return gram + torch.diag_embed(added.expand_as(diagonal))


def retargeted(matrix: Tensor, moments: Moments, gram: Tensor) -> Tensor:
    """Return the float matrix that best makes, of the inputs there will be, the outputs of the float model.

    Least squares: ``W (X X'ᵀ + d) (X' X'ᵀ + d)⁻¹`` for inputs X of the float model, X' as they are, and damping d.
    """
    if moments.cross is moments.gram:
        return matrix
    shift = moments.cross / moments.count - moments.gram / moments.count
    correction = torch.cholesky_solve((matrix @ shift).mT, torch.linalg.cholesky(gram)).mT
    return matrix + correction


def compensated_rounding(matrix: Tensor, scales: Tensor, lowest: Tensor, highest: Tensor, gram: Tensor) -> Tensor:
    """Return whole numbers of steps [groups, rows, columns] whose error times the inputs is small.

    ``scales``, ``lowest`` and ``highest`` have the shape of ``matrix``: the size of a step, and the fewest and most
    steps. ``gram`` [groups, columns, columns] are the second moments of the inputs.
    """
    order = torch.diagonal(gram, dim1=-2, dim2=-1).argsort(-1, descending=True)
    back = order.argsort(-1)

    def sorted_columns(values: Tensor) -> Tensor:
        """Return [groups, columns, rows]: a column lies contiguous in memory."""
        return values.mT.gather(1, order.unsqueeze(-1).expand_as(values.mT))

    pairs = order.unsqueeze(-1).expand_as(gram)
    gram = gram.gather(1, pairs).gather(2, pairs.mT)
    steps = _round_columns(*map(sorted_columns, (matrix, scales, lowest, highest)), _inverse_factor(gram))
    return steps.gather(1, back.unsqueeze(-1).expand_as(steps)).mT


def _inverse_factor(gram: Tensor) -> Tensor:
    """Return upper U with ``Uᵀ U = gram⁻¹``: the inverse of gram's own upper-times-lower factor, one step not three."""
    flipped = gram.flip(-1, -2)
    factor = torch.linalg.cholesky(flipped).flip(-1, -2)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype).expand_as(gram)
    return torch.linalg.solve_triangular(factor, identity, upper=True)


def _round_columns(matrix: Tensor, scales: Tensor, lowest: Tensor, highest: Tensor, factor: Tensor) -> Tensor:
    """Round the columns of a matrix, laid out [groups, columns, rows]; ``matrix`` is used up."""
    columns = matrix.shape[1]
    steps = torch.empty_like(matrix)
    errors = torch.empty_like(matrix)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        for inner in range(start, stop, _INNER_BLOCK):
            inner_stop = min(inner + _INNER_BLOCK, stop)
            for column in range(inner, inner_stop):
                values, scale = matrix[:, column], scales[:, column]
                found = torch.div(values, scale, out=steps[:, column]).round_()
                torch.clamp(found, lowest[:, column], highest[:, column], out=found)
                error = torch.sub(values, found * scale, out=errors[:, column])
                error.div_(factor[:, column, column].unsqueeze(-1))
                later = slice(column + 1, inner_stop)
                matrix[:, later] -= factor[:, column, later].unsqueeze(-1) * error.unsqueeze(1)
            _compensate(matrix, errors, factor, slice(inner, inner_stop), slice(inner_stop, stop))
        _compensate(matrix, errors, factor, slice(start, stop), slice(stop, columns))
    return steps


def _compensate(matrix: Tensor, errors: Tensor, factor: Tensor, done: slice, later: slice) -> None:
    if later.start < later.stop:
        matrix[:, later] -= factor[:, done, later].mT @ errors[:, done]
