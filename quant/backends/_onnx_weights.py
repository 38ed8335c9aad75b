"""Quantized weights as ONNX nodes: a kernel of the runtime where there is one, arithmetic on constants where not.

The runtime computes constants when it loads a model, so a weight without a kernel costs no time per call: it is
stored in its codes and computed with in float, that is, simulated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from quant.backends._onnx_editor import MICROSOFT, Editor
from quant.backends._onnx_packing import KernelBlocks, container, is_kernel_block, kernel_blocks, pack
from quant.tensor import QuantizedTensor, stored_parts

UNQUANTIZED_INPUTS = 1
"""The accuracy level of MatMulNBits at which activations stay float32."""
INTEGER_INPUTS = 4
"""The accuracy level at which it quantizes them to 8 bits, symmetrically, in blocks as long as the weight's."""

_NORMAL_FLOATS = 1  # as MatMulBnb4 numbers its types
_FINE_SCALE = 2.0**-16


@dataclass(frozen=True)
class Linear:
    """The ONNX nodes of one linear layer: a Gemm, or a MatMul with a transposed weight and perhaps an Add."""

    data: ir.Value
    bias: ir.Value | None
    output: ir.Value


def linear_of(nodes: list[ir.Node]) -> Linear | None:
    """Return what ``nodes``, all of one call, make of a linear layer; None if they have another form."""
    product = next((node for node in nodes if node.op_type in ("MatMul", "Gemm")), None)
    if product is None:
        return None
    data, output = product.inputs[0], product.outputs[0]
    if product.op_type == "Gemm":
        bias = product.inputs[2] if len(product.inputs) > 2 else None
        return Linear(data, bias, output)
    addition = next((node for node in nodes if node.op_type == "Add" and output in node.inputs), None)
    if addition is None:
        return Linear(data, None, output)
    bias = next(value for value in addition.inputs if value is not output)
    return Linear(data, bias, addition.outputs[0])


def lower_matmul(
    editor: Editor, name: str, tensor: QuantizedTensor, linear: Linear, level: int = UNQUANTIZED_INPUTS
) -> bool:
    """Replace a linear layer by MatMulNBits; False, and no change, if the kernel cannot express the weight."""
    if _suits_normal_float_kernel(tensor):
        _lower_normal_floats(editor, name, tensor, linear)
        return True
    blocks = kernel_blocks(tensor)
    if blocks is None:
        return False
    scale, zero_points = _scale_and_zero_points(editor, name, tensor, blocks)
    output = editor.add(
        "MatMulNBits",
        [linear.data, _blocks_of_codes(editor, name, blocks), scale, zero_points, None, linear.bias],
        name=f"{linear.output.name}/product",
        domain=MICROSOFT,
        K=blocks.codes.shape[1],
        N=blocks.codes.shape[0],
        bits=blocks.bits,
        block_size=blocks.block,
        accuracy_level=level,
    )
    editor.replace_output(linear.output, output)
    return True


def _suits_normal_float_kernel(tensor: QuantizedTensor) -> bool:
    """Whether MatMulBnb4 reads the weight: its blocks lie in the flattened weight, and so must divide the rows."""
    if tensor.format.codebook != "nf4" or tensor.codes.ndim != 2 or tensor.block[0] != 1:
        return False
    return is_kernel_block(tensor.block[1]) and tensor.codes.shape[1] % tensor.block[1] == 0


def _packed_normal_floats(editor: Editor, name: str, tensor: QuantizedTensor) -> ir.Value:
    """Return the codes as MatMulBnb4 reads them: uint8 [elements / 2], the first of two in the highest bits."""
    return editor.constant(f"{name}/packed", pack(tensor.codes.numpy().reshape(-1, 2)[:, ::-1], 4).reshape(-1))


def _lower_normal_floats(editor: Editor, name: str, tensor: QuantizedTensor, linear: Linear) -> None:
    (rows, columns), block = tensor.codes.shape, tensor.block[1]
    scale = editor.real(f"{name}/flat_scale", tensor.scale.numpy().reshape(-1), tensor.format.scale_dtype)
    output = editor.add(
        "MatMulBnb4",
        [linear.data, _packed_normal_floats(editor, name, tensor), scale],
        name=f"{linear.output.name}/product",
        domain=MICROSOFT,
        K=columns,
        N=rows,
        block_size=block,
        quant_type=_NORMAL_FLOATS,
    )
    if linear.bias is not None:
        output = editor.add("Add", [output, linear.bias], name=f"{linear.output.name}/biased")
    editor.replace_output(linear.output, output)


