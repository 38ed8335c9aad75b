"""Tables as standard ONNX (opset 21) alone, for any runtime that reads it.

A weight is DequantizeLinear of its codes, in blocks where it has groups: the form that runtimes recognize and keep
packed. Where that cannot express a weight, as a codebook, it is computed by arithmetic on constants. Activations are
quantized and dequantized before the float operator that reads them. Runtimes with integer kernels fuse the three; all
others compute what the tables mean.
"""

import numpy as np
import onnx_ir as ir

from quant.backends import _onnx_weights as weights
from quant.backends._onnx_editor import Editor
from quant.backends._onnx_splice import Splicer
from quant.backends._onnx_template import Template
from quant.graph import ActivationQuantizer, Edge, QuantizedModel
from quant.nodes import QUANTIZABLE
from quant.scheme import NumberFormat
from quant.tensor import QuantizedTensor


def splice(quantized: QuantizedModel, template: Template) -> None:
    """Change the model of ``template`` into the quantized model, in standard operators alone.

    Raises:
        ValueError: a table entry has no target in the ONNX model, or ONNX cannot express it.
    """
    _PortableSplicer(quantized, template).run()


class _PortableSplicer(Splicer):
    runtime = "ONNX"

    def _lower(self, name: str, tensor: QuantizedTensor, edge: Edge) -> bool:
        operator = QUANTIZABLE.get(self.quantized.graph.node(edge).operator)
        quantizer = self.static.get((*edge[:2], operator.data)) if operator else None
        return quantizer is not None and self._lower_static(name, tensor, edge, quantizer)

    def _has_integer_kernel(self, consumer: ir.Node) -> bool:
        return True

    def _real_weight(self, name: str, tensor: QuantizedTensor) -> ir.Value:
        axis = axis_of_scales(tensor)
        if axis is None:
            return weights.dequantized(self.editor, name, tensor)
        return _dequantize_linear(self.editor, name, tensor, axis)

    def _is_left_to_the_kernel(self, quantizer: ActivationQuantizer) -> bool:
        return False

    def _quantize_at_run_time(self, quantizer: ActivationQuantizer, value: ir.Value, name: str) -> ir.Value:
        format = quantizer.format
        if not format.symmetric:
            return super()._quantize_at_run_time(quantizer, value, name)
        if format.granularity == "group":
            return _rounded_in_groups(self.editor, name, value, format)
        return _rounded(self.editor, name, value, format, along_last=format.granularity == "token")

    def _lower_recurrent(self, name: str, quantizers: dict[str, ActivationQuantizer]) -> None:
        raise ValueError(
            f"ONNX has no LSTM that quantizes its hidden states, as the tables of {name!r} ask: use a method that "
            "quantizes weights alone."
        )


def axis_of_scales(tensor: QuantizedTensor) -> int | None:
    """Return the axis along which DequantizeLinear would find the scales of a weight, None if it cannot express them.

    Its blocks lie along one axis, and every index of all others has scales of its own. That the last block may be
    short runtimes do not all know.
    """
    if tensor.codebook is not None:
        return None
    shape, counts = tensor.codes.shape, tensor.scale.shape
    several = [axis for axis, count in enumerate(counts) if count > 1]
    if not several:
        return 0
    if len(several) == 1 and counts[several[0]] == shape[several[0]]:
        return several[0]
    blocked = [axis for axis, count in enumerate(counts) if count < shape[axis]]
    return blocked[0] if len(blocked) == 1 and shape[blocked[0]] % tensor.block[blocked[0]] == 0 else None


def _dequantize_linear(editor: Editor, name: str, tensor: QuantizedTensor, axis: int) -> ir.Value:
    """Return the weight (float32) as DequantizeLinear of its codes, whose scales lie along ``axis``."""
    bits, scale, zero_point = tensor.format.bits, tensor.scale, tensor.zero_point
    attributes = {"axis": axis}
    if scale.numel() > 1 and scale.shape[axis] < tensor.codes.shape[axis]:
        attributes["block_size"] = tensor.block[axis]
    else:
        shape = (scale.numel(),) if scale.numel() > 1 else ()
        scale, zero_point = (None if part is None else part.reshape(shape) for part in (scale, zero_point))
    inputs = [
        weights.integers(editor, f"{name}/codes_of_{bits}_bits", tensor.codes.numpy(), bits),
        # The result has the type of the scale: in half precision it would be rounded.
        editor.real(f"{name}/scale", scale.numpy(), tensor.format.scale_dtype),
    ]
    if zero_point is not None:
        inputs.append(weights.integers(editor, f"{name}/zero_point", zero_point.numpy(), bits))
    return editor.add("DequantizeLinear", inputs, name=f"{name}/weight", **attributes)


def _rounded(editor: Editor, name: str, value: ir.Value, format: NumberFormat, along_last: bool) -> ir.Value:
    """Return ``value`` as multiples of a step that covers its largest magnitude, or that of each of its last axes."""

    def add(operator: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        return editor.add(operator, inputs, name=f"{name}/{operator}", **attributes)

    highest, zero, one = (_number(editor, number) for number in (format.highest, 0, 1))
    axes = [_sizes(editor, [-1])] if along_last else []
    covering = add("Div", add("ReduceMax", add("Abs", value), *axes, keepdims=1), highest)
    step = add("Where", add("Greater", covering, zero), covering, one)
    codes = add("Round", editor.add("Div", [value, step], name=f"{name}/quotient"))
    return add("Mul", add("Clip", codes, _number(editor, format.lowest), highest), step)


def _rounded_in_groups(editor: Editor, name: str, value: ir.Value, format: NumberFormat) -> ir.Value:
    """Return ``value`` rounded in groups along its last axis, padded by zeros where they do not divide it."""
    rank, width = len(value.shape), value.shape[-1]
    group = min(format.group_size, width)
    spare = -width % group
    kept = [0] * (rank - 1)  # to a Reshape, sizes that stay
    if spare:
        padding = _sizes(editor, [0] * (2 * rank - 1) + [spare])
        value = editor.add("Pad", [value, padding], name=f"{name}/padded")
    groups = _sizes(editor, [*kept, (width + spare) // group, group])
    value = editor.add("Reshape", [value, groups], name=f"{name}/groups")
    value = _rounded(editor, name, value, format, along_last=True)
    value = editor.add("Reshape", [value, _sizes(editor, [*kept, width + spare])], name=f"{name}/real")
    if spare:
        bounds = (_sizes(editor, [bound]) for bound in (0, width, -1))
        value = editor.add("Slice", [value, *bounds], name=f"{name}/without_padding")
    return value


def _number(editor: Editor, number: float) -> ir.Value:
    return editor.constant(f"quant/number_{number:g}", np.array(number, np.float32))


def _sizes(editor: Editor, sizes: list[int]) -> ir.Value:
    return editor.constant(f"quant/sizes_{'_'.join(map(str, sizes))}", np.array(sizes, np.int64))
