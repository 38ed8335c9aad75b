"""What OpenVINO made of a quantized model, read from the execution graph of the compiled model."""

from collections.abc import Iterable

import openvino

from quant.backends._onnx_template import Template
from quant.graph import FloatGraph, QuantizedModel
from quant.nodes import Node, weights_of

_MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "LSTM", "MatMul")
_INTEGERS = {"i4", "i8", "u4", "u8"}


def work_of(graph: FloatGraph, template: Template) -> dict[str, object]:
    """Return what there is to compute, in JSON.

    total      multiply-accumulates of the whole graph
    operators  name of the ONNX node that multiplies with a weight -> [its multiply-accumulates, its weights]
    """
    forward, operators = graph.graphs["forward"], {}
    for node in forward.nodes:
        multiplying = [made for made in template.nodes.get(node.name, []) if made.op_type in _MULTIPLYING]
        weights = [weight.name for weight in weights_of(node)]
        if weights and multiplying:
            operators[multiplying[0].name] = [graph.macs("forward", node), weights]
    return {"total": sum(graph.macs("forward", node) for node in forward.nodes), "operators": operators}
