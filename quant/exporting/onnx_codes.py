"""The codes of weights read back from an ONNX model, whatever layout a kernel asked for."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from quant.backends._onnx_packing import container
from quant.exporting import Layout
from quant.tensor import unpack


def read(model: Path, layouts: Mapping[str, Layout]) -> dict[str, np.ndarray]:
    """Return the codes (uint8 or int8, of their weights' shapes) of all weights that have them in a known layout."""
    initializers = ir.load(model).graph.initializers
    constants = {name: value.const_value for name, value in initializers.items() if value.const_value is not None}
    return undo(layouts, constants.keys(), lambda name: constants[name].numpy())


def undo(
    layouts: Mapping[str, Layout], names: Collection[str], array: Callable[[str], np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the same of a model whose constants are called ``names``; ``array`` returns the content of one."""
    found = {}
    for name, layout in layouts.items():
        for part, undone in {f"codes_of_{layout.bits}_bits": _padded, **_LAYOUTS}.items():
            if f"{name}/{part}" in names:
                codes = undone(array(f"{name}/{part}"), layout)
                if codes is not None:
                    found[name] = codes
                break
    return found


def _plain(codes: np.ndarray, layout: Layout) -> np.ndarray | None:
    return codes if codes.shape == layout.shape else None  # those of an LSTM lie together, in the kernel's order


def _transposed(codes: np.ndarray, layout: Layout) -> np.ndarray:
    return np.ascontiguousarray(codes.T)


def _padded(codes: np.ndarray, layout: Layout) -> np.ndarray:
    return codes[tuple(slice(size) for size in layout.shape)].astype(np.int8 if layout.signed else np.uint8)


def _packed(stored: np.ndarray, layout: Layout) -> np.ndarray:
    """Undo rows of bytes with the first code in the lowest bits; the blocks of a row may be padded."""
    bits, (rows, columns) = container(layout.bits), layout.shape
    if stored.ndim == 1:  # MatMulBnb4 has the first of two codes in the highest bits
        pairs = unpack(torch.from_numpy(stored), 4, (stored.size, 2), signed=False).numpy()
        return np.ascontiguousarray(pairs[:, ::-1]).reshape(layout.shape)
    per_row = stored.size // rows * 8 // bits
    codes = unpack(torch.from_numpy(stored.reshape(-1)), bits, (rows, per_row), signed=False).numpy()[:, :columns]
    # Kernels read unsigned codes: signed ones are stored from the middle of the range on.
    return (codes.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8) if layout.signed else codes


_LAYOUTS = {
    "codes": _plain,
    "codes_transposed": _transposed,
    "padded_codes": _padded,
    "packed": _packed,
    "packed_in_blocks": _packed,
}
