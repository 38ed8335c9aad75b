"""Tables of a quantized model as operations of a Core ML program.

Weights become ``constexpr_blockwise_shift_scale`` or ``constexpr_lut_to_dense``, which Core ML decompresses itself;
activations become pairs of ``quantize`` and ``dequantize`` on the inputs of operators, which it fuses with quantized
weights.
"""

from collections.abc import Iterator
from math import gcd

import numpy as np
import torch
from torch import Tensor

from quant.backends import _coreml_recurrent as recurrent
from quant.backends._coreml_package import (
    Package,
    WeightFile,
    declare,
    input_name,
    operation,
    scalar,
    shape_of,
    tensor_type,
    type_word,
)
from quant.backends._coreml_template import constant_values, edge_key
from quant.graph import ActivationQuantizer, QuantizedModel, shared_quantizers
from quant.tensor import QuantizedTensor

_STORED = (torch.float16, torch.float32)


def spliced(package: Package, quantized: QuantizedModel, weights: WeightFile) -> list:
    """Return the operations of ``package`` with the tables of ``quantized`` in their places.

    Raises:
        ValueError: a table entry has no target in the program, or Core ML cannot express it; the sentence names it.
    """
    replaced = _replacements(package, quantized)
    inserted = _quantized_inputs(package, quantized)
    operations = []
    for original in package.operations:
        name = original.outputs[0].name if original.outputs else ""
        if original.type == "const":
            operations += _constant(original, replaced.get(name), package, weights)
            continue
        changed = type(original)()
        changed.CopyFrom(original)
        for key, chain in inserted.get(name, {}).items():
            operations += chain.operations(package, weights)
            changed.inputs[key].arguments[0].name = chain.result
        operations.append(changed)
    return operations


def _replacements(package: Package, quantized: QuantizedModel) -> dict[str, QuantizedTensor | Tensor]:
    """Return what becomes of constants, by their names."""
    names, graph = package.names, quantized.graph
    half, in_gate_order = names["precision"] == "float16", recurrent.weights_in_gate_order(graph)
    replaced: dict[str, QuantizedTensor | Tensor] = {}
    for name, weight in quantized.weights.items():
        if name not in names["constants"]:
            raise ValueError(f"the weight {name!r} has no constant of its own in Core ML's program: leave it float.")
        if weight.codebook is not None and weight.format.scale_dtype is not None:
            raise ValueError(f"the weight {name!r} is a look-up table with scales, which Core ML does not read.")
        replaced[names["constants"][name]] = recurrent.reordered(weight) if name in in_gate_order else weight
    changed = {name: value for name, value in quantized.floats.items() if _differs(value, graph.parameters[name], half)}
    before = constant_values(graph.graphs["forward"], graph.parameters) if changed else {}
    after = constant_values(graph.graphs["forward"], quantized.real_parameters()) if changed else {}
    for node, constant in names["derived"].items():
        if changed and not torch.equal(before[node], after[node]):
            replaced[constant] = after[node]
    for name, value in changed.items():
        if name in names["constants"]:
            replaced[names["constants"][name]] = recurrent.reordered(value) if name in in_gate_order else value
        elif not all(edge[1] in before for edge in graph.consumers(name)):
            raise ValueError(f"the parameter {name!r} has no constant of its own in Core ML's program: keep its value.")
    for bias in {input_name(source, "bias") for source in package.operations if source.type == "conv_transpose"}:
        if bias in replaced:
            # coremltools loads no transposed convolution whose bias is anything but a plain constant.
            replaced[bias] = replaced[bias].float()
    return replaced


def _differs(value: Tensor, original: Tensor, half: bool) -> bool:
    if value.dtype not in _STORED:
        raise ValueError(f"Core ML stores no {str(value.dtype).removeprefix('torch.')} parameters: use fp16 or fp32.")
    if half:
        return not torch.equal(value.half(), original.half())
    return value.dtype == torch.float16 or not torch.equal(value, original)


