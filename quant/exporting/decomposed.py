"""Quantized weights and activations in PT2E's operators, ``quantized_decomposed``, which ExecuTorch's backends match.

Codes are int8, as those backends have them: unsigned ones of 8 bits are shifted by 128 together with their zero points.
"""

from collections.abc import Callable

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn

from quant.graph import ActivationQuantizer
from quant.scheme import NumberFormat
from quant.tensor import QuantizedTensor

_OPERATORS = torch.ops.quantized_decomposed
_SHIFT = 128


class DecomposedWeight(nn.Module):
    """A weight of integers per tensor, per channel, or in groups along the rows of a matrix.

    Raises:
        ValueError: it is something else, which PT2E has no operator for.
    """

    def __init__(self, name: str, weight: QuantizedTensor) -> None:
        super().__init__()
        self.low, self.high = code_range(weight.format)
        along = [axis for axis, count in enumerate(weight.scale.shape) if count > 1]
        self.group = weight.block[-1] if _in_groups(weight) else None
        if weight.codebook is not None or (len(along) > 1 and self.group is None):
            raise ValueError(
                f"PT2E has operators for integers per tensor, per channel and in whole groups of a row; {name!r} is "
                f"{weight.format}."
            )
        self.axis = along[0] if along else 0
        whole = self.group is not None
        self.register_buffer("codes", shifted(weight.codes, weight.format).to(torch.int8))
        count = weight.scale.numel()
        zero_point = torch.zeros(count) if weight.zero_point is None else shifted(weight.zero_point, weight.format)
        shape = weight.scale.shape if whole else (-1,)
        self.register_buffer("scale", weight.scale.reshape(shape))
        self.register_buffer("zero_point", zero_point.to(torch.int64).reshape(shape))

    def forward(self) -> Tensor:
        """Return the weight dequantized, float32."""
        scale, zero_point, limits = self.scale, self.zero_point, (self.low, self.high, torch.int8)
        if self.group is not None:
            operator = _OPERATORS.dequantize_per_channel_group
            return operator(self.codes, scale, zero_point, *limits, self.group, torch.float32)
        return _OPERATORS.dequantize_per_channel(self.codes, scale, zero_point, self.axis, *limits)


def quantizer(described: ActivationQuantizer) -> Callable[[Tensor], Tensor]:
    """Return what quantizes and dequantizes a value.

    Raises:
        ValueError: its range is not fixed, or not one of the whole tensor.
    """
    if described.mode == "none":
        return described
    if described.mode != "static" or described.scale.numel() != 1 or described.format.bits > 8:
        raise ValueError("PT2E's graphs have activations in fixed ranges per tensor here: use a static method.")
    low, high = code_range(described.format)
    zero = torch.zeros((), dtype=torch.int32) if described.zero_point is None else described.zero_point
    scale, zero_point = described.scale.item(), int(shifted(zero, described.format).item())
    input_scale, limits = described.input_scale, (low, high, torch.int8)

    def function(values: Tensor) -> Tensor:
        values = values if input_scale is None else values * input_scale
        codes = _OPERATORS.quantize_per_tensor(values, scale, zero_point, *limits)
        return _OPERATORS.dequantize_per_tensor(codes, scale, zero_point, *limits)

    return function


def shifted(codes: Tensor, format: NumberFormat) -> Tensor:
    """Return codes or zero points (int16) as PT2E has them."""
    return codes.to(torch.int16) - _SHIFT * _is_shifted(format)


def unshifted(codes: Tensor, bits: int, signed: bool) -> Tensor:
    """Return codes int8 as the tables have them, uint8 or int8."""
    if signed:
        return codes
    return (codes.to(torch.int16) + _SHIFT * (bits == 8)).to(torch.uint8)


def code_range(format: NumberFormat) -> tuple[int, int]:
    """Return the smallest and the largest code as PT2E has them."""
    return int(format.lowest) - _SHIFT * _is_shifted(format), int(format.highest) - _SHIFT * _is_shifted(format)


def _is_shifted(format: NumberFormat) -> bool:
    return format.bits == 8 and not format.signed


def _in_groups(weight: QuantizedTensor) -> bool:
    rows_apart = weight.codes.ndim == 2 and weight.block[0] == 1
    return rows_apart and weight.scale.shape[1] > 1 and weight.codes.shape[1] % weight.block[1] == 0
