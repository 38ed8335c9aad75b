"""Fake quantization that learns: steps and offsets trained by gradients beside the values they quantize.

A fake-quantized value is what its code stands for, computed as the tables have it: the numbers a model is trained with
are those it will be run with. Rounding has no gradient of its own, so the one of a straight line stands in (Bengio et
al., 2013, arXiv:1308.3432). With ``v = value / scale`` and codes from ``low`` to ``high``, less the zero point:

                     v < low      low <= v <= high       v > high
    by the value     0            1                      0
    by the scale     low          round(v) - v           high         LSQ: Esser et al., 2020 (arXiv:1902.08153)
    by the scale     low          0                      high         PACT: Choi et al., 2018 (arXiv:1805.06085)
    by the zero      -scale       0                      -scale       LSQ+: Bhalgat et al., 2020 (arXiv:2004.09576)

The gradients of scale and zero point are summed over the n values that share them and divided by ``sqrt(n * high)``,
as LSQ does to balance them with those of the values. Both are rounded to what the tables store before they are used,
again with the gradient of a straight line.

Forward and backward keep the values alone, and compute the rest again: blocks are views, nothing is expanded to the
size of a weight.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from quant.graph import ActivationQuantizer
from quant.methods.mse import search
from quant.recipe import Estimator
from quant.scheme import NumberFormat
from quant.tensor import QuantizedTensor, expand, in_blocks, round_scale

Choose = Callable[[torch.Size], Tensor]
"""Draws which blocks are fake-quantized, bool of the shape of their scales; the others stay what they are."""

_INSIDE = 0.2
"""How far from its code a value starts at most, in steps.

Near the border, at a half, the first steps of training would undo what GPTQ's rounding makes good: MobileNetV2 in 3
bits, from .62, was then down to chance within ten steps.
"""
_EDGE = 1e-3
"""How far from the ends of its range it starts at least, so that rounding does not put it outside."""
_SMALLEST = 1 / 64
"""What a scale may shrink to, as a share of where it started."""


@dataclass(frozen=True)
class Grid:
    """What values are rounded to; ``block`` as in :mod:`quant.tensor`, or None where all have one scale."""

    format: NumberFormat
    block: tuple[int, ...] | None = None
    estimator: Estimator = "lsq"

    def blocked(self, values: Tensor) -> Tensor:
        """View values as [blocks, within, blocks, within, ...]."""
        return values if self.block is None else in_blocks(values, self.block)

    def aligned(self, per_block: Tensor) -> Tensor:
        """View what there is one of for each block so that it broadcasts to :meth:`blocked` values."""
        if self.block is None:
            return per_block
        return per_block.reshape([side for count in per_block.shape for side in (count, 1)])

    def whole(self, blocked: Tensor, shape: torch.Size) -> Tensor:
        """Undo :meth:`blocked`."""
        if self.block is None:
            return blocked
        sides = zip(blocked.shape[::2], blocked.shape[1::2], strict=True)
        padded = blocked.reshape([blocks * within for blocks, within in sides])
        return padded if padded.shape == shape else padded[tuple(slice(size) for size in shape)]

    def summed(self, blocked: Tensor, like: Tensor) -> Tensor:
        """Return the sum over each block, shaped as a scale is."""
        if self.block is None:
            return blocked.sum().reshape(like.shape)
        return blocked.sum(tuple(range(1, blocked.ndim, 2))).reshape(like.shape)

    def gradient_scale(self, shape: torch.Size) -> float:
        """Return LSQ's ``1 / sqrt(n * high)``, n being the values that share a scale: of one sample where all do."""
        values = prod(shape[1:]) if self.block is None else prod(self.block)
        return max(values * self.format.highest, 1) ** -0.5


def fake_quantize(
    values: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    grid: Grid,
    unit: Tensor | None = None,
    chosen: Tensor | None = None,
) -> Tensor:
    """Return ``values`` (float, any shape) quantized and dequantized, with gradients for the first three tensors.

    Args:
        scale, zero_point: floats, one for each block, exactly as they are stored; no zero point if symmetric.
        unit: what ``values`` are multiples of, one for each block; None if they are plain numbers.
        chosen: bool, one for each block, those to quantize, for training with noise; None quantizes all.
    """
    return _FakeQuantize.apply(values, scale, zero_point, grid, unit, chosen)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        context,
        values: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        grid: Grid,
        unit: Tensor | None,
        chosen: Tensor | None,
    ) -> Tensor:
        context.save_for_backward(values, scale, zero_point, unit, chosen)
        context.grid = grid
        steps, low, high = _in_steps(values, scale, zero_point, grid, unit)
        fake = steps.clamp_(low, high).round_().mul_(grid.aligned(scale))
        if chosen is not None:
            plain = grid.blocked(values) if unit is None else grid.blocked(values) * grid.aligned(unit)
            fake = torch.where(grid.aligned(chosen), fake, plain)
        return grid.whole(fake, values.shape)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, scale, zero_point, unit, chosen = context.saved_tensors
        grid, (by_values, by_scale, by_zero, *_) = context.grid, context.needs_input_grad
        steps, low, high = _in_steps(values, scale, zero_point, grid, unit)
        clipped = steps.clamp(low, high)
        inside = clipped == steps
        if chosen is not None:
            inside |= ~grid.aligned(chosen)
        arriving = grid.blocked(gradient)
        passed = arriving * inside
        factor, found = grid.gradient_scale(values.shape), [None, None, None]
        if by_scale:
            slope = clipped.round_()
            if grid.estimator == "lsq":
                slope.sub_(steps.mul_(inside))
            else:
                slope.mul_(~inside)
            if chosen is not None:
                slope.mul_(grid.aligned(chosen))
            found[1] = grid.summed(slope.mul_(arriving), scale).mul_(factor)
        if by_zero:
            found[2] = grid.summed(passed - arriving, scale).mul_(scale).mul_(factor)
        if by_values:
            found[0] = grid.whole(passed if unit is None else passed.mul_(grid.aligned(unit)), values.shape)
        return *found, None, None, None