def _constant(
    original: object, replacement: QuantizedTensor | Tensor | None, package: Package, weights: WeightFile
) -> list:
    """Return the operations that give a constant's value: its own, stored anew, or the replacement's."""
    name, declared = original.outputs[0].name, original.outputs[0].type
    if replacement is None:
        value = original.attributes["val"]
        if value.WhichOneof("value") == "blobFileValue":
            array = package.array(value).reshape(shape_of(declared))
            value = weights.store(array, type_word(declared))
        return [operation("const", name, declared, val=value)]
    if isinstance(replacement, QuantizedTensor) and replacement.codebook is not None:
        return [_palette(name, declared, replacement, weights)]
    if isinstance(replacement, QuantizedTensor):
        return _weight(name, declared, replacement, weights)
    return _float(name, declared, replacement, weights)


def _float(name: str, declared: object, value: Tensor, weights: WeightFile) -> list:
    word = type_word(declared)
    if word == "fp32" and value.dtype == torch.float16:
        return [_cast_up(name, declared, value, weights)]
    return [operation("const", name, declared, val=weights.store(_as(value, word), word))]


def _cast_up(name: str, declared: object, value: Tensor, weights: WeightFile) -> object:
    """Return the operation that widens ``value`` when the model is loaded: half precision on disk, exact in float32."""
    source = weights.store(_as(value, "fp16"), "fp16")
    return operation("constexpr_cast", name, declared, source_val=source, output_dtype=scalar("fp32", "string"))


def _weight(name: str, declared: object, weight: QuantizedTensor, weights: WeightFile) -> list:
    """Return a weight as codes, scales and zero points.

    A width that has no storage type goes into the next wider one. Indices into a palette of integers would be smaller,
    but before iOS 26 Core ML does not take a palette that is scaled afterwards (``canonicalize_quantized_lut_pattern``
    of coremltools).
    """
    scale, zero_point = _dividing_blocks(weight)
    signed = weight.codes.dtype == torch.int8
    container = f"{'' if signed else 'u'}int{4 if weight.format.bits <= 4 else 8}"
    inputs = {"data": weights.store(weight.codes.numpy(), container)}
    if zero_point is not None:
        inputs["offset"] = weights.store(zero_point.numpy(), container)
    operations, word = [], type_word(declared)
    if word == "fp32" and weight.format.scale_dtype == "float16":
        # The scale has the type of the result; widened from half precision it takes half the space, and is exact.
        inputs["scale"] = f"{name}_scale"
        operations.append(_cast_up(inputs["scale"], declare("fp32", scale.shape), scale, weights))
    else:
        inputs["scale"] = weights.store(_as(scale, word), word)
    return [*operations, operation("constexpr_blockwise_shift_scale", name, declared, **inputs)]


