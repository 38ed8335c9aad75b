"""Eager int8 kernels of torch on a CPU, made ready once and called often.

Three are native: ``torch._int_mm`` and, from oneDNN, ``qconv_pointwise`` and ``qlinear_pointwise``. Each factory below
takes constants and returns a function of tensors. Activation codes are uint8 with one zero point in static mode, and
:class:`RunTimeCodes` in dynamic mode; weight codes are symmetric int8 with one scale per output channel.

oneDNN subtracts a zero point of its input in a separate pass, so wherever an operator does not pad, the zero point is
folded into the bias.
"""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from quant.nodes import Node
from quant.scheme import NumberFormat
from quant.tensor import QuantizedTensor

UNBOUNDED = (-math.inf, math.inf)

_SMALLEST_EXTENT = 1e-30
_HIGHEST_SIGNED = 127
_HIGHEST_UNSIGNED = 255
_SIGN_BIT = 128
_SLOWEST_USEFUL = 10.0


class Affine(NamedTuple):
    """uint8 codes that stand for ``(code - zero_point) * scale``."""

    scale: float
    zero_point: int

    def implies(self, bounds: tuple[float, float]) -> bool:
        """Whether saturating at code 0 and 255 does the same as clamping values to ``bounds`` first."""
        low, high = bounds
        below = low == -math.inf or round(low / self.scale) + self.zero_point <= 0
        above = high == math.inf or round(high / self.scale) + self.zero_point >= 255
        return below and above


class RunTimeCodes(NamedTuple):
    """int8 codes, of the value's shape, that stand for ``(code + shift) * scale``.

    ``scale`` and, of asymmetric codes, ``shift`` are float32 and broadcast against them: one for each row, or one.
    """

    codes: Tensor
    scale: Tensor
    shift: Tensor | None


class Geometry(NamedTuple):
    """Strides, paddings, dilations and groups of a convolution, and a typical shape of its input.

    oneDNN picks the layout of packed weights for that shape; without one it may pack them anew at every call.
    """

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    typical: list[int]


def geometry(node: Node, typical: list[int]) -> Geometry:
    """Return the geometry of a convolution node over 1 or 2 spatial dimensions."""
    dimensions = len(typical) - 2
    groups_position = 8 if node.operator == "aten.convolution.default" else 6
    given = dict(enumerate(node.arguments))
    spatial = [list(given.get(position, (default,))) for position, default in ((3, 1), (4, 0), (5, 1))]
    spatial = [values * dimensions if len(values) == 1 else values for values in spatial]
    return Geometry(*spatial, given.get(groups_position, 1), typical)


@functools.cache
def unusable(largest: int = _HIGHEST_SIGNED) -> str | None:
    """Return why this machine's int8 kernels cannot be used, or None, having tried them on the largest weight codes.

    Processors without dot-product instructions add pairs of products in 16 bits, which large codes overflow; builds
    without oneDNN multiply in a plain loop.
    """
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    try:
        if not _multiplies_exactly(largest):
            return f"the int8 kernels of this processor overflow on weight codes of {largest}: int8_reduced has smaller"
        if not _is_useful():
            return "torch has no fast int8 kernels for this processor"
    except (AttributeError, RuntimeError) as error:
        return f"torch refuses its int8 kernels here ({str(error).splitlines()[0]})"
    return None


