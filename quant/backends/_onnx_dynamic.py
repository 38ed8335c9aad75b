"""Values quantized at run time in ONNX: by DynamicQuantizeLinear where that is what the tables ask, else by arithmetic.

ONNX's integer products know one zero point for all rows. Symmetric codes are therefore moved into uint8, which is the
type that kernels are fast with, and rows with zero points of their own keep how far these are from the middle.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from quant.backends import _onnx_weights as weights
from quant.backends._onnx_editor import MICROSOFT, Editor
from quant.scheme import NumberFormat
from quant.tensor import QuantizedTensor

_MIDDLE = 128
_HIGHEST = 255


@dataclass(frozen=True)
class Codes:
    """uint8 codes of a value that stand for ``(code - zero_point + shift) * scale``.

    scale       float32, one or [..., 1], one for each row
    zero_point  uint8, one
    shift       float32 [..., 1], or None where the zero point is the true one
    real        float32: what the codes stand for
    """

    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    shift: ir.Value | None
    real: ir.Value
    per_row: bool


def codes_of(editor: Editor, name: str, value: ir.Value, format: NumberFormat) -> Codes:
    """Return ``value`` in 8 bits between its own extremes, or those of each of its rows."""
    if not format.symmetric and format.granularity == "tensor":
        parts = editor.add_many("DynamicQuantizeLinear", [value], [f"{name}/{part}" for part in _PARTS])
        real = editor.add("DequantizeLinear", parts, name=f"{name}/real")
        return Codes(*parts, None, real, per_row=False)
    along = _symmetric if format.symmetric else _asymmetric
    return along(editor, name, value, format.granularity == "token")


_PARTS = ("codes", "scale", "zero_point")


def product_with_weight(
    editor: Editor, name: str, tensor: QuantizedTensor, given: weights.Linear, codes: Codes
) -> ir.Value:
    """Return the product of codes with a weight, in integers, with the bias of the layer."""
    weight, weight_scale, weight_zero_point = weights.integer_weight(editor, name, tensor, transposed=True)
    product = f"{given.output.name}/product"
    scale, bias = (number(editor, 1), None) if codes.per_row else (codes.scale, given.bias)
    inputs = [codes.codes, weight, scale, weight_scale, codes.zero_point, weight_zero_point, bias]
    value = editor.add("MatMulIntegerToFloat", inputs, name=product, domain=MICROSOFT)
    if codes.shift is not None:
        totals = editor.constant(f"{name}/channel_totals", _totals(tensor))
        missing = editor.add("Mul", [codes.shift, totals], name=f"{product}/shift")
        value = editor.add("Add", [value, missing], name=f"{product}/shifted")
    if codes.per_row:
        value = editor.add("Mul", [value, codes.scale], name=f"{product}/scaled")
        if given.bias is not None:
            value = editor.add("Add", [value, given.bias], name=f"{product}/biased")
    return value


def number(editor: Editor, value: float) -> ir.Value:
    return editor.constant(f"quant/number_{value:g}", np.array(value, np.float32))


def sizes(editor: Editor, values: list[int]) -> ir.Value:
    return editor.constant(f"quant/sizes_{'_'.join(map(str, values))}", np.array(values, np.int64))


def _totals(tensor: QuantizedTensor) -> np.ndarray:
    """Return float32 [out]: what an output channel gets for each step by which all inputs are moved."""
    codes = tensor.codes.numpy().astype(np.int64)
    zero_point = 0 if tensor.zero_point is None else tensor.zero_point.reshape(-1, 1).numpy().astype(np.int64)
    return ((codes - zero_point).sum(1) * weights.channel_scale(tensor)).astype(np.float32)


def _symmetric(editor: Editor, name: str, value: ir.Value, per_row: bool) -> Codes:
    add = _Adder(editor, name)
    highest = number(editor, _MIDDLE - 1)
    largest = add("ReduceMax", add("Abs", value), *_axes(editor, per_row), keepdims=int(per_row))
    step = add.step("scale", add("Div", largest, highest))
    codes = add("Round", add.named("quotient", "Div", value, step))
    codes = add.named("clipped", "Clip", codes, number(editor, 1 - _MIDDLE), highest)
    middle = number(editor, _MIDDLE)
    stored = add.named("codes", "Cast", add.named("moved", "Add", codes, middle), to=ir.DataType.UINT8)
    real = add.named("real", "Mul", codes, step)
    return Codes(stored, step, _middle(editor), None, real, per_row)


def _asymmetric(editor: Editor, name: str, value: ir.Value, per_row: bool) -> Codes:
    add = _Adder(editor, name)
    zero, highest = number(editor, 0), number(editor, _HIGHEST)
    axes = _axes(editor, per_row)
    low = add("Min", add("ReduceMin", value, *axes, keepdims=int(per_row)), zero)
    high = add("Max", add("ReduceMax", value, *axes, keepdims=int(per_row)), zero)
    step = add.step("scale", add("Div", add.named("extent", "Sub", high, low), highest))
    at_zero = add.named("zero_point", "Round", add.named("below", "Div", add("Neg", low), step))
    codes = add.named("added", "Add", add("Round", add.named("quotient", "Div", value, step)), at_zero)
    codes = add.named("clipped", "Clip", codes, zero, highest)
    stored = add.named("codes", "Cast", codes, to=ir.DataType.UINT8)
    shift = add.named("shift", "Sub", number(editor, _MIDDLE), at_zero)
    real = add.named("real", "Mul", add.named("centred", "Sub", codes, at_zero), step)
    return Codes(stored, step, _middle(editor), shift, real, per_row)


def _axes(editor: Editor, per_row: bool) -> list[ir.Value]:
    return [sizes(editor, [-1])] if per_row else []


def _middle(editor: Editor) -> ir.Value:
    return editor.constant("quant/middle", np.array(_MIDDLE, np.uint8))


class _Adder:
    """Adds nodes that are called after what they do, or by a name of their own."""

    def __init__(self, editor: Editor, name: str) -> None:
        self._editor, self._name = editor, name

    def __call__(self, operator: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        return self.named(operator, operator, *inputs, **attributes)

    def named(self, part: str, operator: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        return self._editor.add(operator, inputs, name=f"{self._name}/{part}", **attributes)

    def step(self, part: str, covering: ir.Value) -> ir.Value:
        """Return the step, which is one where there is nothing but zeros to cover."""
        above = self("Greater", covering, number(self._editor, 0))
        return self.named(part, "Where", above, covering, number(self._editor, 1))