def _in_steps(
    values: Tensor, scale: Tensor, zero_point: Tensor | None, grid: Grid, unit: Tensor | None
) -> tuple[Tensor, float | Tensor, float | Tensor]:
    """Return values in steps of their scale, blocked, and the lowest and highest code there, less the zero point."""
    step, format = scale if unit is None else scale / unit, grid.format
    steps = grid.blocked(values) / grid.aligned(step)
    if zero_point is None:
        return steps, format.lowest, format.highest
    zero = grid.aligned(zero_point)
    return steps, format.lowest - zero, format.highest - zero


class _Rescale(torch.autograd.Function):
    """``(codes - zero_point) * scale`` of codes and zero points that stay."""

    @staticmethod
    def forward(context, codes: Tensor, scale: Tensor, zero_point: Tensor | None, grid: Grid) -> Tensor:
        context.save_for_backward(codes, scale, zero_point)
        context.grid = grid
        return grid.whole(_steps_of(codes, zero_point, grid, scale.dtype).mul_(grid.aligned(scale)), codes.shape)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        codes, scale, zero_point = context.saved_tensors
        grid, factor = context.grid, context.grid.gradient_scale(codes.shape)
        arriving = grid.blocked(gradient)
        steps = _steps_of(codes, zero_point, grid, scale.dtype)
        return None, grid.summed(steps.mul_(arriving), scale).mul_(factor), None, None


