"""Tables as standard ONNX (opset 21) alone, for any runtime that reads it.

A weight is DequantizeLinear of its codes, in blocks where it has groups: the form that runtimes recognize and keep
packed. Where that cannot express a weight, as a codebook, it is computed by arithmetic on constants. Activations are
quantized and dequantized before the float operator that reads them. Runtimes with integer kernels fuse the three; all
others compute what the tables mean.
"""

from dataclasses import replace

import onnx_ir as ir

from quant.backends import _onnx_weights as weights
from quant.backends._onnx_dynamic import Codes, codes_of, sizes
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
    _multiply = None

    def _lower(self, name: str, tensor: QuantizedTensor, edge: Edge) -> bool:
        operator = QUANTIZABLE.get(self.quantized.graph.node(edge).operator)
        quantizer = self.static.get((*edge[:2], operator.data)) if operator else None
        return quantizer is not None and self._lower_static(name, tensor, edge, quantizer)

    def _has_integer_kernel(self, consumer: ir.Node) -> bool:
        return True

    def _loses_its_quantizers(self, consumer: ir.Node) -> bool:
        return False

    def _real_weight(self, name: str, tensor: QuantizedTensor) -> ir.Value:
        axis = axis_of_scales(tensor)
        if axis is None:
            return weights.dequantized(self.editor, name, tensor)
        return _dequantize_linear(self.editor, name, tensor, axis)

    def _is_left_to_the_kernel(self, quantizer: ActivationQuantizer) -> bool:
        return False

    def _quantize_at_run_time(self, quantizer: ActivationQuantizer, value: ir.Value, name: str) -> Codes:
        format = quantizer.format
        if format.granularity != "group":
            return super()._quantize_at_run_time(quantizer, value, name)
        return _in_groups(self.editor, name, value, format)

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


def _in_groups(editor: Editor, name: str, value: ir.Value, format: NumberFormat) -> Codes:
    """Return ``value`` rounded in groups along its last axis, padded by zeros where they do not divide it."""
    rank, width = len(value.shape), value.shape[-1]
    group = min(format.group_size, width)
    spare = -width % group
    kept = [0] * (rank - 1)  # to a Reshape, sizes that stay
    if spare:
        padding = sizes(editor, [0] * (2 * rank - 1) + [spare])
        value = editor.add("Pad", [value, padding], name=f"{name}/padded")
    groups = sizes(editor, [*kept, (width + spare) // group, group])
    value = editor.add("Reshape", [value, groups], name=f"{name}/groups")
    codes = codes_of(editor, f"{name}/group", value, replace(format, granularity="token", group_size=None))
    value = editor.add("Reshape", [codes.real, sizes(editor, [*kept, width + spare])], name=f"{name}/real")
    if spare:
        bounds = (sizes(editor, [bound]) for bound in (0, width, -1))
        value = editor.add("Slice", [value, *bounds], name=f"{name}/without_padding")
    return replace(codes, real=value)
