"""What ONNX Runtime made of a quantized model, read from the graph that it optimized."""

import json
import tempfile
from pathlib import Path

import onnx
import torch

from quant.backends import _onnx_saturation as saturation
from quant.backends._onnx_session import open_session
from quant.graph import FloatGraph, QuantizedModel
from quant.nodes import LSTM, lstm_parameters, weights_of

KEY = "quant.operators"
"""Where an artefact's metadata lists the operators of the float graph; see :func:`describe`."""

INTEGER = {
    "ConvInteger",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
}
"""Kernels that multiply activations and weights of 8 bits each."""

NATIVE = INTEGER | {"GatherBlockQuantized", "MatMulBnb4", "MatMulNBits"}


def describe(graph: FloatGraph, quantized: QuantizedModel | None) -> str:
    """Return the operators that have weights, for the artefact's metadata.

    JSON: ``total``, the multiply-accumulates of the whole graph; ``operators``, of each [parameter,
    multiply-accumulates, whether the tables quantize it], the last None for a model the runtime quantized itself;
    ``dynamic``, whether the tables quantize activations at run time; and ``bits``, the most that a weight has. The two
    directions of an LSTM lie in one ONNX weight, which has the name of the first. An attention whose factors are
    quantized has none: its name stands for it.
    """
    forward, operators = graph.graphs["forward"], []
    attention = {edge[1] for edge in quantized.activations if edge[2] == "p"} if quantized else set()
    for node in forward.nodes:
        together = zip(*lstm_parameters(node), strict=True) if node.operator == LSTM else [weights_of(node)]
        sizes = {
            weights[0].name: sum(graph.parameters[weight.name].numel() for weight in weights)
            for weights in list(together)[:2]
            if weights
        }
        for name, size in sizes.items():
            macs = graph.macs("forward", node) * size // sum(sizes.values())
            operators.append([name, macs, _is_quantized(name, quantized)])
        if node.name in attention:
            operators.append([node.name, graph.macs("forward", node), True])
    total = sum(graph.macs("forward", node) for node in forward.nodes)
    dynamic = quantized is not None and any(entry.mode == "dynamic" for entry in quantized.activations.values())
    bits = 8 if quantized is None else max((weight.format.bits for weight in quantized.weights.values()), default=0)
    return json.dumps({"total": total, "operators": operators, "dynamic": dynamic, "bits": bits})


def measure(artefact: Path) -> dict[str, object]:
    """Return the shares of multiply-accumulates that the runtime computes natively and simulates.

    An operator is native if its weight feeds an integer or block-wise kernel of the optimized graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session = open_session(artefact, optimized_model_filepath=str(optimized))
        facts = json.loads(session.get_modelmeta().custom_metadata_map[KEY])
        graph = onnx.load(optimized, load_external_data=False).graph
    parameters = {parameter for parameter, _, _ in facts["operators"]}
    native = _weights_of([node for node in graph.node if node.op_type in NATIVE], parameters)
    stored = _weights_of([node for node in graph.node if node.op_type == "DequantizeLinear"], parameters)
    shares = {"operators_native": 0, "operators_simulated": 0}
    for parameter, macs, quantized in facts["operators"]:
        if parameter in native:
            shares["operators_native"] += macs
        elif quantized or (quantized is None and parameter in stored):
            shares["operators_simulated"] += macs
    total = max(facts["total"], 1)
    return {**{name: count / total for name, count in shares.items()}, "notes": _notes(graph, facts)}


def _is_quantized(parameter: str, quantized: QuantizedModel | None) -> bool | None:
    if quantized is None:
        return None
    halved = parameter in quantized.floats and quantized.floats[parameter].dtype == torch.float16
    return parameter in quantized.weights or halved


def _weights_of(nodes: list[onnx.NodeProto], parameters: set[str]) -> set[str]:
    """Return the parameters that feed ``nodes``; what is made of a parameter has a name that begins with its name."""
    found = set()
    for name in {name for node in nodes for name in node.input}:
        prefixes = [parameter for parameter in parameters if name.startswith(parameter)]
        if prefixes:
            found.add(max(prefixes, key=len))
    return found


def _notes(graph: onnx.GraphProto, facts: dict[str, object]) -> list[str]:
    integer = any(node.op_type in INTEGER for node in graph.node)
    notes = [saturation.NOTE] if integer and facts["bits"] > 7 and saturation.saturates() else []
    levels = [
        attribute.i
        for node in graph.node
        if node.op_type == "MatMulNBits"
        for attribute in node.attribute
        if attribute.name == "accuracy_level"
    ]
    if not facts["dynamic"] and 4 in levels:
        notes.append("MatMulNBits at accuracy level 4 also quantizes its activations, to 8 bits in blocks.")
    return notes
