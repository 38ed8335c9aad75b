"""GGUF files, version 3: typed metadata, then tensors, of which three quantized types hold our codes exactly.

All are blocks of 32 neighbours along a row, with scales in half precision:

    Q8_0  scale, 32 codes int8                      value = code * scale
    Q4_0  scale, 32 codes in 16 bytes               value = (code - 8) * scale
    Q4_1  scale, minimum, 32 codes in 16 bytes      value = code * scale + minimum

Of 4-bit codes element i lies in the low half of byte i, and element i + 16 in its high half.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

BLOCK = 32
ALIGNMENT = 32
F32, F16, Q4_0, Q4_1, Q8_0 = 0, 1, 2, 3, 8
BLOCK_BYTES = {Q4_0: 18, Q4_1: 20, Q8_0: 34}

_MAGIC, _VERSION = b"GGUF", 3
_UINT32, _FLOAT32, _STRING, _ARRAY = 4, 6, 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_FLOATS = {F32: np.dtype("<f4"), F16: np.dtype("<f2")}
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file.

    type   one of the numbers above
    shape  outermost dimension first, of the values
    data   floats of the shape, or uint8 [rows, bytes of a row]
    """

    type: int
    shape: tuple[int, ...]
    data: np.ndarray


def write(path: Path, metadata: Mapping[str, str | int | float], tensors: Mapping[str, Tensor]) -> None:
    """Write a file. Integers of the metadata become uint32, floats float32."""
    head = [_MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        head += [_text(key), _value(value)]
    offset = 0
    for name, tensor in tensors.items():
        dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        head += [_text(name), dimensions, struct.pack("<IQ", tensor.type, offset)]
        offset += tensor.data.nbytes + _padding(tensor.data.nbytes)
    with path.open("wb") as file:
        file.write(b"".join(head))
        file.write(bytes(_padding(file.tell())))
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor.data).data)
            file.write(bytes(_padding(tensor.data.nbytes)))


def read(path: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Return the metadata and the tensors of a file; tensors are views into it, read when they are used.

    Raises:
        ValueError: it is no GGUF file of version 3, is cut short, or holds tensors of other types.
    """
    content = np.memmap(path, np.uint8, "r")
    reader = _Reader(content, path)
    if bytes(reader.take(4)) != _MAGIC or reader.scalar("<I") != _VERSION:
        raise ValueError(f"{path} is no GGUF file of version {_VERSION}.")
    count, keys = reader.scalar("<Q"), reader.scalar("<Q")
    metadata = {}
    for _ in range(keys):
        key = reader.text()
        metadata[key] = reader.value(reader.scalar("<I"))
    entries = [reader.tensor() for _ in range(count)]
    start = reader.position + _padding(reader.position)
    return metadata, {name: _view(reader, name, shape, type, start + at) for name, shape, type, at in entries}


def pack_q8_0(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return rows uint8 [rows, bytes] of codes int8 [rows, columns] with a scale [rows, columns / 32]."""
    return _rows(_halves(scale), codes.reshape(*scale.shape, BLOCK).view(np.uint8))


def pack_q4_0(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the same of codes int8 from -8 to 7."""
    return _rows(_halves(scale), _nibbles((codes + 8).astype(np.uint8).reshape(*scale.shape, BLOCK)))


def pack_q4_1(codes: np.ndarray, scale: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    """Return the same of codes uint8 up to 15 with a minimum as well."""
    return _rows(_halves(scale), _halves(minimum), _nibbles(codes.reshape(*scale.shape, BLOCK)))


def codes_of(tensor: Tensor) -> np.ndarray:
    """Return the codes of a quantized tensor: int8 of symmetric types, uint8 of Q4_1."""
    blocks = _blocks(tensor)
    if tensor.type == Q8_0:
        return np.ascontiguousarray(blocks[..., 2:]).view(np.int8).reshape(tensor.shape)
    packed = blocks[..., 2:] if tensor.type == Q4_0 else blocks[..., 4:]
    codes = np.concatenate([packed & 15, packed >> 4], axis=-1).reshape(tensor.shape)
    return codes.astype(np.int8) - 8 if tensor.type == Q4_0 else codes


def dequantized(tensor: Tensor) -> np.ndarray:
    """Return the values of a tensor, float32 of its shape."""
    if tensor.type in _FLOATS:
        return tensor.data.astype(np.float32)
    blocks = _blocks(tensor)
    values = codes_of(tensor).reshape(*blocks.shape[:2], BLOCK) * _real(blocks[..., :2])
    if tensor.type == Q4_1:
        values = values + _real(blocks[..., 2:4])
    return values.reshape(tensor.shape)


class _Reader:
    """What lies in a file, one thing after the other."""

    def __init__(self, content: np.ndarray, path: Path) -> None:
        self.content, self.path, self.position = content, path, 0

    def take(self, count: int) -> np.ndarray:
        if count > len(self.content) - self.position:
            raise ValueError(f"{self.path} is cut short: download or export it again.")
        self.position += count
        return self.content[self.position - count : self.position]

    def scalar(self, form: str) -> object:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return bytes(self.take(self.scalar("<Q"))).decode(errors="replace")

    def value(self, kind: int) -> object:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            of, count = self.scalar("<I"), self.scalar("<Q")
            if of == _ARRAY:
                raise ValueError(f"{self.path} holds arrays of arrays, which are not read.")
            return [self.value(of) for _ in range(count)]
        if kind not in _SCALARS:
            raise ValueError(f"{self.path} holds metadata of an unknown type {kind}.")
        return self.scalar(_SCALARS[kind])

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self.text(), self.scalar("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"{self.path} holds a tensor of {dimensions} dimensions: it is damaged.")
        shape = tuple(self.scalar("<Q") for _ in range(dimensions))[::-1]
        return name, shape, self.scalar("<I"), self.scalar("<Q")


def _view(reader: _Reader, name: str, shape: tuple[int, ...], kind: int, start: int) -> Tensor:
    if kind in _FLOATS:
        size = prod(shape) * _FLOATS[kind].itemsize
    elif kind in BLOCK_BYTES and shape and shape[-1] % BLOCK == 0:
        size = prod(shape) // BLOCK * BLOCK_BYTES[kind]
    else:
        raise ValueError(f"{reader.path} holds {name!r} as a type that is not read ({kind}).")
    reader.position = start
    data = reader.take(size)
    return Tensor(kind, shape, data.view(_FLOATS[kind]).reshape(shape) if kind in _FLOATS else data)


def _blocks(tensor: Tensor) -> np.ndarray:
    """Return the bytes of all blocks, uint8 [rows, blocks, bytes]."""
    return np.asarray(tensor.data).reshape(-1, tensor.shape[-1] // BLOCK, BLOCK_BYTES[tensor.type])


def _nibbles(codes: np.ndarray) -> np.ndarray:
    return codes[..., : BLOCK // 2] | codes[..., BLOCK // 2 :] << 4


def _halves(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.dtype("<f2"))[..., None].view(np.uint8)


def _real(halves: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(halves).view(np.dtype("<f2")).astype(np.float32)


def _rows(*parts: np.ndarray) -> np.ndarray:
    joined = np.concatenate(parts, axis=-1)
    return joined.reshape(len(joined), -1)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: str | int | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    return struct.pack("<II", _UINT32, value)


def _padding(size: int) -> int:
    return -size % ALIGNMENT
