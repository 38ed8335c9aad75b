"""A quantized model as a program of torch: weights as stored codes, dequantized by operators that torch exports."""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn

from quant.execution import build_module, export
from quant.graph import ActivationQuantizer, QuantizedModel, shared_quantizers
from quant.tensor import QuantizedTensor, pack, restored, stored_parts


def exported(
    quantized: QuantizedModel,
    weight: Callable[[str, QuantizedTensor], nn.Module],
    activation: Callable[[ActivationQuantizer], Callable[[Tensor], Tensor]],
) -> torch.export.ExportedProgram:
    """Return ``quantized`` as a program in which the modules that ``weight`` makes give the quantized weights.

    The state of the program has their tensors below the names of the weights. ``activation`` makes of a quantizer what
    is done to the values it is for.
    """
    graph, edges = quantized.graph, {}
    for quantizer, shared in shared_quantizers(quantized):
        edges |= dict.fromkeys((edge[1:] for edge in shared), activation(quantizer))
    module = build_module(graph.graphs["forward"], quantized.real_parameters(), edges)
    for node in module.graph.nodes:
        if node.op == "get_attr" and node.target in quantized.weights:
            node.op = "call_module"
    for name, tensor in quantized.weights.items():
        owner, _, last = name.rpartition(".")
        delattr(module.get_submodule(owner), last)
        module.get_submodule(owner).add_module(last, weight(name, tensor))
    module.recompile()
    return export(module, graph.examples["forward"], graph.graphs["forward"].dynamic_axes)


class StoredWeight(nn.Module):
    """A quantized weight in the types it is stored in: up to four bits two codes to a byte, else one."""

    def __init__(self, weight: QuantizedTensor) -> None:
        super().__init__()
        self.shape, self.block, self.format = tuple(weight.codes.shape), weight.block, weight.format
        self.parts = list(stored_parts(weight))
        self.register_buffer("codes", packed(weight.codes, weight.format.bits))
        self.register_buffer("zero_point", weight.zero_point)
        for part, value in stored_parts(weight).items():
            self.register_buffer(part, value)

    def forward(self) -> Tensor:
        """Return the weight dequantized, float32."""
        codes = unpacked(self.codes, self.shape, self.format.bits, self.format.signed)
        parts = {part: getattr(self, part) for part in self.parts}
        return restored(codes, parts, self.zero_point, self.block, self.format).dequantize()


def packed(codes: Tensor, bits: int) -> Tensor:
    """Return codes (uint8 or int8) of up to four bits two to a byte, the first in the lowest; others as they are."""
    return pack(codes, 4) if bits <= 4 else codes


def unpacked(stored: Tensor, shape: Sequence[int], bits: int, signed: bool) -> Tensor:
    """Undo :func:`packed` in operators that can be exported."""
    if bits > 4:
        return stored
    codes = torch.stack([stored & 15, stored >> 4], -1).flatten()[: prod(shape)].reshape(shape)
    return (codes ^ 8).to(torch.int8) - 8 if signed else codes
