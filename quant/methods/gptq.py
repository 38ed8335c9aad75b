"""GPTQ: codes chosen one column at a time, the error of each made good by the columns after it.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2023
(arXiv:2210.17323): columns in the order of falling activation energy, scales fixed beforehand in the weight's own
groups, lazy updates in blocks, layers in their true order through the graph. What a layer is fitted to are the outputs
of the float model, given inputs that earlier quantized layers have changed, as in Li et al., "GPTAQ: Efficient
Finetuning-Free Quantization for Asymmetric Calibration", 2025 (arXiv:2504.02692); here the least-squares target is
solved for before rounding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quant.calibrate import Batch, first_samples
from quant.graph import FloatGraph, QuantizedModel
from quant.layers import Layer, Moments, weight_formats
from quant.methods.mse import search
from quant.scheme import NumberFormat, Scheme
from quant.sequential import quantize_sequentially
from quant.tensor import QuantizedTensor, expand, quantize_with

METHODS = {
    "gptq": {
        "family": "weight_only",
        "bits": ("int8", "int6", "int5", "int4", "int3", "int2"),
        "core": ("int4",),
        "calibrates": True,
    },
    "gptq_quick": {"family": "weight_only", "bits": ("int4",), "calibrates": True, "settings": {"samples": 32}},
}

DAMPING = 0.1
"""Added to the diagonal of the second moments, as a share of its mean: keeps them invertible and the fit general."""
LOOKED_UP_DAMPING = 0.3
"""The same for a head that shares its weights with an embedding, whose rows must stay near to what they were."""
_BLOCK = 128
_INNER_BLOCK = 16


def quantize(
    graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch] = (), samples: int | None = None
) -> QuantizedModel:
    """Return all quantizable weights rounded with their errors compensated on the calibration data.

    Time and memory are nearly proportional to the number of samples: ``samples`` takes so many alone, the first.

    An embedding is rounded in scales of least squared error: its rows are looked up one at a time, so no other weight
    could make good an error. The same holds for a layer that calibration never reaches. Where a linear layer has the
    weights of an embedding, as heads of language models do, they are fitted to its inputs in the float model.
    """
    formats = weight_formats(graph, scheme)

    def solve(layer: Layer, weight: Tensor, moments: Moments | None) -> QuantizedTensor:
        return solve_layer(layer, weight, moments, *formats[layer.parameter])

    batches = calibration if samples is None else first_samples(calibration, samples)
    return QuantizedModel(graph, scheme, quantize_sequentially(graph, list(formats), batches, solve))


def solve_layer(
    layer: Layer, weight: Tensor, moments: Moments | None, format: NumberFormat, block: tuple[int, ...]
) -> QuantizedTensor:
    """Return ``weight`` quantized so that the layer's outputs on the calibration data change least."""
    if moments is None:
        return quantize_with(weight, *search(weight, format, block), format, block)
    gram = damped(moments.gram / moments.count, LOOKED_UP_DAMPING if layer.looked_up else DAMPING)
    target = retargeted(layer.matrix(weight), moments, gram)
    scale, zero_point = search(layer.weight(target), format, block, _energy(layer, gram))
    scales = _per_row(layer, scale, block)
    lowest = torch.full_like(scales, format.lowest)
    if zero_point is not None:
        lowest -= _per_row(layer, zero_point.float(), block)
    width = block[1] if layer.kind == "linear" else target.shape[2]
    grid = Lattice(scales, lowest, format.highest - format.lowest, width)
    codes = layer.weight(compensated_rounding(target, grid, gram)).contiguous()
    if format.symmetric:
        codes = (codes.short() + format.lowest).to(torch.int8)
    return QuantizedTensor(codes, scale, zero_point, None, tuple(block), format)


def damped(moments: Tensor, share: float = DAMPING) -> Tensor:
    """Return second moments [groups, columns, columns] as safely positive definite ones."""
    gram = moments.clone()
    diagonal = torch.diagonal(gram, dim1=-2, dim2=-1)
    mean = diagonal.mean(-1, keepdim=True)
    # Where calibration saw only zeros any fit is as good as another: that of plain rounding.
    diagonal += torch.where(mean > 0, share * mean, torch.ones_like(mean))
    return gram


def retargeted(matrix: Tensor, moments: Moments, gram: Tensor) -> Tensor:
    """Return the float matrix that best makes, of the inputs there will be, the outputs of the float model.

    Least squares: ``W (X X'ᵀ + d) (X' X'ᵀ + d)⁻¹`` for inputs X of the float model, X' as they are, and damping d.
    """
    if moments.cross is moments.gram:
        return matrix
    shift = moments.cross / moments.count - moments.gram / moments.count
    correction = torch.cholesky_solve((matrix @ shift).mT, torch.linalg.cholesky(gram)).mT
    return matrix + correction