def _steps_of(codes: Tensor, zero_point: Tensor | None, grid: Grid, dtype: torch.dtype) -> Tensor:
    steps = grid.blocked(codes.to(dtype))
    return steps if zero_point is None else steps.sub_(grid.aligned(zero_point))


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(context, values: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    """Return ``rounded``, whose gradient goes to ``values`` as it comes."""
    return _StraightThrough.apply(values, rounded)


class LearnedRange(nn.Module):
    """Scales and zero points that learn, from where they start.

    stretch  float, the shape of the scales: by how much each has grown; one number for every model and layer
    shift    the same of the zero points, as shares of the range; None if symmetric
    """

    def __init__(self, scale: Tensor, zero_point: Tensor | None, format: NumberFormat) -> None:
        super().__init__()
        self.format = format
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero_point", None if zero_point is None else zero_point.to(scale.dtype))
        self.stretch = nn.Parameter(torch.ones_like(scale))
        self.shift = None if zero_point is None else nn.Parameter(torch.zeros_like(scale))

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """Return scale and zero point, floats exactly as they are stored."""
        scale, format = self.scale * self.stretch, self.format
        rounded = round_scale(scale.detach(), format)
        scale = straight_through(scale, torch.where(rounded > 0, rounded, self.scale))
        if self.shift is None:
            return scale, None
        zero_point = self.zero_point + self.shift * (format.highest - format.lowest)
        rounded = zero_point.detach().round().clamp_(format.lowest, format.highest)
        return scale, straight_through(zero_point, rounded)

    @torch.no_grad()
    def restart(self, scale: Tensor, zero_point: Tensor | None, format: NumberFormat) -> None:
        """Go on from other scales and zero points, those of another number of bits."""
        self.format = format
        self.scale.copy_(scale)
        self.stretch.fill_(1)
        if zero_point is not None:
            self.zero_point.copy_(zero_point)
            self.shift.zero_()

    @torch.no_grad()
    def keep_valid(self) -> None:
        """Take back what a step of training did too much of."""
        self.stretch.clamp_(min=_SMALLEST)
        if self.shift is not None:
            extent = self.format.highest - self.format.lowest
            self.shift.copy_(self.shift.clamp(-self.zero_point / extent, 1 - self.zero_point / extent))

    @torch.no_grad()
    def stored(self) -> tuple[Tensor, Tensor | None]:
        """Return scale (float32) and zero point (uint8) for the tables."""
        scale, zero_point = self()
        return scale.clone(), None if zero_point is None else zero_point.to(torch.uint8)


class LearnedWeight(nn.Module):
    """A weight that learns together with its scales and zero points.

    It starts where it is nearest to the float weight among all that round to the codes of ``start``, so that training
    goes on from what the tables already mean.

    values  float, the shape of the weight: as multiples of half the range its block has at first, so that one rate
            suits blocks of every size, as those of convolutions with batch norms folded into them are
    unit    float, the shape of the scales: that half
    """

    def __init__(self, weight: Tensor, start: QuantizedTensor) -> None:
        super().__init__()
        self.grid = Grid(start.format, start.block)
        self.range = LearnedRange(start.scale, start.zero_point, start.format)
        half = (start.format.highest - start.format.lowest) / 2
        self.register_buffer("unit", start.scale * half)
        self.values = nn.Parameter(_nearest_with_the_codes_of(start, weight).div_(half))

    def forward(self, choose: Choose | None = None) -> Tensor:
        scale, zero_point = self.range()
        chosen = choose(scale.shape) if choose else None
        return fake_quantize(self.values, scale, zero_point, self.grid, self.unit, chosen)

    @torch.no_grad()
    def restart(self, format: NumberFormat) -> None:
        """Go on in another number of bits, in scales of least squared error."""
        weight = self.values * expand(self.unit, self.grid.block, self.values.shape)
        self.grid = replace(self.grid, format=format)
        self.range.restart(*search(weight, format, self.grid.block), format)

    @torch.no_grad()
    def table(self) -> QuantizedTensor:
        """Return the weight as it is quantized now."""
        grid, (scale, zero_point) = self.grid, self.range.stored()
        zero = None if zero_point is None else zero_point.float()
        steps, low, high = _in_steps(self.values, scale, zero, grid, self.unit)
        codes = steps.clamp_(low, high).round_()
        codes = codes if zero is None else codes.add_(grid.aligned(zero))
        whole = grid.whole(codes, self.values.shape).to(torch.int8 if zero is None else torch.uint8)
        return QuantizedTensor(whole, scale, zero_point, None, grid.block, grid.format)


class LearnedVector(nn.Module):
    """A bias or the gains of a norm.

    moved  float [n]: how far it is from where it started, as a share of its root mean square then
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        size = start.square().mean().sqrt()
        self.register_buffer("start", start.clone())
        self.register_buffer("unit", torch.where(size > 0, size, torch.ones_like(size)))
        self.moved = nn.Parameter(torch.zeros_like(start))

    def forward(self) -> Tensor:
        return torch.addcmul(self.start, self.moved, self.unit)


class LearnedScales(nn.Module):
    """A weight whose scales learn, while codes and zero points stay.

    A zero point is a whole number, and with the codes fixed one more of it moves all of a block by a whole step: those
    that learn make a language model in 3 bits worse where scales alone make it better.
    """

    def __init__(self, start: QuantizedTensor) -> None:
        super().__init__()
        self.start, self.grid = start, Grid(start.format, start.block)
        self.range = LearnedRange(start.scale, start.zero_point, start.format)
        if self.range.shift is not None:
            self.range.shift.requires_grad_(False)

    def forward(self, choose: Choose | None = None) -> Tensor:
        return _Rescale.apply(self.start.codes, *self.range(), self.grid)

    def table(self) -> QuantizedTensor:
        scale, zero_point = self.range.stored()
        return replace(self.start, scale=scale, zero_point=zero_point)


class LearnedActivation(nn.Module):
    """An activation quantizer with a fixed range that learns."""

    def __init__(self, start: ActivationQuantizer, estimator: Estimator) -> None:
        super().__init__()
        self.start, self.grid = start, Grid(start.format, estimator=estimator)
        self.range = LearnedRange(start.scale, start.zero_point, start.format)

    def forward(self, values: Tensor) -> Tensor:
        if self.start.input_scale is not None:
            values = values * self.start.input_scale
        return fake_quantize(values, *self.range(), self.grid)

    def table(self) -> ActivationQuantizer:
        scale, zero_point = self.range.stored()
        return replace(self.start, scale=scale, zero_point=zero_point)


class PassingActivation(nn.Module):
    """An activation quantizer that has nothing to learn, because it finds its range at run time or has none."""

    def __init__(self, start: ActivationQuantizer) -> None:
        super().__init__()
        self.start, self._unscaled = start, replace(start, input_scale=None)

    def forward(self, values: Tensor) -> Tensor:
        if self.start.input_scale is not None:
            values = values * self.start.input_scale
        return straight_through(values, self._unscaled(values.detach()))

    def table(self) -> ActivationQuantizer:
        return self.start


def _nearest_with_the_codes_of(start: QuantizedTensor, weight: Tensor) -> Tensor:
    """Return ``weight`` in steps, each as near as it can be where it rounds to the codes of ``start`` within its range.

    Beyond the range there would be no gradient to bring it back.
    """
    scale = expand(start.scale, start.block, weight.shape)
    zero = 0.0 if start.zero_point is None else expand(start.zero_point.float(), start.block, weight.shape)
    codes, format = start.codes.float() - zero, start.format
    steps = torch.clamp(weight.float() / scale, codes - _INSIDE, codes + _INSIDE)
    return steps.add_(zero).clamp_(format.lowest + _EDGE, format.highest - _EDGE).sub_(zero)
