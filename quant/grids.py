"""Fitting the grid of every block of a weight: its scale and zero point, found by trying and refining candidates."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from quant.scheme import NumberFormat
from quant.tensor import in_blocks, round_scale, scale_and_zero_point

_CHUNK = 1 << 18
"""Elements fitted at once: few enough to stay in a core's cache."""


class Grid(NamedTuple):
    """For each of b blocks: scale and zero point (float32 [b, 1]), and the error it makes [b, 1]."""

    scale: Tensor
    zero_point: Tensor
    error: Tensor

    def or_better(self, other: "Grid") -> "Grid":
        better = other.error < self.error
        return Grid(*(torch.where(better, new, old) for new, old in zip(other, self, strict=True)))


class Blocks:
    """Some blocks of a weight, float32 [b, elements], and the importance of each element or None.

    A short last block is filled up with zeros, which every grid holds exactly.
    """

    def __init__(self, values: Tensor, importance: Tensor | None, format: NumberFormat) -> None:
        self.values, self.importance, self.format = values, importance, format
        self._buffer = torch.empty_like(values)
        low, high = torch.aminmax(values, dim=1, keepdim=True)
        self._low, self._high = low.clamp_(max=0), high.clamp_(min=0)

    def covering(self, share: float) -> tuple[Tensor, Tensor]:
        """Return scale and zero point that cover ``share`` of the way to the extremes."""
        scale, zero_point = scale_and_zero_point(self._low * share, self._high * share, self.format)
        return scale, torch.zeros_like(scale) if zero_point is None else zero_point.float()

    def codes(self, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Return the codes less their zero points; the result is overwritten by the next call."""
        torch.mul(self.values, scale.reciprocal(), out=self._buffer)
        self._buffer.round_()
        lowest, highest = self.format.lowest - zero_point, self.format.highest - zero_point
        return torch.clamp(self._buffer, lowest, highest, out=self._buffer)

    def squared_error(self, scale: Tensor, zero_point: Tensor) -> Grid:
        """Return the grid with the sum of its squared errors, weighted by importance."""
        difference = self.codes(scale, zero_point).mul_(scale).sub_(self.values)
        weighted = difference if self.importance is None else difference * self.importance
        return Grid(scale, zero_point, torch.linalg.vecdot(weighted, difference).unsqueeze(1))

    def least_squares(self, codes: Tensor, targets: Tensor, otherwise: Tensor) -> Tensor:
        """Return the scale with which ``codes`` come closest to ``targets``, rounded to storage.

        Where there is none above zero it is ``otherwise``.
        """
        weighted = codes if self.importance is None else codes * self.importance
        norm = torch.linalg.vecdot(weighted, codes).unsqueeze(1)
        fitted = torch.linalg.vecdot(weighted, targets).unsqueeze(1) / norm
        usable = (norm > 0) & (fitted > 0)
        return torch.where(usable, round_scale(torch.where(usable, fitted, 1.0), self.format), otherwise)


def fit_grids(
    weight: Tensor,
    format: NumberFormat,
    block: tuple[int, ...],
    fit: Callable[[Blocks], Grid],
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return scale and zero point of every block, shaped as :func:`quant.tensor.block_extremes` shapes, by ``fit``.

    ``importance`` (float, broadcastable to the weight, not negative) weighs the errors of the elements.
    """
    blocked = in_blocks(weight.float(), block)
    counts, values = blocked.shape[::2], _elements(blocked)
    at_once = max(1, _CHUNK // values.shape[1])
    weights = None
    if importance is not None:
        weights = importance.float().reshape(*[1] * (weight.ndim - importance.ndim), *importance.shape)
        shared = weights.shape[0] == 1 and block[0] == 1
        weights = _elements(in_blocks(weights.expand(1 if shared else len(weight), *weight.shape[1:]), block))
        if shared and len(weights) < len(values):
            # Every row has the same: as many rows as are fitted at once hold them all.
            rows = max(1, at_once // len(weights))
            at_once, weights = rows * len(weights), weights.repeat(rows, 1)
    grids = []
    for start in range(0, len(values), at_once):
        part, weight_of = values[start : start + at_once], None
        if weights is not None:
            first = start if len(weights) == len(values) else 0
            weight_of = weights[first : first + len(part)]
        grids.append(fit(Blocks(part, weight_of, format)))
    scale = torch.cat([grid.scale for grid in grids]).reshape(counts)
    if format.symmetric:
        return scale, None
    return scale, torch.cat([grid.zero_point for grid in grids]).to(torch.uint8).reshape(counts)


def _elements(blocked: Tensor) -> Tensor:
    """Return [blocks, elements] of [blocks, within, blocks, within, ...]."""
    dimensions = range(blocked.ndim)
    ordered = blocked.permute(*dimensions[::2], *dimensions[1::2])
    return ordered.reshape(torch.Size(blocked.shape[::2]).numel(), -1)
