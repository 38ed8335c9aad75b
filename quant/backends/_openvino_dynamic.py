"""Inputs that OpenVINO's kernels round at run time: those of linear layers whose weights stay packed.

A kernel rounds them to 8 bits, symmetrically, in groups of so many as one setting of the whole model says
(DYNAMIC_QUANTIZATION_GROUP_SIZE). Tables that ask for such groups are left to it; all others are arithmetic.
"""

from dataclasses import replace

from quant.backends._onnx_portable import axis_of_scales
from quant.backends._onnx_weights import is_per_channel
from quant.graph import ActivationQuantizer, Edge, QuantizedModel
from quant.nodes import QUANTIZABLE, weights_of

_GRAPH = "forward"
_LINEAR = "aten.linear.default"
_LANES = 16
"""The kernels take groups of a multiple of this size."""


def leave_inputs_to_kernels(quantized: QuantizedModel) -> tuple[QuantizedModel, int]:
    """Return the tables without the quantizers that the kernels stand for, and the size of their groups (0: none).

    The setting holds for all layers with packed weights, so either the tables round the inputs of all of them in groups
    of one size, or none is left to the kernels.
    """
    packed = _packed_linear_layers(quantized)
    groups = {_group(quantized.activations.get(edge), width) for edge, width in packed.items()}
    group = groups.pop() if len(groups) == 1 else None
    if not group:
        return quantized, 0
    left = {edge: replace(quantized.activations[edge], mode="none") for edge in packed}
    return replace(quantized, activations={**quantized.activations, **left}), group


def _group(quantizer: ActivationQuantizer | None, width: int) -> int | None:
    """Return the size of the groups that a kernel would round in, None where the tables ask for something else."""
    if quantizer is None or quantizer.mode != "dynamic" or quantizer.format.granularity != "group":
        return None
    format, size = quantizer.format, quantizer.format.group_size
    return size if format.bits == 8 and format.symmetric and size % _LANES == 0 and width % size == 0 else None


def _packed_linear_layers(quantized: QuantizedModel) -> dict[Edge, int]:
    """Return the data arguments of the linear layers whose weights OpenVINO keeps in their codes, and their widths."""
    return {
        (_GRAPH, node.name, QUANTIZABLE[_LINEAR].data): quantized.weights[weight.name].codes.shape[1]
        for node in quantized.graph.graphs[_GRAPH].nodes
        if node.operator == _LINEAR
        for weight in weights_of(node)
        if weight.name in quantized.weights and _stays_packed(quantized, weight.name)
    }


def _stays_packed(quantized: QuantizedModel, name: str) -> bool:
    """Whether a weight does: groups that an embedding reads as well are unpacked for all."""
    tensor, graph = quantized.weights[name], quantized.graph
    if axis_of_scales(tensor) is None:
        return False
    users = {graph.node(edge).operator for edge in graph.consumers(name) if edge[0] == _GRAPH}
    return users == {_LINEAR} or is_per_channel(tensor)
