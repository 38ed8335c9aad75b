"""What OpenVINO made of a quantized model, read from the execution graph of the compiled model."""

from dataclasses import dataclass

import openvino
import torch

from quant.backends._onnx_template import Template
from quant.graph import QuantizedModel
from quant.nodes import weights_of

_MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "LSTM", "MatMul")
_QUANTIZED_TYPES = {"i4", "i8", "u4", "u8"}
_REARRANGING = {"Concat", "Convert", "Multiply", "Reshape", "Slice", "Subtract", "Transpose", "Unsqueeze"}
"""What lies between stored codes and the operator that takes the weight."""


@dataclass(frozen=True)
class Work:
    """What a model has to compute.

    total        multiply-accumulates of the whole graph
    operators    name of the ONNX node that multiplies with weights -> its multiply-accumulates
    quantized    the operators among them whose weights are quantized or stored in half precision
    rounded      those whose inputs are rounded at run time by arithmetic, and which so multiply in float
    input_group  how many inputs of a linear layer share a scale where its kernel rounds them, 0 if it does not
    """

    total: int
    operators: dict[str, int]
    quantized: list[str]
    rounded: list[str]
    input_group: int = 0


def work_of(quantized: QuantizedModel, template: Template, input_group: int = 0) -> Work:
    """Return what the tables ask for, by the nodes of the ONNX model."""
    graph, forward = quantized.graph, quantized.graph.graphs["forward"]
    halves = {name for name, value in quantized.floats.items() if value.dtype == torch.float16}
    stored = halves | set(quantized.weights)
    at_run_time = {edge[1] for edge, quantizer in quantized.activations.items() if quantizer.mode == "dynamic"}
    operators, found, rounded = {}, [], []
    for node in forward.nodes:
        weights = {weight.name for weight in weights_of(node)}
        made = next((made for made in template.nodes.get(node.name, []) if made.op_type in _MULTIPLYING), None)
        if not weights or made is None:
            continue
        operators[made.name] = graph.macs("forward", node)
        found += [made.name] if weights & stored else []
        rounded += [made.name] if node.name in at_run_time else []
    total = sum(graph.macs("forward", node) for node in forward.nodes)
    return Work(total, operators, found, rounded, input_group)


def measure(compiled: openvino.CompiledModel, work: Work) -> dict[str, object]:
    """Return the shares of multiply-accumulates that run on quantized numbers and that are simulated.

    An operator is native if its kernel computes in 8 bits or reads weights of so few.
    """
    kernels = {}
    for node in compiled.get_runtime_model().get_ops():
        for name in _fact(node, "originalLayersNames").split(","):
            kernels[name] = node
    candidates = set(work.operators) & set(kernels) - set(work.rounded)
    native = {name for name in candidates if _reads_quantized(kernels[name])}
    simulated = set(work.quantized) - native
    total = max(work.total, 1)
    return {
        "operators_native": sum(work.operators[name] for name in native) / total,
        "operators_simulated": sum(work.operators[name] for name in simulated) / total,
        "notes": [],
    }


def _reads_quantized(node: openvino.Node) -> bool:
    inputs = node.input_values()
    types = [_fact(node, "runtimePrecision")]
    if len(inputs) > 1:
        types += _fact(inputs[1].get_node(), "outputPrecisions").split(",")
    return any(name.lower() in _QUANTIZED_TYPES for name in types)


def _fact(node: openvino.Node, name: str) -> str:
    """Return what the execution graph tells of a node under ``name``, or nothing."""
    facts = node.get_rt_info()
    return facts[name].astype(str) if name in facts else ""


def quantized_by_nncf(model: openvino.Model, operators: dict[str, int]) -> list[str]:
    """Return the operators of a model that NNCF quantized whose weights are fake-quantized or stored in few bits."""
    by_name = {node.get_friendly_name(): node for node in model.get_ops()}
    return [name for name in operators if name in by_name and _has_quantized_weight(by_name[name])]


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
