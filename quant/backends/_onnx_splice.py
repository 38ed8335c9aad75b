"""Tables into the ONNX template: floats, activation quantizers and weights, found by name."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from quant.backends import _onnx_attention as attention
from quant.backends import _onnx_recurrent as recurrent
from quant.backends import _onnx_weights as weights
from quant.backends._onnx_dynamic import Codes, codes_of, product_with_weight
from quant.backends._onnx_editor import Editor
from quant.backends._onnx_packing import kernel_blocks
from quant.backends._onnx_template import Template
from quant.graph import ActivationQuantizer, Edge, QuantizedModel, shared_quantizers
from quant.nodes import ATTENTION, LSTM, QUANTIZABLE, Parameter
from quant.tensor import QuantizedTensor

_GRAPH = "forward"
_INTEGER_CONSUMERS = ("Conv", "MatMul", "Gemm")
_ACTIVATIONS = ("Clip", "Relu")
"""Operators that the runtime folds into the one before them, or the quantizer after them."""
_LARGEST_BIAS_CODE = 2**31 - 1


def splice(quantized: QuantizedModel, template: Template) -> None:
    """Change the model of ``template`` into the quantized model.

    Raises:
        ValueError: a table entry has no target in the ONNX model, or the runtime cannot express it.
    """
    Splicer(quantized, template).run()


class Splicer:
    """Splices tables in the forms that ONNX Runtime has kernels for."""

    runtime = "ONNX Runtime"
    _multiply = staticmethod(attention.integer_product)

    def __init__(self, quantized: QuantizedModel, template: Template) -> None:
        self.quantized, self.template = quantized, template
        self.editor = Editor(template.model)
        self.static: dict[Edge, ActivationQuantizer] = {}
        self.dynamic: dict[Edge, Codes] = {}
        self.grouped: dict[Edge, ActivationQuantizer] = {}
        self.recurrent: dict[str, dict[str, ActivationQuantizer]] = {}
        self.attention: dict[str, dict[int | str, ActivationQuantizer]] = {}

    def run(self) -> None:
        for name, value in self.quantized.floats.items():
            self._replace_float(name, value)
        for index, (quantizer, edges) in enumerate(shared_quantizers(self.quantized, _GRAPH)):
            others = [edge for edge in edges if not self._is_inside(edge, quantizer)]
            if others:
                self._quantize_activation(quantizer, others, f"activation_{index}")
        for name, quantizers in self.recurrent.items():
            self._lower_recurrent(name, quantizers)
        for name, quantizers in self.attention.items():
            self._lower_attention(name, quantizers)
        for name, tensor in self.quantized.weights.items():
            self._replace_weight(name, tensor)
        if self.grouped:
            raise ValueError(
                f"{self.runtime} has no kernel that quantizes the input of {next(iter(self.grouped))[1]!r} in groups."
            )
        self.editor.finish()
        for name in (*self.quantized.weights, *self.quantized.floats):
            if name in self.template.model.graph.initializers:
                raise ValueError(f"the ONNX model uses the parameter {name!r} in a way that its table cannot express.")

    def _replace_float(self, name: str, value: Tensor) -> None:
        dtype = "float16" if value.dtype == torch.float16 else "float32"
        replacement = self.editor.real(f"{name}/{dtype}", value.float().numpy(), dtype)
        ir.convenience.replace_all_uses_with(self._parameter(name), replacement)

    def _is_inside(self, edge: Edge, quantizer: ActivationQuantizer) -> bool:
        """Whether an edge lies inside an LSTM or an attention: these are lowered when all edges are known."""
        operator = self.quantized.graph.node(edge).operator
        if operator not in (LSTM, ATTENTION):
            return False
        inside = self.recurrent if operator == LSTM else self.attention
        inside.setdefault(edge[1], {})[edge[2]] = quantizer
        return True

    def _quantize_activation(self, quantizer: ActivationQuantizer, edges: Sequence[Edge], name: str) -> None:
        node = self.quantized.graph.node(edges[0])
        value = self.template.values.get(node.arguments[edges[0][2]].name)
        if value is None:
            raise ValueError(f"the input {edges[0][2]} of {node.name!r} has no counterpart in the ONNX model.")
        source = value
        if quantizer.input_scale is not None:
            scale = self.editor.constant(f"{name}/input_scale", quantizer.input_scale.numpy())
            source = self.editor.add("Mul", [value, scale], name=f"{name}/scaled")
            source.shape, source.type = value.shape, value.type
        if quantizer.mode == "static":
            source = self._quantize(quantizer, source, name)
            self.static |= dict.fromkeys(edges, quantizer)
        elif quantizer.mode == "dynamic" and self._is_left_to_the_kernel(quantizer):
            self.grouped |= dict.fromkeys(edges, quantizer)
        elif quantizer.mode == "dynamic":
            codes = self._quantize_at_run_time(quantizer, source, name)
            self.dynamic |= dict.fromkeys(edges, codes)
            source = codes.real
        if source is not value:
            for edge in edges:
                self._feed(edge, value, source)

    def _quantize(self, quantizer: ActivationQuantizer, value: ir.Value, name: str) -> ir.Value:
        if quantizer.format.bits != 8 or quantizer.format.granularity != "tensor":
            raise ValueError(f"{self.runtime} has no static {quantizer.format} activations: use int8 per tensor.")
        dtype = np.int8 if quantizer.format.symmetric else np.uint8
        zero_point = 0 if quantizer.zero_point is None else quantizer.zero_point.item()
        scale_and_zero_point = [
            self.editor.constant(f"{name}/scale", np.array(quantizer.scale.item(), np.float32)),
            self.editor.constant(f"{name}/zero_point", np.array(zero_point, dtype)),
        ]
        codes = self.editor.add("QuantizeLinear", [value, *scale_and_zero_point], name=f"{name}/codes")
        return self.editor.add("DequantizeLinear", [codes, *scale_and_zero_point], name=f"{name}/real")

    def _is_left_to_the_kernel(self, quantizer: ActivationQuantizer) -> bool:
        """Whether the kernel of the weight quantizes its input, in groups."""
        return quantizer.format.granularity == "group"

    def _quantize_at_run_time(self, quantizer: ActivationQuantizer, value: ir.Value, name: str) -> Codes:
        format = quantizer.format
        if format.bits != 8 or format.granularity not in ("tensor", "token"):
            raise ValueError(f"{self.runtime} has no dynamic {format} activations: use int8 per tensor or per token.")
        return codes_of(self.editor, name, value, format)

    def _replace_weight(self, name: str, tensor: QuantizedTensor) -> None:
        parameter = self._parameter(name)
        edges = [edge for edge in self.quantized.graph.consumers(name) if edge[0] == _GRAPH]
        if not edges:
            raise ValueError(f"no operator of {_GRAPH!r} takes the quantized weight {name!r}.")
        for edge in edges:
            if edge[1] in self.recurrent:
                continue  # its kernel has the weight already
            if not self._lower(name, tensor, edge):
                self._feed(edge, parameter, self._real_weight(name, tensor))

    def _real_weight(self, name: str, tensor: QuantizedTensor) -> ir.Value:
        """Return the weight as float32, for consumers without a kernel for its codes."""
        return weights.dequantized(self.editor, name, tensor)

    def _lower(self, name: str, tensor: QuantizedTensor, edge: Edge) -> bool:
        """Give one consumer of a weight a kernel for it; False, and no change, if there is none."""
        nodes = self.template.nodes.get(edge[1], [])
        operator = QUANTIZABLE.get(self.quantized.graph.node(edge).operator)
        if operator is None:
            return False
        if operator.kind == "embedding":
            gather = next((node for node in nodes if node.op_type == "Gather"), None)
            return gather is not None and weights.lower_gather(self.editor, name, tensor, gather)
        data = (edge[0], edge[1], operator.data)
        if data in self.static:
            return self._lower_static(name, tensor, edge, self.static[data])
        linear = weights.linear_of(nodes) if operator.kind == "linear" else None
        if linear is None:
            return False
        if data in self.grouped:
            return self._lower_grouped(name, tensor, linear, data)
        if data in self.dynamic:
            return weights.is_per_channel(tensor) and self._lower_with_codes(name, tensor, linear, self.dynamic[data])
        return weights.lower_matmul(self.editor, name, tensor, linear)

    def _lower_static(self, name: str, tensor: QuantizedTensor, edge: Edge, quantizer: ActivationQuantizer) -> bool:
        nodes = self.template.nodes.get(edge[1], [])
        consumer = next((node for node in nodes if node.op_type in _INTEGER_CONSUMERS), None)
        if consumer is None or not weights.is_per_channel(tensor):
            return False
        if not self._has_integer_kernel(consumer):
            return False
        if self._loses_its_quantizers(consumer):
            linear = weights.linear_of(nodes)
            codes, scale, zero_point = linear.data.producer().inputs
            static = Codes(codes, scale, zero_point, None, linear.data, per_row=False)
            return self._lower_with_codes(name, tensor, linear, static)
        transposed = consumer.op_type == "MatMul"
        consumer.replace_input_with(1, weights.dequantize_linear(self.editor, name, tensor, transposed))
        if not transposed and len(consumer.inputs) > 2:
            self._quantize_bias(edge, consumer, weights.channel_scale(tensor) * quantizer.scale.item())
        return True

    def _has_integer_kernel(self, consumer: ir.Node) -> bool:
        """Whether an operator with a quantized input runs on integers; if not, it runs in float, its weight constant.

        The integer convolution writes integers, so that they must be what follows.
        """
        return consumer.op_type != "Conv" or _is_quantized_next(consumer.outputs[0])

    def _loses_its_quantizers(self, consumer: ir.Node) -> bool:
        """Whether the runtime makes one float operator of this one and the next before it looks for integers."""
        return consumer.op_type == "Gemm" and _is_activated_in_float(consumer.outputs[0])

    def _lower_recurrent(self, name: str, quantizers: dict[str, ActivationQuantizer]) -> None:
        node = self.quantized.graph.graphs[_GRAPH].by_name[name]
        recurrent.lower_dynamic(self.editor, self.quantized, node, self.template.nodes.get(name, []), quantizers)

    def _quantize_bias(self, edge: Edge, consumer: ir.Node, scale: np.ndarray) -> None:
        """Store the bias in the steps of the products it is added to, without which no integer kernel takes it."""
        argument = self.quantized.graph.node(edge).arguments[2]
        if not isinstance(argument, Parameter):
            return
        bias = self.quantized.floats.get(argument.name, self.quantized.graph.parameters[argument.name])
        codes = np.rint(bias.double().numpy() / scale)
        if np.abs(codes).max(initial=0) > _LARGEST_BIAS_CODE:
            return
        name = f"{edge[1]}/bias"
        inputs = [
            self.editor.constant(f"{name}/codes", codes.astype(np.int32)),
            self.editor.constant(f"{name}/scale", scale.astype(np.float32)),
        ]
        consumer.replace_input_with(2, self.editor.add("DequantizeLinear", inputs, name=f"{name}/real", axis=0))

    def _lower_attention(self, name: str, quantizers: attention.Quantizers) -> None:
        node = self.quantized.graph.graphs[_GRAPH].by_name[name]
        attention.lower(self.editor, node, self.template.nodes.get(name, []), quantizers, self._multiply)

    def _lower_with_codes(self, name: str, tensor: QuantizedTensor, linear: weights.Linear, codes: Codes) -> bool:
        """Give a linear layer, whose input is quantized and dequantized again, the kernel that takes the codes."""
        self.editor.replace_output(linear.output, product_with_weight(self.editor, name, tensor, linear, codes))
        return True

    def _lower_grouped(self, name: str, tensor: QuantizedTensor, linear: weights.Linear, data: Edge) -> bool:
        """Let MatMulNBits quantize its input, if the groups are those of its weight."""
        format, width = self.grouped[data].format, tensor.codes.shape[1]
        blocks = kernel_blocks(tensor)
        if blocks is None or format.bits != 8 or not format.symmetric:
            return False
        if min(blocks.block, width) != min(format.group_size, width):
            return False
        del self.grouped[data]
        return weights.lower_matmul(self.editor, name, tensor, linear, weights.INTEGER_INPUTS)

    def _feed(self, edge: Edge, old: ir.Value, new: ir.Value) -> None:
        """Let the ONNX nodes of an edge's operator take ``new`` instead of ``old``."""
        if not self.editor.replace_input(self.template.nodes.get(edge[1], []), old, new):
            raise ValueError(f"the input {edge[2]} of {edge[1]!r} has no counterpart in the ONNX model.")

    def _parameter(self, name: str) -> ir.Value:
        if name not in self.template.parameters:
            raise ValueError(f"the parameter {name!r} has no counterpart in the ONNX model.")
        return self.template.parameters[name]


def _is_quantized_next(value: ir.Value) -> bool:
    """Whether ``value`` goes to quantizers alone, perhaps after an activation that the runtime folds into them."""
    users = [node for node, _ in value.uses()]
    if len(users) == 1 and users[0].op_type in _ACTIVATIONS:
        return _is_quantized_next(users[0].outputs[0])
    return bool(users) and all(node.op_type == "QuantizeLinear" for node in users)


def _is_activated_in_float(value: ir.Value) -> bool:
    """Whether ``value`` goes to an activation function alone, whose result is not quantized."""
    users = [node for node, _ in value.uses()]
    return len(users) == 1 and users[0].op_type in _ACTIVATIONS and not _is_quantized_next(value)
