"""A model saved for MLX as one function of its inputs and weights, which ``mx.import_function`` runs by itself.

The function takes the arrays of ``model.safetensors`` as they lie there: packed weights go to ``mx.quantized_matmul``,
and codes that MLX's packing cannot express are dequantized by the function, operator by operator.
"""

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch

from quant.backends import _mlx_activations
from quant.backends._mlx_blas import mx
from quant.backends._mlx_executable import WEIGHTS, read
from quant.backends._mlx_program import DTYPES, Program, arrange
from quant.backends._mlx_weights import PackedWeight, decode
from quant.formats import CODEBOOKS
from quant.nodes import data_of
from quant.scheme import NumberFormat
from quant.storage import graph_from_json

FUNCTION = "model.mlxfn"


def write(built: Path, folder: Path, inputs: Sequence[mx.array]) -> None:
    """Write the function of a model in ``built``, for inputs of the given shapes, into ``folder``."""
    document, config = read(built)
    graph, dtype = graph_from_json(document), DTYPES[config["dtype"]]

    saved = mx.load(str(built / WEIGHTS))
    # What all scales of a weight share is a number of the program: a traced one has no value.
    shared = {
        entry["tensors"]["shared"]: saved[entry["tensors"]["shared"]]
        for entry in config["weights"].values()
        if "shared" in entry["tensors"]
    }

    def function(*given: mx.array, **arrays: mx.array) -> list[mx.array]:
        arrays |= shared
        parameters = {name: _parameter(name, config, arrays, dtype) for name in config["parameters"]}
        program = Program(graph, parameters, dtype, _quantizers(config, graph, arrays))
        return [output.astype(mx.float32) for output in program(*given)]

    metadata = json.dumps({"inputs": graph.inputs, "outputs": graph.outputs})
    mx.export_function(str(folder / FUNCTION), function, *inputs, metadata=metadata, **saved)


def _parameter(name: str, config: dict, arrays: dict[str, mx.array], dtype: mx.Dtype) -> "mx.array | PackedWeight":
    entry = config["weights"].get(name)
    if entry is None:
        value = arrays[name]
        return value.astype(dtype) if mx.issubdtype(value.dtype, mx.floating) else value
    if entry["form"] != "codes":
        return decode(entry, arrays, dtype)
    value, groups = dequantized(entry, arrays), config["arrangements"].get(name)
    return (value if groups is None else arrange(value, groups)).astype(dtype)


def _quantizers(config: dict, graph: object, arrays: dict[str, mx.array]) -> dict:
    found = {}
    for entry in config["activations"]:
        of_layout = [_mlx_activations.decode(entry, arrays, channels_last) for channels_last in (False, True)]
        for node, position in entry["edges"]:
            value = data_of(graph.by_name[node], position)
            found[node, position] = of_layout[value.name in config["channels_last"]]
    return found


def dequantized(entry: dict, arrays: dict[str, mx.array]) -> mx.array:
    """Return the float32 values of a weight stored as plain codes, in operators that can be traced."""
    parts = {part: arrays[name] for part, name in entry["tensors"].items()}
    format, shape, block = NumberFormat(**entry["format"]), entry["shape"], entry["block"]
    codes = _codes(parts["codes"], format, shape)
    values = codes.astype(mx.float32) if format.codebook is None else _looked_up(codes, parts.get("codebook"), format)
    if "zero_point" in parts:
        values = values - _expanded(parts["zero_point"].astype(mx.float32), block, shape)
    if "scale" not in parts:
        return values
    scale = _scale(parts["scale"], format)
    if "shared_scale" in parts:
        scale = scale * parts["shared_scale"]
    return values * _expanded(scale, block, shape)


def _codes(stored: mx.array, format: NumberFormat, shape: Sequence[int]) -> mx.array:
    """Undo the packing of :func:`quant.backends._mlx_weights.encode`: to four bits two to a byte, else one."""
    width = 4 if format.bits <= 4 else 8
    if width == 4:
        stored = mx.stack([stored & 15, stored >> 4], -1).flatten()[: prod(shape)]
    codes = stored.reshape(shape).astype(mx.int32)
    return mx.where(codes >= 2 ** (width - 1), codes - 2**width, codes) if format.signed else codes


def _looked_up(codes: mx.array, learned: mx.array | None, format: NumberFormat) -> mx.array:
    table = mx.array(CODEBOOKS[format.codebook].entries.numpy()) if learned is None else learned.astype(mx.float32)
    if table.ndim == 2:
        rows = -(-codes.shape[0] // table.shape[0])
        first = mx.arange(codes.shape[0]) // rows * table.shape[1]
        codes = codes + first.reshape(-1, *[1] * (codes.ndim - 1))
    return mx.take(table.flatten(), codes)


def _scale(stored: mx.array, format: NumberFormat) -> mx.array:
    """Return scales as float32: those of 8-bit floats are stored as their bits, and looked up."""
    if format.scale_bits != 8:
        return stored.astype(mx.float32)
    values = torch.arange(256, dtype=torch.uint8).view(getattr(torch, format.scale_dtype)).float()
    return mx.take(mx.array(values.numpy()), stored.astype(mx.int32))


def _expanded(per_block: mx.array, block: Sequence[int], shape: Sequence[int]) -> mx.array:
    for axis, size in enumerate(block):
        if per_block.shape[axis] != 1 and size != 1:
            per_block = mx.repeat(per_block, size, axis)
            per_block = per_block[(slice(None),) * axis + (slice(shape[axis]),)]
    return per_block
