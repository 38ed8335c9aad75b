"""Quantized weights in MLX's own packing where it can express them, as plain codes where it cannot, and back.

MLX's affine packing is ``code * scale + bias`` for groups of 32, 64 or 128 along the last axis, the codes one
little-endian stream of bits in words of 32: what ``mlx.nn.QuantizedLinear`` and ``QuantizedEmbedding`` hold under the
names ``weight``, ``scales`` and ``biases``. Everything else is stored as codes with scales and dequantized on loading.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from quant.backends._mlx_blas import mx
from quant.scheme import NumberFormat
from quant.tensor import QuantizedTensor, pack, unpack

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (32, 64, 128)
NATIVE_GROUP = 64
"""What ``mlx.nn.quantize`` groups by unless told otherwise."""


@dataclass(frozen=True)
class AffineWeight:
    """A weight that stays packed: codes uint32 [rows, words], scales and biases [rows, groups]."""

    codes: mx.array
    scales: mx.array
    biases: mx.array
    group_size: int
    bits: int

    def multiply(self, x: mx.array) -> mx.array:
        """Return ``x @ weight.T`` on the packed codes."""
        return mx.quantized_matmul(x, *self.parts, transpose=True, group_size=self.group_size, bits=self.bits)

    def rows(self, indices: mx.array) -> mx.array:
        """Return the dequantized rows at ``indices``: only those are unpacked."""
        parts = (part[indices] for part in self.parts)
        return mx.dequantize(*parts, group_size=self.group_size, bits=self.bits)

    def dequantize(self) -> mx.array:
        return mx.dequantize(*self.parts, group_size=self.group_size, bits=self.bits)

    @property
    def parts(self) -> tuple[mx.array, mx.array, mx.array]:
        return self.codes, self.scales, self.biases


def arrange(weight: Tensor, groups: int) -> Tensor:
    """Return a convolution's weight with its axes in MLX's order, [out, ..., in / groups].

    ``groups`` is 0 for an ordinary convolution [out, in / groups, ...], else the groups of a transposed one
    [in, out / groups, ...].
    """
    if groups:
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.movedim(1, -1).contiguous()


def encode(name: str, tensor: QuantizedTensor, taken: Collection[str]) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Return how a weight is stored, as plain JSON types, and the tensors to store.

    ``taken`` are the names of all parameters, which no tensor may have but the weight's own codes.
    """
    form = "affine" if is_affine(tensor) else "codes"
    stored = _affine(tensor) if form == "affine" else _codes(tensor)
    names = _names(name, stored, taken)
    entry = {"form": form, "tensors": names, "format": asdict(tensor.format), "block": tensor.block}
    entry["shape"] = list(tensor.codes.shape)
    return entry, {names[part]: value for part, value in stored.items()}


def encode_native(
    name: str, values: Tensor, bits: int, taken: Collection[str]
) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Return the same for what ``mx.quantize`` makes of a float weight [rows, columns], in its own groups."""
    parts = mx.quantize(mx.array(values.numpy()), NATIVE_GROUP, bits)
    stored = {
        part: torch.from_numpy(np.array(array))
        for part, array in zip(("codes", "scales", "biases"), parts, strict=True)
    }
    names = _names(name, stored, taken)
    format = NumberFormat(bits, symmetric=False, granularity="group", group_size=NATIVE_GROUP, scale_dtype="float32")
    entry = {"form": "affine", "tensors": names, "format": asdict(format), "block": (1, NATIVE_GROUP)}
    entry["shape"] = list(values.shape)
    return entry, {names[part]: value for part, value in stored.items()}


def decode(entry: dict, arrays: dict[str, mx.array], dtype: mx.Dtype) -> "AffineWeight | Tensor":
    """Return a packed weight ready to multiply with values of ``dtype``, or the float32 values of plain codes."""
    parts = {part: arrays[name] for part, name in entry["tensors"].items()}
    format, shape = NumberFormat(**entry["format"]), entry["shape"]
    if entry["form"] == "affine":
        scales, biases = (parts[part].astype(dtype) for part in ("scales", "biases"))
        return AffineWeight(parts["codes"], scales, biases, entry["block"][1], format.bits)
    tensors = {part: torch.from_numpy(np.array(value)) for part, value in parts.items()}
    signed = format.symmetric and "codebook" not in tensors
    codes = unpack(tensors["codes"], _stored_bits(format.bits), shape, signed)
    scale, zero_point, codebook = tensors["scale"].float(), tensors.get("zero_point"), tensors.get("codebook")
    return QuantizedTensor(codes, scale, zero_point, codebook, tuple(entry["block"]), format).dequantize()


def is_affine(tensor: QuantizedTensor) -> bool:
    """Whether MLX's packing expresses the weight: whole groups of a size it knows along the last of two axes."""
    if tensor.codebook is not None or tensor.codes.ndim != 2 or tensor.format.bits not in AFFINE_BITS:
        return False
    rows, columns = tensor.block
    return rows == 1 and columns in AFFINE_GROUPS and tensor.codes.shape[1] % columns == 0


def _names(name: str, parts: Collection[str], taken: Collection[str]) -> dict[str, str]:
    """Return the names of the parts of a weight, as ``mlx.nn`` has them where no other parameter has them."""
    prefix = name.removesuffix(".weight")
    if prefix == name or any(f"{prefix}.{part}" in taken for part in parts):
        prefix = name
    return {part: name if part == "codes" else f"{prefix}.{part}" for part in parts}


def _affine(tensor: QuantizedTensor) -> dict[str, Tensor]:
    """Return codes uint32 [rows, words], and scales and biases in half precision where both are exact in it."""
    bits, codes, zero = tensor.format.bits, tensor.codes, tensor.zero_point
    if zero is None:
        middle = 2 ** (bits - 1)
        codes, zero = (codes.short() + middle).to(torch.uint8), torch.tensor(middle)
    biases = -(zero.float() * tensor.scale)
    halves = [tensor.scale.half(), biases.half()]
    exact = torch.equal(halves[0].float(), tensor.scale) and torch.equal(halves[1].float(), biases)
    scales, biases = halves if exact else (tensor.scale, biases)
    words = _stream(codes, bits).view(torch.uint32).reshape(codes.shape[0], -1)
    return {"codes": words, "scales": scales, "biases": biases}


def _codes(tensor: QuantizedTensor) -> dict[str, Tensor]:
    """Return codes uint8 of up to four bits two to a byte, others one to a byte, in the parameter's own order."""
    scale = tensor.scale.to(getattr(torch, tensor.format.scale_dtype))
    stored = {"codes": _stream(tensor.codes, _stored_bits(tensor.format.bits)), "scale": scale}
    optional = {"zero_point": tensor.zero_point, "codebook": tensor.codebook}
    return stored | {part: value for part, value in optional.items() if value is not None}


def _stored_bits(bits: int) -> int:
    return 4 if bits <= 4 else 8


def _stream(codes: Tensor, bits: int) -> Tensor:
    return codes.contiguous().view(torch.uint8).flatten() if bits == 8 else pack(codes, bits)