def _palette(name: str, declared: object, weight: QuantizedTensor, weights: WeightFile) -> object:
    """Return a weight as indices of its own width into tables [tables, 1, ..., entries, 1]."""
    rows, together = weight.codes.shape[0], weight.rows_per_table
    tables = weight.codebook.reshape(-1, 2**weight.format.bits)
    if len(tables) > 1 and rows % together:
        step = gcd(rows, together)  # Core ML gives every table as many rows: some are stored more than once
        tables = tables[torch.arange(0, rows, step) // together]
    word = type_word(declared)
    shape = (len(tables), *[1] * (weight.codes.ndim - 1), -1, 1)
    return operation(
        "constexpr_lut_to_dense",
        name,
        declared,
        indices=weights.store(weight.codes.numpy(), f"uint{weight.format.bits}"),
        lut=weights.store(_as(tables.reshape(shape), word), word),
    )


def _dividing_blocks(weight: QuantizedTensor) -> tuple[Tensor, Tensor | None]:
    """Return scale and zero point in blocks that divide the shape, smaller ones where they must be."""
    scale, zero_point = weight.scale, weight.zero_point
    for dimension, (size, block) in enumerate(zip(weight.codes.shape, weight.block, strict=True)):
        if size % min(block, size):
            step = gcd(block, size)
            owner = torch.arange(0, size, step) // block
            scale = scale.index_select(dimension, owner)
            zero_point = None if zero_point is None else zero_point.index_select(dimension, owner)
    return scale, zero_point


def _quantized_inputs(package: Package, quantized: QuantizedModel) -> dict[str, dict[str, "_Chain"]]:
    """Return for each operation (by its output) the chains that feed its inputs instead of the plain values."""
    edges = package.names["edges"]
    by_output = {output.name: source for source in package.operations for output in source.outputs}
    for graph, node, position in quantized.activations:
        if graph != "forward" or edge_key(node, position) not in edges:
            raise ValueError(f"argument {position} of {node!r} ({graph}) has no counterpart in Core ML's program.")
    inserted: dict[str, dict[str, _Chain]] = {}
    for index, (quantizer, shared) in enumerate(shared_quantizers(quantized)):
        _refuse(quantizer, shared[0])
        chains: dict[str, _Chain] = {}
        for edge in shared:
            output, key = edges[edge_key(*edge[1:])]
            value = input_name(by_output[output], key)
            chain = chains.setdefault(value, _Chain(value, f"{value}_quantized_{index}", quantizer))
            inserted.setdefault(output, {})[key] = chain
    return inserted


def _refuse(quantizer: ActivationQuantizer, edge: tuple[str, str, int]) -> None:
    where = f"the input of {edge[1]!r}"
    if quantizer.mode == "dynamic":
        raise ValueError(f"{where} is quantized at run time, which Core ML cannot do: use a static method.")
    if quantizer.mode == "static" and (quantizer.scale.numel() != 1 or quantizer.format.bits > 8):
        raise ValueError(f"{where} needs one scale per tensor and at most 8 bits in Core ML, not {quantizer.format}.")


class _Chain:
    """Operations that scale, quantize and dequantize one value; they are emitted once, before their first user."""

    def __init__(self, value: str, result: str, quantizer: ActivationQuantizer) -> None:
        self.value, self.result, self.quantizer = value, result, quantizer
        self._emitted = False

    def operations(self, package: Package, weights: WeightFile) -> list:
        if self._emitted:
            return []
        self._emitted = True
        declared, made = package.types[self.value], list(self._steps())
        word, operations, value = type_word(declared), [], self.value
        for index, (kind, arguments, elements) in enumerate(made):
            output = self.result if index == len(made) - 1 else f"{self.result}_{kind}"
            inputs = {"input" if kind.endswith("quantize") else "x": value}
            for key, argument in arguments.items():
                constant = f"{output}_{key}"
                operations.append(_argument(constant, argument, word, weights))
                inputs[key] = constant
            operations.append(operation(kind, output, tensor_type(elements or word, declared), **inputs))
            value = output
        return operations

    def _steps(self) -> Iterator[tuple[str, dict, str | None]]:
        """Yield (operator, constant arguments, element type of the result)."""
        quantizer, format = self.quantizer, self.quantizer.format
        if quantizer.input_scale is not None:
            yield "mul", {"y": quantizer.input_scale}, None
        if quantizer.mode == "none":
            return
        scale, zero = quantizer.scale.item(), quantizer.zero_point
        offset, low, high = (0, -128, 127) if format.symmetric else (int(zero.item()), 0, 255)
        if (format.lowest, format.highest) != (low, high):
            yield "clip", {"alpha": (format.lowest - offset) * scale, "beta": (format.highest - offset) * scale}, None
        codes = "int8" if format.symmetric else "uint8"
        points = {} if format.symmetric else {"zero_point": offset}
        yield "quantize", {"scale": scale, **points, "output_dtype": codes}, codes
        yield "dequantize", {"scale": scale, **points}, None


def _argument(name: str, argument: str | float | int | Tensor, word: str, weights: WeightFile) -> object:
    """Return the constant an inserted operation takes: text, a zero point, a scale or a vector of scales."""
    if isinstance(argument, Tensor):
        return operation("const", name, declare(word, argument.shape), val=weights.store(_as(argument, word), word))
    word = {str: "string", int: "uint8"}.get(type(argument), word)
    return operation("const", name, declare(word), val=scalar(argument, word))


def _as(value: Tensor, word: str) -> np.ndarray:
    return value.to(torch.float16 if word == "fp16" else torch.float32).numpy()