def lower_gather(editor: Editor, name: str, tensor: QuantizedTensor, gather: ir.Node) -> bool:
    """Replace an embedding by GatherBlockQuantized; False, and no change, if the kernel cannot express the weight."""
    blocks = kernel_blocks(tensor, gathered=True)
    rows = None if blocks is None else blocks.packed_rows()
    if rows is None:
        return False
    scale, zero_points = _scale_and_zero_points(editor, name, tensor, blocks)
    output = editor.add(
        "GatherBlockQuantized",
        [editor.constant(f"{name}/packed", rows), gather.inputs[1], scale, zero_points],
        name=f"{gather.outputs[0].name}/rows",
        domain=MICROSOFT,
        bits=blocks.bits,
        block_size=blocks.block,
        gather_axis=0,
        quantize_axis=1,
    )
    editor.replace_output(gather.outputs[0], output)
    return True


def is_per_channel(tensor: QuantizedTensor) -> bool:
    """Whether every scale, if there is more than one, belongs to an index of the first axis."""
    return all(size == 1 for size in tensor.scale.shape[1:])


def channel_scale(tensor: QuantizedTensor) -> np.ndarray:
    """Return one scale per output channel (float32 [out]) of a per-channel or per-tensor weight.

    Any scale suits a channel of zeros. The smallest of the others keeps a bias fine that is stored in steps of it.
    """
    scale = _per_channel(tensor.scale, tensor).astype(np.float32)
    if tensor.zero_point is None:
        dead = (tensor.codes.flatten(1) == 0).all(1).numpy()
        scale[dead] = scale[~dead].min() if not dead.all() else _FINE_SCALE
    return scale


def integer_weight(editor: Editor, name: str, tensor: QuantizedTensor, transposed: bool) -> list[ir.Value]:
    """Return codes, and one scale and one zero point per output channel, which come last if ``transposed``.

    Symmetric weights get zero points as well: QGemm is not fused without.
    """
    codes, suffix = (tensor.codes.numpy().T, "_transposed") if transposed else (tensor.codes.numpy(), "")
    scale = channel_scale(tensor)
    zero_point = np.zeros(scale.shape, codes.dtype)
    if tensor.zero_point is not None:
        zero_point = _per_channel(tensor.zero_point, tensor)
    return [
        editor.constant(f"{name}/codes{suffix}", codes),
        editor.constant(f"{name}/channel_scale", scale),
        editor.constant(f"{name}/channel_zero_point", zero_point),
    ]


def dequantize_linear(editor: Editor, name: str, tensor: QuantizedTensor, transposed: bool) -> ir.Value:
    """Return a per-channel weight as DequantizeLinear, the form that the runtime fuses into integer kernels."""
    suffix = "_transposed" if transposed else ""
    inputs = integer_weight(editor, name, tensor, transposed)
    return editor.add("DequantizeLinear", inputs, name=f"{name}/real{suffix}", axis=int(transposed))


def integers(editor: Editor, name: str, codes: np.ndarray, bits: int) -> ir.Value:
    """Return the constant ``name`` that holds int8 or uint8 ``codes``, two to a byte if they have so few ``bits``."""
    return editor.constant(name, codes) if container(bits) == 8 else editor.four_bit_constant(name, codes)


def dequantized(editor: Editor, name: str, tensor: QuantizedTensor) -> ir.Value:
    """Return the weight computed from its codes by plain arithmetic, whatever its blocks are."""
    shape, counts = tensor.codes.shape, tensor.scale.shape
    within = [size if count == 1 else block for size, count, block in zip(shape, counts, tensor.block, strict=True)]
    padded = [count * size for count, size in zip(counts, within, strict=True)]
    spare = [(0, large - size) for large, size in zip(padded, shape, strict=True)]
    split = _interleave(counts, within)
    values = _elements(editor, name, tensor, spare)
    values = _reshape(editor, f"{name}/in_blocks", values, split)
    per_block = _interleave(counts, [1] * len(counts))
    if tensor.zero_point is not None:
        zero_point = editor.constant(f"{name}/zero_point", tensor.zero_point.numpy().reshape(per_block))
        values = editor.add("Sub", [values, editor.cast(zero_point)], name=f"{name}/centred")
    if tensor.format.scale_dtype is not None:
        values = editor.add("Mul", [values, _stored_scale(editor, name, tensor, per_block)], name=f"{name}/scaled")
    values = _reshape(editor, f"{name}/padded_weight", values, padded)
    if padded == list(shape):
        return values
    bounds = (np.zeros(len(shape), np.int64), np.array(shape, np.int64))
    starts_and_ends = [editor.constant(f"{name}/bound_{i}", bound) for i, bound in enumerate(bounds)]
    return editor.add("Slice", [values, *starts_and_ends], name=f"{name}/weight")


def _per_channel(per_block: Tensor, tensor: QuantizedTensor) -> np.ndarray:
    return per_block.reshape(-1).expand(tensor.codes.shape[0]).numpy().copy()