def static_codes(target: Affine, input_scale: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Return float32 -> uint8; ``input_scale`` multiplies the last axis first.

    Rounding comes before the zero point, as the tables define it: a larger number would round less precisely.
    """
    factor = 1 / target.scale if input_scale is None else input_scale / target.scale
    shift = target.zero_point - _SIGN_BIT
    return lambda values: _saturate(torch.mul(values, factor).round_().add_(shift))


def float_values(source: Affine) -> Callable[[Tensor], Tensor]:
    """Return uint8 -> the float32 that the codes stand for."""
    start = torch.tensor(-source.zero_point * source.scale)
    return lambda codes: torch.add(start, codes, alpha=source.scale)


def run_time_codes(format: NumberFormat, input_scale: Tensor | None) -> Callable[[Tensor], RunTimeCodes]:
    """Return float32 [..., features] -> codes of 8 bits between the extremes of each row, or of the whole tensor."""
    axis = {"dim": -1, "keepdim": True} if format.granularity == "token" else {}

    def symmetric(values: Tensor) -> RunTimeCodes:
        if input_scale is not None:
            values = values * input_scale
        work = values.abs()
        extent = work.amax(**axis).clamp_min_(_SMALLEST_EXTENT)
        codes = torch.mul(values, _HIGHEST_SIGNED / extent, out=work).round_().to(torch.int8)
        return RunTimeCodes(codes, extent.mul_(1 / _HIGHEST_SIGNED), None)

    def asymmetric(values: Tensor) -> RunTimeCodes:
        if input_scale is not None:
            values = values * input_scale
        low, high = values.amin(**axis).clamp_max_(0), values.amax(**axis).clamp_min_(0)
        extent = high.sub_(low).clamp_min_(_SMALLEST_EXTENT)
        shift = low.mul_(_HIGHEST_UNSIGNED / extent).round_().add_(_SIGN_BIT)
        steps = torch.mul(values, _HIGHEST_UNSIGNED / extent).round_().sub_(shift)
        return RunTimeCodes(_signed(steps), extent.mul_(1 / _HIGHEST_UNSIGNED), shift)

    return symmetric if format.symmetric else asymmetric


def run_time_linear(
    weight: QuantizedTensor, bias: Tensor | None, bounds: tuple[float, float]
) -> Callable[[RunTimeCodes], Tensor]:
    """Return codes [..., in] -> float32 [..., out]."""
    codes, scale = weight.codes.t(), _per_channel(weight)
    totals = weight.codes.sum(1, dtype=torch.float32)
    bias = torch.zeros_like(scale) if bias is None else bias

    def linear(values: RunTimeCodes) -> Tensor:
        sums = _multiply(values.codes, codes)
        if values.shift is not None:
            sums.addcmul_(values.shift, totals)
        sums.mul_(values.scale)
        torch.addcmul(bias, sums, scale, out=sums)
        return sums if bounds == UNBOUNDED else sums.clamp_(*bounds)

    return linear


def static_linear(
    weight: QuantizedTensor, bias: Tensor | None, source: Affine, bounds: tuple[float, float]
) -> Callable[[Tensor], Tensor]:
    """Return uint8 [..., in] -> float32 [..., out]."""
    codes, scale = weight.codes.t(), _per_channel(weight) * source.scale
    bias = _without_zero_point(weight, bias, source)

    def linear(values: Tensor) -> Tensor:
        sums = _multiply(values, codes)
        torch.addcmul(bias, sums, scale, out=sums)
        return sums if bounds == UNBOUNDED else sums.clamp_(*bounds)

    return linear


def requantizing_linear(
    weight: QuantizedTensor,
    bias: Tensor | None,
    source: Affine,
    target: Affine,
    bounds: tuple[float, float],
    typical: list[int] | None,
) -> Callable[[Tensor], Tensor]:
    """Return uint8 [..., in] -> uint8 [..., out].

    ``typical`` is a shape of the input to pack the weights for; None where torch.compile makes code of it, whose
    Inductor takes no weights that were packed beforehand, and fuses the rounding itself.
    """
    if typical is None:
        product, rounded = static_linear(weight, bias, source, bounds), static_codes(target, None)
        return lambda values: rounded(product(values))
    rows = math.prod(typical[:-1])
    packed = torch.ops.onednn.qlinear_prepack(weight.codes, [rows, typical[-1]])
    constants = (packed, _per_channel(weight), _zeros(weight), _without_zero_point(weight, bias, source))
    arguments = (*constants, *target, torch.uint8, *_clamp(target, bounds), "")
    kernel = torch.ops.onednn.qlinear_pointwise.default
    return lambda values: kernel(values, source.scale, 0, *arguments)


def convolution(
    weight: QuantizedTensor,
    bias: Tensor | None,
    shape: Geometry,
    source: Affine,
    target: Affine | None,
    bounds: tuple[float, float],
) -> Callable[[Tensor], Tensor]:
    """Return uint8 [n, in, ...] -> uint8 [n, out, ...], or float32 where there is no ``target``."""
    if len(shape.typical) == 3:
        return _one_dimensional(weight, bias, shape, source, target, bounds)
    zero_point = source.zero_point
    if not any(shape.padding):
        bias, zero_point = _without_zero_point(weight, bias, source), 0
    scale, dtype = _per_channel(weight), torch.float32 if target is None else torch.uint8
    packed = torch.ops.onednn.qconv_prepack(weight.codes, scale, source.scale, zero_point, *shape)
    written = target or Affine(1.0, 0)
    arguments = (packed, scale, _zeros(weight), bias, *shape[:-1], *written, dtype, *_clamp(target, bounds), "")
    kernel = torch.ops.onednn.qconv_pointwise.default
    return lambda values: kernel(values, source.scale, zero_point, *arguments)


def residual_sum(
    first: Affine, second: Affine, target: Affine | None, bounds: tuple[float, float]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return two uint8 tensors -> their sum, as uint8 codes of ``target`` or as float32.

    The sum itself is float arithmetic on codes: ``onednn.qadd`` reads codes above 127 as negative (torch 2.13).
    """
    unit, shift = (1.0, 0) if target is None else (target.scale, target.zero_point - _SIGN_BIT)
    left_factor, right_factor = first.scale / unit, second.scale / unit
    start = torch.tensor(shift - first.zero_point * left_factor - second.zero_point * right_factor)
    clamps = bounds != UNBOUNDED and not (target and target.implies(bounds))
    low, high = (bound / unit + shift for bound in bounds)

    def add(left: Tensor, right: Tensor) -> Tensor:
        total = torch.add(start, left, alpha=left_factor).add_(right, alpha=right_factor)
        if clamps:
            total.clamp_(low, high)
        return total if target is None else _saturate(total.round_())

    return add


def _one_dimensional(
    weight: QuantizedTensor, bias: Tensor | None, shape: Geometry, *rest: object
) -> Callable[[Tensor], Tensor]:
    """Return the convolution of images one pixel high: the kernel for one dimension lacks some clamps."""
    samples, channels, length = shape.typical
    flat = Geometry(
        [1, *shape.stride], [0, *shape.padding], [1, *shape.dilation], shape.groups, [samples, channels, 1, length]
    )
    codes, scale = weight.codes.unsqueeze(2), weight.scale.unsqueeze(2)
    two_dimensional = convolution(replace(weight, codes=codes, scale=scale), bias, flat, *rest)
    return lambda values: two_dimensional(values.unsqueeze(2)).squeeze(2)


def _saturate(rounded: Tensor) -> Tensor:
    """Turn codes less 128, in float and overwritten, into uint8; torch casts to int8 five times as fast."""
    return _signed(rounded).view(torch.uint8).bitwise_xor_(_SIGN_BIT)


def _signed(rounded: Tensor) -> Tensor:
    """Turn whole numbers, in float and overwritten, into the nearest int8."""
    return rounded.clamp_(-_SIGN_BIT, _HIGHEST_SIGNED).to(torch.int8)


def _multiply(codes: Tensor, transposed: Tensor) -> Tensor:
    """Return ``codes`` [..., in] times ``transposed`` [in, out], summed in 32-bit integers, as float32 [..., out]."""
    sums = torch._int_mm(codes.reshape(-1, codes.shape[-1]), transposed)
    return sums.to(torch.float32).view(*codes.shape[:-1], transposed.shape[1])


def _without_zero_point(weight: QuantizedTensor, bias: Tensor | None, source: Affine) -> Tensor:
    """Return the bias that makes up for not subtracting the zero point of the input."""
    scale = _per_channel(weight)
    shift = weight.codes.flatten(1).sum(1, dtype=torch.int64) * scale.double() * (source.scale * source.zero_point)
    return ((0.0 if bias is None else bias.double()) - shift).float()


def _per_channel(weight: QuantizedTensor) -> Tensor:
    return weight.scale.reshape(-1).expand(weight.codes.shape[0]).contiguous()


def _zeros(weight: QuantizedTensor) -> Tensor:
    return torch.zeros(weight.codes.shape[0], dtype=torch.int64)


def _clamp(target: Affine | None, bounds: tuple[float, float]) -> tuple[str, list[float]]:
    """Return oneDNN's name and arguments of a clamp, or no operation where saturation is the clamp."""
    if bounds == UNBOUNDED or (target is not None and target.implies(bounds)):
        return "none", []
    if bounds == (0.0, math.inf):
        return "relu", []
    limits = torch.finfo(torch.float32)
    return "hardtanh", [max(bounds[0], limits.min), min(bounds[1], limits.max)]


def _multiplies_exactly(largest: int) -> bool:
    size = 64
    weight = torch.full((size, size), largest, dtype=torch.int8)
    weight[1::2] = -largest
    expected = weight.sum(1, dtype=torch.int64)
    for code, dtype in ((255, torch.uint8), (_HIGHEST_SIGNED, torch.int8), (-_HIGHEST_SIGNED, torch.int8)):
        sums = torch._int_mm(torch.full((size, size), code, dtype=dtype), weight.t())
        if not torch.equal(sums.long(), (expected * code).expand_as(sums)):
            return False
    kernels = torch.ops.onednn
    image, scale, zeros = (
        torch.full((1, size, 1, 1), 255, dtype=torch.uint8),
        torch.ones(size),
        torch.zeros(size).long(),
    )
    shape = ([1, 1], [0, 0], [1, 1], 1)
    packed = kernels.qconv_prepack(weight[:, :, None, None], scale, 1.0, 0, *shape)
    after = (*shape, 1.0, 0, torch.float32, "none", [], "")
    sums = kernels.qconv_pointwise(image, 1.0, 0, packed, scale, zeros, None, *after).flatten()
    return torch.equal(sums.long(), expected * 255)


def _is_useful() -> bool:
    """Whether the int8 product is not far slower than the float one, as reference implementations are."""
    values, weight = torch.ones(64, 256), torch.ones(256, 256)
    codes, weight_codes = values.to(torch.int8), weight.to(torch.int8)
    integer = _fastest(lambda: torch._int_mm(codes, weight_codes.t()))
    return integer < _SLOWEST_USEFUL * _fastest(lambda: torch.mm(values, weight.t()))


def _fastest(function: Callable[[], Tensor]) -> float:
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
