"""Quantized weights in MLX's own packing where it can express them, as plain codes where it cannot, and back.

MLX's affine packing is ``code * scale + bias`` for groups of 32, 64 or 128 along the last axis, the codes one
little-endian stream of bits in words of 32: what ``mlx.nn.QuantizedLinear`` and ``QuantizedEmbedding`` hold under the
names ``weight``, ``scales`` and ``biases``. Its microscaling modes, mxfp4, mxfp8 and nvfp4, pack the codes of floats in
the same way and their 8-bit scales as they are, without biases; what all scales of an nvfp4 tensor share multiplies the
product. Everything else is stored as codes with scales and dequantized on loading.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from quant.backends._mlx_blas import mx
from quant.reading import format_from_json
from quant.scheme import CODEBOOK_FORMATS, NumberFormat
from quant.tensor import QuantizedTensor, pack, restored, stored_parts, unpack

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (32, 64, 128)
MICROSCALING = ("mxfp4", "mxfp8", "nvfp4")
NATIVE_GROUP = 64
"""What ``mlx.nn.quantize`` groups by unless told otherwise."""


@dataclass(frozen=True)
class PackedWeight:
    """A weight that stays packed, for values of ``dtype``.

    parts   codes uint32 [rows, words], scales [rows, groups] and, of affine packing, biases of the same shape
    mode    as MLX calls the packing
    shared  factor of all scales
    """

    parts: tuple[mx.array, ...]
    group_size: int
    bits: int
    mode: str
    shared: float
    dtype: mx.Dtype

    def multiply(self, x: mx.array) -> mx.array:
        """Return ``x @ weight.T`` on the packed codes."""
        return self._scaled(mx.quantized_matmul(x, *self.parts, transpose=True, **self._packing))

    def rows(self, indices: mx.array) -> mx.array:
        """Return the dequantized rows at ``indices``: only those are unpacked."""
        return self._dequantized(*(part[indices] for part in self.parts))

    def dequantize(self) -> mx.array:
        return self._dequantized(*self.parts)

    def _dequantized(self, *parts: mx.array) -> mx.array:
        return self._scaled(mx.dequantize(*parts, dtype=self.dtype, **self._packing))

    def _scaled(self, values: mx.array) -> mx.array:
        return values if self.shared == 1 else values * self.shared

    @property
    def _packing(self) -> dict[str, object]:
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


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
    form = packing_of(tensor) or "codes"
    stored = {"affine": _affine, "codes": _codes}.get(form, _microscaled)(tensor)
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


def decode(entry: dict, arrays: dict[str, mx.array], dtype: mx.Dtype) -> "PackedWeight | Tensor":
    """Return a packed weight ready to multiply with values of ``dtype``, or the float32 values of plain codes."""
    parts = {part: arrays[name] for part, name in entry["tensors"].items()}
    format, shape = format_from_json(entry["format"]), entry["shape"]
    if entry["form"] == "affine":
        scales, biases = (parts[part].astype(dtype) for part in ("scales", "biases"))
        return PackedWeight((parts["codes"], scales, biases), entry["block"][1], format.bits, "affine", 1, dtype)
    if entry["form"] != "codes":
        shared = parts["shared"].item() if "shared" in parts else 1
        packed = parts["codes"], parts["scales"]
        return PackedWeight(packed, entry["block"][1], format.bits, entry["form"], shared, dtype)
    tensors = {part: torch.from_numpy(np.array(value)) for part, value in parts.items()}
    if "scale" in tensors and format.scale_bits == 8:
        tensors["scale"] = tensors["scale"].view(getattr(torch, format.scale_dtype))
    codes = unpack(tensors["codes"], _stored_bits(format.bits), shape, format.signed)
    return restored(codes, tensors, tensors.get("zero_point"), entry["block"], format).dequantize()


def packing_of(tensor: QuantizedTensor) -> str | None:
    """Return the mode of MLX's packing that expresses the weight, or None.

    It must be a matrix of whole groups along the last axis, of a size that the mode knows.
    """
    if tensor.codes.ndim != 2 or tensor.block[0] != 1 or tensor.codes.shape[1] % tensor.block[1]:
        return None
    if tensor.codebook is None:
        return "affine" if tensor.format.bits in AFFINE_BITS and tensor.block[1] in AFFINE_GROUPS else None
    modes = (mode for mode in MICROSCALING if CODEBOOK_FORMATS[mode] == tensor.format)
    return next((mode for mode in modes if tensor.block[1] == tensor.format.group_size), None)


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


def _microscaled(tensor: QuantizedTensor) -> dict[str, Tensor]:
    """Return codes uint32 [rows, words], scales as their bits (uint8), and what the scales share if it is not one."""
    parts = stored_parts(tensor)
    words = _stream(tensor.codes, tensor.format.bits).view(torch.uint32).reshape(tensor.codes.shape[0], -1)
    stored = {"codes": words, "scales": parts["scale"].view(torch.uint8)}
    shared = parts.get("shared_scale", torch.tensor(1.0))
    return stored if shared == 1 else stored | {"shared": shared}


def _codes(tensor: QuantizedTensor) -> dict[str, Tensor]:
    """Return codes uint8 of up to four bits two to a byte, others one to a byte, in the parameter's own order.

    MLX knows no 8-bit floats: scales of such a type are stored as their bits.
    """
    parts = stored_parts(tensor)
    if tensor.format.scale_bits == 8:
        parts["scale"] = parts["scale"].view(torch.uint8)
    if tensor.zero_point is not None:
        parts["zero_point"] = tensor.zero_point
    return {"codes": _stream(tensor.codes, _stored_bits(tensor.format.bits)), **parts}


def _stored_bits(bits: int) -> int:
    return 4 if bits <= 4 else 8


def _stream(codes: Tensor, bits: int) -> Tensor:
    return codes.contiguous().view(torch.uint8).flatten() if bits == 8 else pack(codes, bits)