def _scale_and_zero_points(
    editor: Editor, name: str, tensor: QuantizedTensor, blocks: KernelBlocks
) -> tuple[ir.Value, ir.Value | None]:
    scale = editor.real(f"{name}/scale_of_{blocks.block}", blocks.scale, tensor.format.scale_dtype)
    packed = blocks.packed_zero_points()
    return scale, None if packed is None else editor.constant(f"{name}/zero_point_of_{blocks.block}", packed)


def _blocks_of_codes(editor: Editor, name: str, blocks: KernelBlocks) -> ir.Value:
    """Return the codes as MatMulNBits reads them: [rows, blocks, bytes]."""
    packed = blocks.packed_blocks()
    if not blocks.divides:
        return editor.constant(f"{name}/packed_in_blocks", packed)
    rows = editor.constant(f"{name}/packed", packed.reshape(packed.shape[0], -1))
    return _reshape(editor, f"{name}/packed_in_blocks", rows, packed.shape)


def _elements(editor: Editor, name: str, tensor: QuantizedTensor, spare: Sequence[tuple[int, int]]) -> ir.Value:
    """Return codes padded by ``spare``, or the entries they stand for, as float32."""
    if _suits_normal_float_kernel(tensor):
        return _looked_up_in_pairs(editor, name, tensor)
    padded = np.pad(tensor.codes.numpy(), spare)
    codes = integers(editor, f"{name}/padded_codes", padded, tensor.format.bits)
    return editor.cast(codes) if tensor.codebook is None else _looked_up(editor, name, tensor, codes)


def _looked_up_in_pairs(editor: Editor, name: str, tensor: QuantizedTensor) -> ir.Value:
    """Return the entries of what the kernel reads as well, so that a weight of several uses is stored once."""
    entries = tensor.codebook.numpy()
    pairs = np.stack([entries.repeat(16), np.tile(entries, 16)], -1)
    packed = _packed_normal_floats(editor, name, tensor)
    indices = editor.add("Cast", [packed], name=f"{name}/pair_indices", to=ir.DataType.INT32)
    return editor.add("Gather", [editor.constant("quant/nf4_pairs", pairs), indices], name=f"{name}/pairs")


def _looked_up(editor: Editor, name: str, tensor: QuantizedTensor, codes: ir.Value) -> ir.Value:
    """Return the entries (float32) of the codebook at ``codes``, padded by rows as they are."""
    indices = editor.add("Cast", [codes], name=f"{name}/indices", to=ir.DataType.INT32)
    if tensor.codebook.ndim == 2:
        tables, entries = tensor.codebook.shape
        first = (np.arange(codes.shape[0], dtype=np.int32) // tensor.rows_per_table).clip(max=tables - 1) * entries
        offsets = editor.constant(f"{name}/offsets", first.reshape(-1, *[1] * (tensor.codes.ndim - 1)))
        indices = editor.add("Add", [indices, offsets], name=f"{name}/table_indices")
    entries = tensor.codebook.numpy().reshape(-1)
    if tensor.format.codebook == "learned":
        table = editor.real(f"{name}/codebook", entries, "float16")
    else:
        table = editor.constant(f"quant/{tensor.format.codebook}", entries)  # one for all weights
    return editor.add("Gather", [table, indices], name=f"{name}/entries")


def _stored_scale(editor: Editor, name: str, tensor: QuantizedTensor, shape: Sequence[int]) -> ir.Value:
    """Return the scales as float32; those of 8-bit floats, for which there is no cast, from a table of all values."""
    if tensor.format.scale_bits != 8:
        return editor.real(f"{name}/scale", tensor.scale.numpy().reshape(shape), tensor.format.scale_dtype)
    parts = stored_parts(tensor)
    values = torch.arange(256, dtype=torch.uint8).view(parts["scale"].dtype).float().numpy()
    table = editor.constant(f"quant/{tensor.format.scale_dtype}", values)
    codes = editor.constant(f"{name}/scale_codes", parts["scale"].view(torch.uint8).numpy().reshape(shape))
    indices = editor.add("Cast", [codes], name=f"{name}/scale_indices", to=ir.DataType.INT32)
    scale = editor.add("Gather", [table, indices], name=f"{name}/scale")
    if "shared_scale" not in parts:
        return scale
    shared = editor.constant(f"{name}/shared_scale", parts["shared_scale"].numpy())
    return editor.add("Mul", [scale, shared], name=f"{name}/true_scale")


def _reshape(editor: Editor, name: str, value: ir.Value, shape: Sequence[int]) -> ir.Value:
    return editor.add("Reshape", [value, editor.constant(f"{name}/shape", np.array(shape, np.int64))], name=name)


def _interleave(counts: Sequence[int], within: Sequence[int]) -> list[int]:
    return [size for pair in zip(counts, within, strict=True) for size in pair]
