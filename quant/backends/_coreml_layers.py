"""Convolutions, pools and resizes of a Core ML program, for the reference evaluator."""

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.backends._coreml_operators import Sizes, integers, operator, torch_padding


@operator("conv")
def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Sizes | None = None,
    pad_type: str = "valid",
    pad: Sizes | None = None,
    dilations: Sizes | None = None,
    groups: int = 1,
) -> Tensor:
    spatial = weight.ndim - 2
    strides, dilations = strides or (1,) * spatial, dilations or (1,) * spatial
    before, after = _padding(pad_type, pad, x.shape[2:], weight.shape[2:], strides, dilations)
    if before != after:
        x, before = F.pad(x, torch_padding(before, after)), (0,) * spatial
    return (F.conv1d, F.conv2d, F.conv3d)[spatial - 1](x, weight, bias, strides, before, dilations, groups)


@operator("conv_transpose")
def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Sizes | None = None,
    output_shape: Sizes | None = None,
    pad_type: str = "valid",
    strides: Sizes | None = None,
    dilations: Sizes | None = None,
    groups: int = 1,
) -> Tensor:
    spatial = weight.ndim - 2
    strides, dilations = strides or (1,) * spatial, dilations or (1,) * spatial
    transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
    full = transposed(x, weight, None, strides, 0, 0, groups, dilations)
    if pad_type == "custom":
        before, after = pad[::2], pad[1::2]
    elif pad_type == "valid":
        before = after = (0,) * spatial
    else:
        cut = [size - n * stride for size, n, stride in zip(full.shape[2:], x.shape[2:], strides, strict=True)]
        before = tuple(extra // 2 for extra in cut)
        after = tuple(extra - extra // 2 for extra in cut)
    if output_shape is not None:
        wanted = integers(output_shape)[2:]
        after = tuple(n - b - size for n, b, size in zip(full.shape[2:], before, wanted, strict=True))
    # A negative padding crops; a positive one is output beyond the reach of the kernel, which holds the bias alone.
    output = F.pad(full, torch_padding(tuple(-b for b in before), tuple(-a for a in after)))
    return output if bias is None else output + bias.reshape(-1, *[1] * spatial)


@operator("avg_pool")
def _avg_pool(
    x: Tensor,
    kernel_sizes: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    pad_type: str = "valid",
    pad: Sizes | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    spatial = len(kernel_sizes)
    strides, function = strides or (1,) * spatial, (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[spatial - 1]
    before, after = _padding(pad_type, pad, x.shape[2:], kernel_sizes, strides, (1,) * spatial)
    if before == after:
        return function(x, kernel_sizes, strides, before, ceil_mode, not exclude_padding_from_average)
    padding = torch_padding(before, after)
    pooled = function(F.pad(x, padding), kernel_sizes, strides, 0, ceil_mode)
    if not exclude_padding_from_average:
        return pooled
    return pooled / function(F.pad(torch.ones_like(x[:1, :1]), padding), kernel_sizes, strides, 0, ceil_mode)


@operator("max_pool")
def _max_pool(
    x: Tensor,
    kernel_sizes: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    pad_type: str = "valid",
    pad: Sizes | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    spatial = len(kernel_sizes)
    strides, function = strides or (1,) * spatial, (F.max_pool1d, F.max_pool2d, F.max_pool3d)[spatial - 1]
    before, after = _padding(pad_type, pad, x.shape[2:], kernel_sizes, strides, (1,) * spatial)
    if before != after:
        x, before = F.pad(x, torch_padding(before, after), value=float("-inf")), (0,) * spatial
    return function(x, kernel_sizes, strides, before, 1, ceil_mode)


@operator("crop")
def _crop(x: Tensor, crop_height: tuple[int, int], crop_width: tuple[int, int]) -> Tensor:
    (top, bottom), (left, right) = crop_height, crop_width
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


@operator("upsample_nearest_neighbor")
def _upsample_nearest(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    return F.interpolate(x, scale_factor=(float(scale_factor_height), float(scale_factor_width)), mode="nearest")


@operator("upsample_bilinear")
def _upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """With either aligned corners or half-pixel centres."""
    if half_pixel_centers is not None and half_pixel_centers == align_corners:
        raise ValueError("upsample_bilinear is evaluated with either aligned corners or half-pixel centres.")
    factors = (float(scale_factor_height), float(scale_factor_width))
    return F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=align_corners)


def _padding(
    pad_type: str, pad: Sizes | None, sizes: Sizes, kernel: Sizes, strides: Sizes, dilations: Sizes
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return how much to pad before and after each spatial dimension."""
    if pad_type == "custom":
        return pad[::2], pad[1::2]
    if pad_type == "valid":
        return (0,) * len(kernel), (0,) * len(kernel)
    before, after = [], []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(large if pad_type == "same_lower" else small)
        after.append(small if pad_type == "same_lower" else large)
    return tuple(before), tuple(after)
