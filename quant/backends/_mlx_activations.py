"""Quantized activations in MLX, which has no integer kernels for them: rounded to codes and back, in float.

The arithmetic is that of :class:`quant.graph.ActivationQuantizer`.
"""

from collections.abc import Callable
from dataclasses import asdict

from torch import Tensor

from quant.backends._mlx_blas import mx
from quant.graph import ActivationQuantizer
from quant.reading import format_from_json
from quant.scheme import NumberFormat

_PARTS = ("scale", "zero_point", "input_scale")


def encode(prefix: str, quantizer: ActivationQuantizer) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Return how a quantizer is stored, as plain JSON types, and the tensors to store."""
    parts = {part: getattr(quantizer, part) for part in _PARTS if getattr(quantizer, part) is not None}
    format = asdict(quantizer.format) if quantizer.format else None
    names = {part: f"{prefix}.{part}" for part in parts}
    entry = {"mode": quantizer.mode, "format": format, "tensors": names}
    return entry, {names[part]: value for part, value in parts.items()}


def decode(entry: dict, arrays: dict[str, mx.array], channels_last: bool) -> Callable[[mx.array], mx.array]:
    """Return the function that quantizes and dequantizes a value; ``channels_last`` says how its axes lie."""
    parts = {part: arrays[name].astype(mx.float32) for part, name in entry["tensors"].items()}
    input_scale, zero_point = parts.get("input_scale"), parts.get("zero_point", 0)
    # What is ATen's last axis comes before the channels.
    last = -2 if channels_last else -1
    if input_scale is not None and channels_last:
        input_scale = mx.expand_dims(input_scale, -1)
    format = format_from_json(entry["format"]) if entry["format"] else None

    def quantize(values: mx.array) -> mx.array:
        values = values if input_scale is None else values * input_scale
        if entry["mode"] == "none":
            return values
        scale, offset = (parts["scale"], zero_point) if entry["mode"] == "static" else _range(values, format, last)
        codes = mx.clip(mx.round(values / scale) + offset, format.lowest, format.highest)
        return (codes - offset) * scale

    return quantize


def _range(values: mx.array, format: NumberFormat, last: int) -> tuple[mx.array, mx.array | int]:
    """Return scale and zero point from the extremes of the values: per row or group of an axis, or of all of it."""
    if format.granularity == "group":
        return _group_range(values, format, last)
    return _range_within(values, format, last if format.granularity == "token" else None)


def _group_range(values: mx.array, format: NumberFormat, last: int) -> tuple[mx.array, mx.array | int]:
    """Return one scale and zero point per element, those of its group; the last group of the axis may be short."""
    values = mx.moveaxis(values, last, -1)
    size, group = values.shape[-1], min(format.group_size, values.shape[-1])
    padded = mx.pad(values, [*[(0, 0)] * (values.ndim - 1), (0, -size % group)])
    parts = _range_within(padded.reshape(*values.shape[:-1], -1, group), format, -1)

    def spread(part: mx.array | int) -> mx.array | int:
        if not isinstance(part, mx.array):
            return part
        return mx.moveaxis(mx.repeat(part.squeeze(-1), group, -1)[..., :size], -1, last)

    return spread(parts[0]), spread(parts[1])


def _range_within(values: mx.array, format: NumberFormat, axis: int | None) -> tuple[mx.array, mx.array | int]:
    low = mx.minimum(values.min(axis, keepdims=True), 0)
    high = mx.maximum(values.max(axis, keepdims=True), 0)
    extent = mx.maximum(-low, high) if format.symmetric else high - low
    scale = extent / (format.highest if format.symmetric else format.highest - format.lowest)
    scale = mx.where(scale > 0, scale, 1)
    if format.symmetric:
        return scale, 0
    return scale, mx.clip(mx.round(-low / scale), format.lowest, format.highest)
