"""ATen operators over channels and space as functions of channels-last ``mlx.core`` arrays [batch, ..., channels].

MLX's own convolution is fast on a GPU, and on a CPU where it is one large product. What is not - depthwise and grouped
convolutions - is computed on a CPU from shifted copies or group by group: the same sums in another order. Weights are
[out, ..., in / groups] for both kinds of convolution.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from quant.backends._mlx_blas import mx
from quant.backends._mlx_operators import in_float32, product

Array = mx.array
Sizes = int | Sequence[int]


@in_float32
def convolution(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Array:
    """Convolve with symmetric padding, or with "same" or "valid" padding."""
    kernel = weight.shape[1:-1]
    stride, dilation = _sizes(stride, len(kernel)), _sizes(dilation, len(kernel))
    if padding == "same":
        total = [reach * (size - 1) for size, reach in zip(kernel, dilation, strict=True)]
        x, padding = _padded(x, [(size // 2, size - size // 2) for size in total]), 0
    padding = _sizes(0 if padding == "valid" else padding, len(kernel))
    if groups == 1 and set(kernel) == {1}:
        x = _padded(x, [(size, size) for size in padding])
        x = x[(slice(None), *(slice(None, None, step) for step in stride))]
        return product(x, weight.reshape(weight.shape[0], -1).T, bias)
    if groups == 1 or mx.default_device() == mx.gpu:
        convolved = mx.conv_general(x, weight, stride, list(padding), dilation, groups=groups)
    elif weight.shape[-1] == 1:
        convolved = _depthwise(x, weight, stride, padding, dilation)
    else:
        pairs = zip(mx.split(x, groups, -1), mx.split(weight, groups), strict=True)
        parts = [mx.conv_general(part, of_part, stride, list(padding), dilation) for part, of_part in pairs]
        convolved = mx.concatenate(parts, -1)
    return convolved if bias is None else convolved + bias


@in_float32
def transposed_convolution(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Array:
    """Convolve the input spread out by ``stride``, group by group: MLX knows only one."""
    kernel = weight.shape[1:-1]
    stride, padding, output_padding, dilation = (
        _sizes(sizes, len(kernel)) for sizes in (stride, padding, output_padding, dilation)
    )
    reach = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
    before = [span - size for span, size in zip(reach, padding, strict=True)]
    after = [start + extra for start, extra in zip(before, output_padding, strict=True)]
    pairs = zip(mx.split(x, groups, -1), mx.split(weight, groups), strict=True)
    parts = [
        mx.conv_general(part, of_part, 1, (before, after), dilation, input_dilation=stride, flip=True)
        for part, of_part in pairs
    ]
    convolved = mx.concatenate(parts, -1)
    return convolved if bias is None else convolved + bias


def any_convolution(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
) -> Array:
    if transposed:
        return transposed_convolution(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return convolution(x, weight, bias, stride, padding, dilation, groups)


def max_pool(
    x: Array,
    kernel: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Array:
    space = x.ndim - 2
    kernel, padding, dilation = (_sizes(sizes, space) for sizes in (kernel, padding, dilation))
    stride = _sizes(stride or kernel, space)
    pads = _pool_padding(x, kernel, stride, padding, dilation, ceil_mode)
    pooled = None
    for window in _windows(_padded(x, pads, -math.inf), kernel, stride, dilation):
        pooled = window if pooled is None else mx.maximum(pooled, window)
    return pooled


def average_pool(
    x: Array,
    kernel: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Array:
    space = x.ndim - 2
    kernel, padding, ones = _sizes(kernel, space), _sizes(padding, space), (1,) * space
    stride = _sizes(stride or kernel, space)
    pads = _pool_padding(x, kernel, stride, padding, ones, ceil_mode)
    total = sum(_windows(_padded(x, pads), kernel, stride, ones))
    if divisor:
        return total / divisor
    for axis in range(space):
        count = _counts(x.shape[1 + axis], kernel[axis], stride[axis], pads[axis], padding[axis] * count_include_pad)
        total = total / mx.array(count, x.dtype).reshape(-1, *(1,) * (space - axis))
    return total


def adaptive_average_pool(x: Array, sizes: Sizes) -> Array:
    for axis, size in enumerate(_sizes(sizes, x.ndim - 2), 1):
        length = x.shape[axis]
        if size is None or size == length:
            continue
        bounds = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
        before = (slice(None),) * axis
        x = mx.concatenate([x[(*before, slice(*bound))].mean(axis, keepdims=True) for bound in bounds], axis)
    return x


def batch_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array,
    variance: Array,
    momentum: float,
    eps: float,
) -> tuple[Array]:
    factor = mx.rsqrt(variance + eps) * (1 if weight is None else weight)
    shift = -mean * factor + (0 if bias is None else bias)
    return (x * factor.astype(x.dtype) + shift.astype(x.dtype),)


def group_norm(
    x: Array, groups: int, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5, *_: bool
) -> Array:
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean = grouped.mean((1, 3), keepdims=True)
    variance = mx.square(grouped - mean).mean((1, 3), keepdims=True)
    normed = ((grouped - mean) * mx.rsqrt(variance + eps)).reshape(x.shape)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


def upsample_nearest(x: Array, sizes: Sequence[int] | None, factors: Sequence[float] | None = None) -> Array:
    for axis in range(1, x.ndim - 1):
        length = x.shape[axis]
        size = sizes[axis - 1] if sizes else math.floor(length * factors[axis - 1])
        step = 1 / factors[axis - 1] if factors else length / size
        x = mx.take(x, mx.array(np.minimum(np.floor(np.arange(size) * step), length - 1).astype(np.int32)), axis)
    return x


def _depthwise(
    x: Array, weight: Array, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Array:
    """Return the sum of the input shifted to each tap of the kernel, weighted per channel."""
    multiplier = weight.shape[0] // x.shape[-1]
    x = mx.repeat(x, multiplier, -1) if multiplier > 1 else x
    taps = weight.reshape(weight.shape[0], -1).T
    windows = _windows(_padded(x, [(size, size) for size in padding]), weight.shape[1:-1], stride, dilation)
    return sum(window * tap for window, tap in zip(windows, taps, strict=True))


def _windows(x: Array, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Iterator[Array]:
    """Yield, for each tap of the kernel, the inputs that all outputs see through it."""
    reach = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
    last = [(x.shape[1 + i] - reach[i] - 1) // step * step for i, step in enumerate(stride)]
    for tap in itertools.product(*(range(size) for size in kernel)):
        starts = [place * step for place, step in zip(tap, dilation, strict=True)]
        spans = zip(starts, last, stride, strict=True)
        yield x[(slice(None), *(slice(start, start + end + 1, step) for start, end, step in spans))]


def _padded(x: Array, pads: Sequence[tuple[int, int]], value: float = 0) -> Array:
    return mx.pad(x, [(0, 0), *pads, (0, 0)], constant_values=value) if any(map(any, pads)) else x


def _pool_padding(
    x: Array,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[tuple[int, int]]:
    """Return the padding before and after each axis; ``ceil_mode`` completes a last window that starts inside."""
    pads = []
    for axis, (size, step, pad, reach) in enumerate(zip(kernel, stride, padding, dilation, strict=True)):
        length, span = x.shape[1 + axis], reach * (size - 1) + 1
        after = pad
        if ceil_mode:
            starts = -(-(length + 2 * pad - span) // step)
            if starts * step < length + pad:
                after = max(pad, starts * step + span - length - pad)
        pads.append((pad, after))
    return pads


def _counts(length: int, size: int, step: int, pads: tuple[int, int], counted: int) -> np.ndarray:
    """Return how many elements each window along an axis averages: those of the input, and ``counted`` of the pads."""
    before, after = pads
    starts = np.arange(0, length + before + after - size + 1, step) - before
    return np.minimum(starts + size, length + counted) - np.maximum(starts, -counted)


def _sizes(sizes: Sizes, count: int) -> tuple[int, ...]:
    """Return one size per axis; ATen lets one number stand for all."""
    listed = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return listed * count if len(listed) == 1 else listed


CONVOLUTIONS: dict[str, Callable] = {
    "aten.conv1d.default": convolution,
    "aten.conv1d.padding": convolution,
    "aten.conv2d.default": convolution,
    "aten.conv2d.padding": convolution,
    "aten.conv_transpose1d.default": transposed_convolution,
    "aten.conv_transpose2d.input": transposed_convolution,
    "aten.convolution.default": any_convolution,
}
"""Operators whose second argument is a weight with axes to arrange."""

SPATIAL: dict[str, Callable] = CONVOLUTIONS | {
    "aten._native_batch_norm_legit_no_training.default": batch_norm,
    "aten.adaptive_avg_pool1d.default": adaptive_average_pool,
    "aten.adaptive_avg_pool2d.default": adaptive_average_pool,
    "aten.avg_pool1d.default": average_pool,
    "aten.avg_pool2d.default": average_pool,
    "aten.batch_norm.default": lambda x, w, b, mean, variance, training, momentum, eps, *_: batch_norm(
        x, w, b, mean, variance, momentum, eps
    )[0],
    "aten.group_norm.default": group_norm,
    "aten.max_pool1d.default": max_pool,
    "aten.max_pool2d.default": max_pool,
    "aten.prelu.default": lambda x, slope: mx.where(x > 0, x, x * slope),
    "aten.upsample_nearest1d.vec": upsample_nearest,
    "aten.upsample_nearest2d.vec": upsample_nearest,
}
"""Operators on [batch, ..., channels]; of an input without space, channels are the last axis anyway."""
