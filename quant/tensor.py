"""Quantized tensors: integer codes with scales shared by blocks, and the arithmetic that makes and undoes them.

A *block* generalizes tensor, channel and group granularity: ``block[d]`` neighbouring elements along dimension ``d``
share one scale, so ``scale.shape[d] == ceil(codes.shape[d] / block[d])`` and the last block may be short.

Scales are rounded to their storage type before codes are chosen; every backend can then hold the same numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from quant.formats import CODEBOOKS, round_to_e4m3, round_up_to_e8m0, shared_power
from quant.scheme import NumberFormat

_SMALLEST_NORMAL_FLOAT16 = 2.0**-14
_LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class QuantizedTensor:
    """A parameter as ``(codes - zero_point) * scale``, or as ``codebook[codes] * scale``.

    codes       uint8 (asymmetric, codebook) or int8 (symmetric), the parameter's shape
    scale       float32, exact in ``format.scale_dtype``, one value per block, as many dimensions as ``codes``; ones
                where the format has no scale
    zero_point  uint8, the shape of ``scale``; None for symmetric formats
    codebook    float32 [2**bits], or [tables, 2**bits] with one table for every ceil(rows / tables) indices of the
                first dimension; None for integers
    block       elements per scale along each dimension
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    codebook: Tensor | None
    block: tuple[int, ...]
    format: NumberFormat

    def dequantize(self) -> Tensor:
        """Return float32 values of the parameter's shape."""
        values = self.codes.float() if self.codebook is None else self._looked_up()
        if self.zero_point is not None:
            values = values - expand(self.zero_point.float(), self.block, self.codes.shape)
        return values * expand(self.scale, self.block, self.codes.shape)

    @property
    def nbits(self) -> int:
        """Bits of the codes, scales, zero points and codebook, packed without padding."""
        scale = 0 if self.format.scale_dtype is None else self.scale.numel() * self.format.scale_bits
        if self.format.scale_dtype == "float8_e4m3fn":
            scale += 32  # what all scales have in common
        zero_points = 0 if self.zero_point is None else self.zero_point.numel() * self.format.bits
        # Entries of a named codebook are part of its format; learned ones are stored in half precision.
        codebook = self.codebook.numel() * 16 if self.format.codebook == "learned" else 0
        return self.codes.numel() * self.format.bits + scale + zero_points + codebook

    @property
    def rows_per_table(self) -> int:
        """Indices of the first dimension that share one table of the codebook."""
        tables = self.codebook.shape[0] if self.codebook.ndim == 2 else 1
        return -(-self.codes.shape[0] // tables)

    def _looked_up(self) -> Tensor:
        indices = self.codes.int()
        if self.codebook.ndim == 2:
            table = torch.arange(self.codes.shape[0], dtype=torch.int32) // self.rows_per_table
            indices += (table * self.codebook.shape[1]).reshape(-1, *[1] * (self.codes.ndim - 1))
        # Plain indexing would widen the indices to 64 bits first.
        return self.codebook.flatten().index_select(0, indices.flatten()).reshape(self.codes.shape)


def quantize(weight: Tensor, format: NumberFormat, block: tuple[int, ...]) -> QuantizedTensor:
    """Round ``weight`` (float, any shape) to the nearest codes between the extremes of each block."""
    low, high = block_extremes(weight, block)
    scale, zero_point = scale_and_zero_point(low, high, format)
    return quantize_with(weight, scale, zero_point, format, block)


def quantize_with(
    weight: Tensor, scale: Tensor, zero_point: Tensor | None, format: NumberFormat, block: tuple[int, ...]
) -> QuantizedTensor:
    """Round ``weight`` to the nearest codes of the given scales (and zero points), one per block."""
    codes = weight.float() / expand(scale, block, weight.shape)
    if format.codebook:
        codebook = CODEBOOKS[format.codebook]
        return QuantizedTensor(codebook.nearest(codes), scale, None, codebook.entries, tuple(block), format)
    codes.round_()
    if zero_point is not None:
        codes += expand(zero_point.float(), block, weight.shape)
    codes = codes.clamp_(format.lowest, format.highest).to(torch.int8 if format.symmetric else torch.uint8)
    return QuantizedTensor(codes, scale, zero_point, None, tuple(block), format)


def scale_and_zero_point(low: Tensor, high: Tensor, format: NumberFormat) -> tuple[Tensor, Tensor | None]:
    """Return the float32 scale that covers ``[low, high]``, rounded to storage, and its zero point (None if symmetric).

    A range without extent (a dead channel) gets scale 1, so that its codes are exactly zero.

    Raises:
        ValueError: the range is not finite, or its scale does not fit the storage type.
    """
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise ValueError("a range to quantize holds NaN or infinity: check the weights or the calibration data.")
    steps = format.highest if format.symmetric else format.highest - format.lowest
    extent = torch.maximum(-low, high) if format.symmetric else high - low
    scale = round_scale(extent / steps, format)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    if format.symmetric:
        return scale, None
    return scale, (-low / scale).round().clamp(format.lowest, format.highest).to(torch.uint8)


def round_scale(scale: Tensor, format: NumberFormat) -> Tensor:
    """Round ``scale`` to a value its storage type holds exactly, in the significant bits the format allows.

    To nearest: rounded down, the largest weight of a block is clipped by at most a sixteenth of a step, and rounding
    every scale up costs more. Powers of two (e8m0) are rounded up, because there it would be half of the range. Scales
    in e4m3 share a power of two, so all of a tensor belong in one call.
    """
    if format.scale_dtype == "float32":
        return scale
    if format.scale_dtype == "float8_e8m0fnu":
        return round_up_to_e8m0(scale)
    if format.scale_dtype == "float8_e4m3fn":
        return round_to_e4m3(scale)
    if scale.numel() and scale.max() > _LARGEST_FLOAT16:
        raise ValueError(f"a scale of {scale.max():.3g} does not fit half precision: rescale the weights.")
    mantissa, exponent = torch.frexp(scale)
    # Subnormal halves have ever fewer significant bits: below the smallest normal one the grid is absolute.
    exponent = exponent.clamp(min=int(np.log2(_SMALLEST_NORMAL_FLOAT16)) + 1)
    step = torch.ldexp(torch.ones_like(scale), exponent - format.scale_significant_bits)
    return torch.where(mantissa == 0, scale, (scale / step).round() * step).clamp(max=_LARGEST_FLOAT16)


def block_extremes(values: Tensor, block: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the minimum and maximum of each block, zero included, shaped as a scale is."""
    blocked = in_blocks(values, block)
    within = tuple(range(1, blocked.ndim, 2))
    return blocked.amin(within).clamp(max=0), blocked.amax(within).clamp(min=0)


def expand(per_block: Tensor, block: tuple[int, ...], shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Return ``per_block`` repeated to ``shape``; a broadcastable view where no copy is needed."""
    for dimension, size in enumerate(block):
        if per_block.shape[dimension] == 1 or size == 1:
            continue
        per_block = per_block.repeat_interleave(size, dimension).narrow(dimension, 0, shape[dimension])
    return per_block


def block_of(format: NumberFormat, shape: tuple[int, ...], channel_block: tuple[int, ...]) -> tuple[int, ...]:
    """Return the block of a weight of ``shape``, given the block that one output channel makes of it.

    Groups run along the last dimension: the input features of a linear layer, the vector of an embedding. In a kernel
    they run along the flattened input, and hold as many whole input channels as fit, at least one.
    """
    if format.granularity == "tensor":
        return tuple(shape)
    if format.granularity == "channel":
        return tuple(channel_block)
    if len(shape) < 3:
        return (*channel_block[:-1], min(format.group_size, shape[-1]))
    channels = max(1, format.group_size // prod(shape[2:]))
    return (*(min(channels, size) for size in channel_block[:2]), *channel_block[2:])


def stored_parts(tensor: QuantizedTensor) -> dict[str, Tensor]:
    """Return scales and learned tables in the types they are stored in; what the format does not have is left out.

    scale         ``format.scale_dtype``, the shape of ``tensor.scale``
    shared_scale  float32 without dimensions, which multiplies all e4m3 scales
    codebook      float16, the shape of ``tensor.codebook``
    """
    parts = {}
    if tensor.format.scale_dtype == "float8_e4m3fn":
        parts["shared_scale"] = shared_power(tensor.scale)
        parts["scale"] = (tensor.scale / parts["shared_scale"]).to(torch.float8_e4m3fn)
    elif tensor.format.scale_dtype is not None:
        parts["scale"] = tensor.scale.to(getattr(torch, tensor.format.scale_dtype))
    if tensor.format.codebook == "learned":
        parts["codebook"] = tensor.codebook.half()
    return parts


def restored(
    codes: Tensor,
    parts: Mapping[str, Tensor],
    zero_point: Tensor | None,
    block: Sequence[int],
    format: NumberFormat,
) -> QuantizedTensor:
    """Return the tensor that has the given codes and zero points and, in ``parts``, what :func:`stored_parts` made.

    Raises:
        ValueError: the parts do not fit each other.
    """
    scale = torch.ones((1,) * codes.ndim)
    if len(block) != codes.ndim:
        raise ValueError(f"blocks of {tuple(block)} do not divide codes of shape {tuple(codes.shape)}")
    if format.scale_dtype is not None:
        scale = parts["scale"].float() * parts.get("shared_scale", 1)
        expected = tuple(-(-size // within) for size, within in zip(codes.shape, block, strict=True))
        for name, part in (("scales", scale), ("zero points", zero_point)):
            if part is not None and tuple(part.shape) != expected:
                raise ValueError(f"there are {tuple(part.shape)} {name} instead of {expected}")
    if (zero_point is None) != (format.symmetric or format.codebook is not None):
        raise ValueError(f"zero points are missing, or {format} has none")
    table = None
    if format.codebook is not None:
        table = parts["codebook"].float() if format.codebook == "learned" else CODEBOOKS[format.codebook].entries
        if table.shape[-1] != 2**format.bits:
            raise ValueError(f"a look-up table has {table.shape[-1]} entries instead of {2**format.bits}")
    return QuantizedTensor(codes, scale, zero_point, table, tuple(block), format)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return the low ``bits`` of each code as one little-endian stream of bytes (uint8 [ceil(n * bits / 8)])."""
    flat = codes.contiguous().view(torch.uint8).reshape(-1, 1).numpy()
    if bits == 8:
        return torch.from_numpy(flat.ravel().copy())
    return torch.from_numpy(np.packbits(np.unpackbits(flat, axis=1, count=bits, bitorder="little"), bitorder="little"))


def unpack(stream: Tensor, bits: int, shape: tuple[int, ...], signed: bool) -> Tensor:
    """Undo :func:`pack`.

    Raises:
        ValueError: the stream is too short for the shape.
    """
    count = prod(shape)
    if stream.numel() != -(-count * bits // 8):
        raise ValueError(f"{stream.numel()} bytes cannot hold {count} codes of {bits} bits.")
    if bits == 8:
        return stream.clone().view(torch.int8 if signed else torch.uint8).reshape(shape)
    flags = np.unpackbits(stream.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    codes = np.packbits(flags, axis=1, bitorder="little").reshape(shape)
    if signed:
        shift = 8 - bits
        codes = (codes << shift).view(np.int8) >> shift
    return torch.from_numpy(codes)


def in_blocks(values: Tensor, block: tuple[int, ...]) -> Tensor:
    """View ``values`` as [blocks, within, blocks, within, ...], padded with zeros, which never widen a range."""
    counts = [-(-size // within) for size, within in zip(values.shape, block, strict=True)]
    padding = [count * within - size for size, within, count in zip(values.shape, block, counts, strict=True)]
    if any(padding):
        values = torch.nn.functional.pad(values, [side for extra in reversed(padding) for side in (0, extra)])
    return values.reshape([side for pair in zip(counts, block, strict=True) for side in pair])