class Lattice(NamedTuple):
    """What the numbers of a matrix [groups, rows, columns] may be: multiples of a step, from a lowest on.

    step    float32 [groups, rows, blocks]
    lowest  float32 [groups, rows, blocks], a number of steps
    levels  how many more there are
    width   how many neighbouring columns are a block; the last may have fewer
    """

    step: Tensor
    lowest: Tensor
    levels: int
    width: int


def compensated_rounding(matrix: Tensor, grid: Lattice, gram: Tensor) -> Tensor:
    """Return levels uint8 [groups, rows, columns], counted from the lowest, whose error times the inputs is small.

    ``gram`` [groups, columns, columns] are the second moments of the inputs, positive definite.

    Columns are rounded in the order of falling energy. With ``gram = L Lᵀ`` and the columns sorted the other way, last
    to first, the change that best makes good an error of column j is ``L[j, i] / L[i, i]`` of it for every column i
    before (Babai's nearest plane; Chen et al., "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane
    Algorithm", 2025, arXiv:2507.18553). The usual form needs the factor of the inverse, three times the work.
    """
    order = torch.diagonal(gram, dim1=-2, dim2=-1).argsort(-1)
    factor = torch.linalg.cholesky(_reordered(_reordered(gram, order, 1), order, 2))
    shares = factor.div_(torch.diagonal(factor, dim1=-2, dim2=-1).clone().unsqueeze(-2))
    # Columns lie contiguous in memory: [groups, columns, rows].
    columns = _reordered(matrix, order, 2).mT.contiguous()
    steps, lowest = grid.step.mT.contiguous(), grid.lowest.mT.contiguous()
    levels = _round_columns(columns, steps, lowest, grid.levels, order // grid.width, shares)
    return _reordered(levels, order.argsort(-1), 1).mT


def _per_row(layer: Layer, per_block: Tensor, block: tuple[int, ...]) -> Tensor:
    """Return [groups, rows, blocks] of what has one value for each block of a weight."""
    if layer.kind == "linear":
        return per_block.expand(layer.shape[0], -1).unsqueeze(0)
    # The block of a convolution's weight spans whole rows of its matrices.
    return layer.matrix(expand(per_block, block, layer.shape).expand(layer.shape))[:, :, :1]


def _energy(layer: Layer, gram: Tensor) -> Tensor:
    """Return the mean square of what each element of a weight multiplies, so that it broadcasts to the weight."""
    energy = torch.diagonal(gram, dim1=-2, dim2=-1)
    if layer.kind == "linear":
        return energy
    rows = torch.Size(layer.shape).numel() // energy.numel()
    return layer.weight(energy.unsqueeze(1).expand(-1, rows, -1))


def _reordered(values: Tensor, order: Tensor, dimension: int) -> Tensor:
    """Return ``values`` [groups, n, m] with each group's n (dimension 1) or m (2) in ``order`` [groups, ...]."""
    if len(values) == 1:
        return values[0].index_select(dimension - 1, order[0]).unsqueeze(0)  # in two dimensions it is five times faster
    return values.gather(dimension, order.unsqueeze(3 - dimension).expand_as(values))


def _round_columns(
    columns: Tensor, steps: Tensor, lowest: Tensor, highest: int, blocks: Tensor, shares: Tensor
) -> Tensor:
    """Return levels uint8 [groups, columns, rows], found last to first, each error shared by the columns before.

    ``columns`` has the same shape and is used up. ``steps`` and ``lowest`` are [groups, blocks, rows], and ``blocks``
    [groups, columns] says which block a column belongs to. ``highest`` is the highest level.
    """
    group = torch.arange(len(columns))
    errors, levels = columns.clone(), torch.empty(columns.shape, dtype=torch.uint8)
    for stop in range(columns.shape[1], 0, -_BLOCK):
        start = max(0, stop - _BLOCK)
        for inner_stop in range(stop, start, -_INNER_BLOCK):
            inner = max(start, inner_stop - _INNER_BLOCK)
            for column in range(inner_stop - 1, inner - 1, -1):
                step, least = (part[group, blocks[:, column]] for part in (steps, lowest))
                level = columns[:, column].div_(step).round_().sub_(least).clamp_(0, highest)
                levels[:, column] = level
                error = errors[:, column].addcmul_(level.add_(least), step, value=-1)
                earlier = columns[:, inner:column]
                earlier.addcmul_(shares[:, column, inner:column].unsqueeze(-1), error.unsqueeze(1))
            _compensate(columns, errors, shares, slice(inner, inner_stop), slice(start, inner))
        _compensate(columns, errors, shares, slice(start, stop), slice(0, start))
    return levels


def _compensate(columns: Tensor, errors: Tensor, shares: Tensor, done: slice, earlier: slice) -> None:
    if earlier.start < earlier.stop:
        columns[:, earlier].baddbmm_(shares[:, done, earlier].mT, errors[:, done])
