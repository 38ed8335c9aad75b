"""LSTMs whose input and hidden state are quantized at run time, on ONNX Runtime's DynamicQuantizeLSTM.

All other quantized LSTMs are ONNX's own LSTM, its weights computed from their codes when the model is loaded.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from quant.backends._onnx_editor import MICROSOFT, Editor
from quant.graph import ActivationQuantizer, QuantizedModel
from quant.nodes import Node, lstm_parameters
from quant.tensor import QuantizedTensor

_GATES = (0, 3, 1, 2)
"""Torch's gates, input, forget, cell and output, in ONNX's order: input, output, forget, cell."""
_WEIGHTS, _RECURRENT_WEIGHTS = 1, 2


def name_weights(lstm: ir.Node, node: Node) -> None:
    """Name what the ONNX node ``lstm`` takes as weights after those of the first direction of ``node``."""
    for position, weight in zip((_WEIGHTS, _RECURRENT_WEIGHTS), lstm_parameters(node)[0][:2], strict=True):
        lstm.inputs[position].name = f"{weight.name}/in_gate_order"


def lower_dynamic(
    editor: Editor, quantized: QuantizedModel, node: Node, nodes: Sequence[ir.Node], quantizers: dict
) -> None:
    """Replace the LSTM among the ONNX ``nodes`` of ``node`` by the kernel; ``quantizers`` are those of x and h.

    Raises:
        ValueError: the kernel cannot express the tables.
    """
    original = next((candidate for candidate in nodes if candidate.op_type == "LSTM"), None)
    directions = lstm_parameters(node)
    weights = [[quantized.weights.get(weight.name) for weight in direction[:2]] for direction in directions]
    known = set(quantizers) == {"x", "h"} and all(map(_suits, quantizers.values()))
    if original is None or not known or not all(_per_channel(weight) for pair in weights for weight in pair):
        raise ValueError(
            f"ONNX Runtime quantizes {node.name!r} at run time only with both of its inputs int8 asymmetric per "
            "tensor and its weights int8 symmetric per output channel."
        )
    inputs = list(original.inputs)
    scales = []
    for which, position in enumerate((_WEIGHTS, _RECURRENT_WEIGHTS)):
        name = directions[0][which].name
        tensors = [pair[which] for pair in weights]
        codes = np.stack([_reordered(tensor.codes).t().numpy() for tensor in tensors])
        scale = np.stack([_reordered(_channel_scales(tensor)).numpy() for tensor in tensors])
        inputs[position] = editor.constant(f"{name}/codes", codes)
        scales += [
            editor.constant(f"{name}/scale", scale),
            editor.constant(f"{name}/zero_point", np.zeros(scale.shape, np.int8)),
        ]
    inputs += [None] * (8 - len(inputs))
    names = [f"{value.name or f'{node.name}_{i}'}/quantized" for i, value in enumerate(original.outputs)]
    attributes = {key: original.attributes[key].value for key in ("direction", "hidden_size")}
    made = editor.add_many("DynamicQuantizeLSTM", [*inputs, *scales], names, MICROSOFT, **attributes)
    for old, new in zip(original.outputs, made, strict=True):
        editor.replace_output(old, new)


def _suits(quantizer: ActivationQuantizer) -> bool:
    format = quantizer.format
    if quantizer.mode != "dynamic" or quantizer.input_scale is not None:
        return False
    return format.bits == 8 and not format.symmetric and format.granularity == "tensor"


def _per_channel(weight: QuantizedTensor | None) -> bool:
    if weight is None or weight.zero_point is not None or weight.codebook is not None or weight.format.bits > 8:
        return False
    return weight.scale[0].numel() == 1


def _channel_scales(weight: QuantizedTensor) -> Tensor:
    return weight.scale.reshape(-1).expand(len(weight.codes)).float()


def _reordered(rows: Tensor) -> Tensor:
    gates = rows.chunk(4)
    return torch.cat([gates[gate] for gate in _GATES])
