"""TensorFlow Lite's files: inputs turned into constants, and constants read back. Needs the schema that LiteRT brings.

The converter computes ahead what constants alone go into, and stores floats. What it is given as an input it cannot,
and an input becomes a constant afterwards: its tensor gets a buffer, and the lists of inputs lose it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MODEL, TENSORS = "model.tflite", "tensors.json"

_IDENTIFIER = b"TFL3"
_CAST_OF_INT4 = 6
"""The version of the operator CAST that reads them."""


def read(path: Path) -> Any:
    """Return a model as objects of the schema."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))


def write(model: Any, path: Path) -> None:
    import flatbuffers

    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    path.write_bytes(bytes(builder.Output()))


def input_numbers(model: Any) -> dict[str, int]:
    """Return the numbers of the tensors that are inputs, by what the model's signature calls them."""
    return {entry.name.decode(): entry.tensorIndex for entry in model.signatureDefs[0].inputs}


def hold(model: Any, values: Mapping[int, np.ndarray], four_bits: Mapping[int, bool]) -> None:
    """Make constants of the inputs with these numbers; codes of four bits lie two to a byte where casts read them."""
    from ai_edge_litert import schema_py_generated as schema

    graph = model.subgraphs[0]
    for number, value in values.items():
        tensor, stored = graph.tensors[number], np.ascontiguousarray(value).reshape(-1)
        if four_bits[number] and (casts := _casts_alone(model, number)):
            tensor.type, stored = schema.TensorType.INT4, _packed(stored)
            for cast in casts:
                cast.version = max(cast.version, _CAST_OF_INT4)
        buffer = schema.BufferT()
        buffer.data = stored.view(np.uint8)
        tensor.buffer = len(model.buffers)
        model.buffers.append(buffer)
    graph.inputs = [number for number in graph.inputs if number not in values]
    for signature in model.signatureDefs:
        signature.inputs = [entry for entry in signature.inputs if entry.tensorIndex not in values]


def integers(model: Any) -> dict[int, np.ndarray]:
    """Return the constants of 8-bit and 4-bit integers as int8 [values], by the numbers of their tensors."""
    from ai_edge_litert import schema_py_generated as schema

    found = {}
    for number, tensor in enumerate(model.subgraphs[0].tensors):
        stored = model.buffers[tensor.buffer].data
        if stored is None or not len(stored):
            continue
        values = np.asarray(stored, np.uint8).view(np.int8)
        if tensor.type == schema.TensorType.INT8:
            found[number] = values
        elif tensor.type == schema.TensorType.INT4:
            found[number] = np.stack([values << 4 >> 4, values >> 4], -1).reshape(-1)[: np.prod(tensor.shape)]
    return found


def _casts_alone(model: Any, number: int) -> list[Any]:
    """Return the codes of the operators that read a tensor where all are casts; none where something else does."""
    from ai_edge_litert import schema_py_generated as schema

    readers = [operator for operator in model.subgraphs[0].operators if number in operator.inputs]
    codes = [model.operatorCodes[operator.opcodeIndex] for operator in readers]
    cast = schema.BuiltinOperator.CAST
    return codes if all(max(code.builtinCode, code.deprecatedBuiltinCode) == cast for code in codes) else []


def _packed(codes: np.ndarray) -> np.ndarray:
    """Return int8 codes of four bits two to a byte, the first in the lower half."""
    low, high = codes[::2], codes[1::2]
    packed = low & 15
    packed[: len(high)] |= high << 4
    return packed
