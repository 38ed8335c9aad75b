"""Compressed weights and quantized activations of a Core ML program, for the reference evaluator."""

import torch
from torch import Tensor

from quant.backends._coreml_operators import DTYPES, Sizes, integers, operator

_CODE_RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


@operator("quantize")
def _quantize(
    input: Tensor,
    scale: Tensor | float,
    output_dtype: str,
    zero_point: Tensor | int | None = None,
    axis: int | None = None,
) -> Tensor:
    low, high = _CODE_RANGES[output_dtype]
    codes = (input / _along(scale, input, axis)).round_()
    if zero_point is not None:
        codes += _along(zero_point, input, axis)
    return codes.clamp_(low, high).to(DTYPES[output_dtype])


@operator("dequantize")
def _dequantize(
    input: Tensor, scale: Tensor | float, zero_point: Tensor | int | None = None, axis: int | None = None
) -> Tensor:
    codes = input.float()
    if zero_point is not None:
        codes = codes - _along(zero_point, input, axis)
    return codes * _along(scale, input, axis)


@operator("constexpr_cast")
def _constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    return source_val.to(DTYPES[output_dtype])


@operator("constexpr_affine_dequantize")
def _constexpr_affine_dequantize(
    quantized_data: Tensor, zero_point: Tensor | int, scale: Tensor | float, axis: int
) -> Tensor:
    return _dequantize(quantized_data, scale, zero_point, axis)


@operator("constexpr_blockwise_shift_scale")
def _constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    # Each dimension is seen as blocks times elements, so that one scale broadcasts over its block.
    blocks = [part for size, count in zip(data.shape, scale.shape, strict=True) for part in (count, size // count)]
    per_block = [part for count in scale.shape for part in (count, 1)]
    values = data.float().reshape(blocks)
    if offset is not None:
        values = values - offset.float().reshape(per_block)
    return (values * scale.reshape(per_block)).reshape(data.shape)


@operator("constexpr_lut_to_dense")
def _constexpr_lut_to_dense(
    indices: Tensor, lut: Tensor, vector_axis: int | None = None, shape: Sizes | None = None
) -> Tensor:
    if shape is not None:
        return lut[_unpack(indices, lut.numel().bit_length() - 1, integers(shape))]
    tables, entries, length = lut.shape[: indices.ndim], lut.shape[-2], lut.shape[-1]
    table = torch.arange(torch.Size(tables).numel()).reshape(tables)
    for axis, (size, count) in enumerate(zip(indices.shape, tables, strict=True)):
        table = table.repeat_interleave(size // count, axis)
    vectors = lut.reshape(-1, length)[table * entries + indices.long()]
    if length == 1:
        return vectors.squeeze(-1)
    vector_axis %= indices.ndim
    return vectors.movedim(-1, vector_axis + 1).flatten(vector_axis, vector_axis + 1)


@operator("constexpr_sparse_to_dense")
def _constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor) -> Tensor:
    dense = nonzero_data.new_zeros(mask.shape)
    dense[mask.bool()] = nonzero_data
    return dense


@operator("constexpr_sparse_blockwise_shift_scale")
def _constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    dense = _constexpr_blockwise_shift_scale(_constexpr_sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask.bool()]


def _along(value: Tensor | float, x: Tensor, axis: int | None) -> Tensor | float:
    """Return a scale or zero point so that it broadcasts over ``x``: per tensor, or along ``axis``."""
    if not isinstance(value, Tensor) or value.numel() == 1:
        return value
    return value.float().reshape([-1 if dimension == axis % x.ndim else 1 for dimension in range(x.ndim)])


def _unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Return the indices that iOS 16 packs, ``bits`` each, least significant bit first."""
    flags = (packed.reshape(-1, 1) >> torch.arange(8)) & 1
    flags = flags.reshape(-1)[: torch.Size(shape).numel() * bits].reshape(-1, bits)
    return (flags << torch.arange(bits)).sum(1).reshape(shape)
