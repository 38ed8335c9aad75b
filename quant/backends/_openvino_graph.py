"""What OpenVINO made of a quantized model, read from the execution graph of the compiled model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import openvino
import torch

from quant.backends._onnx_template import Template
from quant.graph import QuantizedModel
from quant.nodes import weights_of

_MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "LSTM", "MatMul")
_KERNELS = {"Convolution", "Deconvolution", "FullyConnected", "LSTMSequence", "MatMul", "RNNSeq"}
_QUANTIZED_TYPES = {"i4", "i8", "u4", "u8"}
_REARRANGING = {"Concat", "Convert", "Multiply", "Reshape", "Slice", "Subtract", "Transpose", "Unsqueeze"}
"""What lies between stored codes and the operator that takes the weight."""


@dataclass(frozen=True)
class Work:
    """What a model has to compute.

    total        multiply-accumulates of the whole graph
    operators    name of an operator that multiplies with weights -> its multiply-accumulates
    known_as     the names that OpenVINO may know each of them by
    quantized    those whose weights are quantized or stored in half precision
    rounded      those whose inputs are rounded at run time by arithmetic, and which so multiply in float
    input_group  how many inputs of a linear layer share a scale where its kernel rounds them, 0 if it does not
    """

    total: int
    operators: dict[str, int]
    known_as: dict[str, list[str]]
    quantized: list[str]
    rounded: list[str]
    input_group: int = 0


def work_of(quantized: QuantizedModel, template: Template, input_group: int = 0) -> Work:
    """Return what the tables ask for, by the nodes of the ONNX model."""
    graph, forward = quantized.graph, quantized.graph.graphs["forward"]
    halves = {name for name, value in quantized.floats.items() if value.dtype == torch.float16}
    stored = halves | set(quantized.weights)
    at_run_time = {edge[1] for edge, quantizer in quantized.activations.items() if quantizer.mode == "dynamic"}
    work = Work(sum(graph.macs("forward", node) for node in forward.nodes), {}, {}, [], [], input_group)
    for node in forward.nodes:
        weights = {weight.name for weight in weights_of(node)}
        names = _names(template.nodes.get(node.name, []))
        if not weights or not names:
            continue
        work.operators[node.name] = graph.macs("forward", node)
        work.known_as[node.name] = names
        work.quantized.extend([node.name] if weights & stored else [])
        work.rounded.extend([node.name] if node.name in at_run_time else [])
    return work


def _names(nodes: Sequence[ir.Node]) -> list[str]:
    """Return the names of an operator in OpenVINO, the likelier first: [] if none of its ONNX nodes multiplies.

    A fused operator may keep only the name of its last part, and what the model returns has the name of the output;
    what OpenVINO adds to an operator's name follows a stroke.
    """
    multiplying = [node for node in nodes if node.op_type in _MULTIPLYING]
    additions = [node for node in nodes if node.op_type == "Add"] if multiplying else []
    return [name for node in multiplying + additions for name in (node.name, node.outputs[0].name)]


def measure(compiled: openvino.CompiledModel, work: Work) -> dict[str, object]:
    """Return the shares of multiply-accumulates that run on quantized numbers and that are simulated.

    An operator is native if its kernel computes in 8 bits or reads weights of so few.
    """
    kernels = {}
    for node in compiled.get_runtime_model().get_ops():
        if _fact(node, "layerType") in _KERNELS:
            fused = _fact(node, "originalLayersNames").split(",")
            kernels |= dict.fromkeys((part.partition("/")[0] for part in fused), node)
    made = {name: _first(kernels, names) for name, names in work.known_as.items() if name not in work.rounded}
    native = {name for name, kernel in made.items() if kernel is not None and _reads_quantized(kernel)}
    simulated = set(work.quantized) - native
    total = max(work.total, 1)
    return {
        "operators_native": sum(work.operators[name] for name in native) / total,
        "operators_simulated": sum(work.operators[name] for name in simulated) / total,
        "notes": [],
    }


def _first(nodes: Mapping[str, openvino.Node], names: Sequence[str]) -> openvino.Node | None:
    return next((nodes[name] for name in names if name in nodes), None)


def _reads_quantized(kernel: openvino.Node) -> bool:
    return _fact(kernel, "runtimePrecision").lower() in _QUANTIZED_TYPES


def _fact(node: openvino.Node, name: str) -> str:
    """Return what the execution graph tells of a node under ``name``, or nothing."""
    facts = node.get_rt_info()
    return facts[name].astype(str) if name in facts else ""


def quantized_by_nncf(model: openvino.Model, work: Work) -> list[str]:
    """Return the operators of a model that NNCF quantized whose weights are fake-quantized or stored in few bits."""
    by_name = {node.get_friendly_name(): node for node in model.get_ops()}
    made = {name: _first(by_name, names) for name, names in work.known_as.items()}
    return [name for name, node in made.items() if node is not None and _has_quantized_weight(node)]


def _has_quantized_weight(node: openvino.Node) -> bool:
    reached = [value.get_node() for value in node.input_values()[1:]]
    while reached:
        node = reached.pop()
        kind = node.get_type_name()
        if kind == "FakeQuantize":
            return True
        if kind == "Constant" and node.get_element_type().get_type_name() in _QUANTIZED_TYPES:
            return True
        if kind in _REARRANGING:
            reached += [value.get_node() for value in node.input_values()]
    return False
