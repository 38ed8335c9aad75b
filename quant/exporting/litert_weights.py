"""Quantized weights in the operators that the converter to TensorFlow Lite's format keeps as stored codes.

It keeps them in two forms. A symmetric weight, per channel or per tensor, of an operator that reads and writes integers
is rounded once more where it stands, to the codes it has already; the converter does that and fuses the operator into
an integer kernel. Any other is arithmetic on its codes, of four bits or eight, which the runtime repeats whenever it
runs; the converter would do it ahead, and store floats, if it knew the codes (see :mod:`quant.exporting.litert_file`).
"""

import torch
from torch import Tensor, nn

from quant.exporting.decomposed import code_range
from quant.scheme import NumberFormat
from quant.tensor import QuantizedTensor, stored_parts

_OPERATORS = torch.ops.quantized_decomposed


def suits_integer_kernels(weight: QuantizedTensor) -> bool:
    """Whether a weight is symmetric integers, per channel or per tensor."""
    several = sum(count > 1 for count in weight.scale.shape)
    return weight.format.symmetric and weight.codebook is None and several <= 1 and not _in_groups(weight)


class RoundedWeight(nn.Module):
    """A symmetric weight that is quantized, per channel or tensor, and dequantized."""

    def __init__(self, weight: QuantizedTensor) -> None:
        super().__init__()
        along = [axis for axis, count in enumerate(weight.scale.shape) if count > 1]
        self.axis, channels = (along[0], weight.scale.numel()) if along else (0, weight.codes.shape[0])
        self.limits = (*code_range(weight.format), torch.int8)
        self.register_buffer("values", weight.dequantize())
        self.register_buffer("scale", weight.scale.reshape(-1).float().expand(channels).contiguous())
        self.register_buffer("zero_point", torch.zeros(channels, dtype=torch.int64))

    def forward(self) -> Tensor:
        """Return the weight, float32."""
        described = (self.scale, self.zero_point, self.axis, *self.limits)
        return _OPERATORS.dequantize_per_channel(_OPERATORS.quantize_per_channel(self.values, *described), *described)


class HeldWeight(nn.Module):
    """A weight of integers as arithmetic on its parts as they are stored: codes and zero points int8, and scales.

    Raises:
        ValueError: it is something else, or its groups do not divide its rows.
    """

    def __init__(self, name: str, weight: QuantizedTensor) -> None:
        super().__init__()
        self.shape = tuple(weight.codes.shape)
        grouped = _in_groups(weight)
        whole = all(count in (1, size) for count, size in zip(weight.scale.shape, self.shape, strict=True))
        if weight.codebook is not None or not (grouped or whole):
            raise ValueError(
                f"LiteRT holds integers per tensor, per channel and in whole groups of a row; {name!r} is "
                f"{weight.format}."
            )
        codes, scale, zero_point = centred(weight.codes, weight.format), stored_parts(weight)["scale"], None
        if weight.zero_point is not None:
            zero_point = centred(weight.zero_point, weight.format)
        if grouped:
            codes = codes.unflatten(-1, (-1, weight.block[-1]))
            scale, zero_point = (None if part is None else part.unsqueeze(-1) for part in (scale, zero_point))
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def forward(self) -> Tensor:
        """Return the weight dequantized, float32."""
        codes = self.codes.float()
        real = (codes if self.zero_point is None else codes - self.zero_point.float()) * self.scale.float()
        return real.reshape(self.shape)


def held(name: str, weight: QuantizedTensor) -> dict[str, bool]:
    """Return the buffers of a :class:`HeldWeight` in a program, with whether four bits are enough for them."""
    small = weight.format.bits <= 4
    parts = {"codes": small, "scale": False} | ({} if weight.zero_point is None else {"zero_point": small})
    return {f"{name}.{part}": four_bits for part, four_bits in parts.items()}


def centred(codes: Tensor, format: NumberFormat) -> Tensor:
    """Return codes or zero points as int8, unsigned ones shifted by half their range."""
    return (codes.to(torch.int16) - (0 if format.signed else 2 ** (format.bits - 1))).to(torch.int8)


def _in_groups(weight: QuantizedTensor) -> bool:
    groups, columns = weight.scale.shape[-1], weight.codes.shape[-1]
    return 1 < groups < columns and groups * weight.block[-1] == columns
