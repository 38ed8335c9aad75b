"""Codes, scales and zero points in the layouts of ONNX Runtime's block-wise kernels."""

from dataclasses import dataclass

import numpy as np
import torch

from quant.tensor import QuantizedTensor

CONTAINERS = (2, 4, 8)
"""Bits per code that the kernels read; other widths are stored in the next wider container."""


@dataclass(frozen=True)
class KernelBlocks:
    """A matrix [rows, columns] as ``MatMulNBits`` and ``GatherBlockQuantized`` read it.

    bits        of the container
    block       columns per scale
    codes       uint8 [rows, columns], unsigned
    scale       float32 [rows, ceil(columns / block)]
    zero_point  uint8, shape of ``scale``; None where it is the middle of the container's range
    """

    bits: int
    block: int
    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None

    @property
    def divides(self) -> bool:
        return self.codes.shape[1] % self.block == 0

    def packed_blocks(self) -> np.ndarray:
        """Return the codes as uint8 [rows, blocks, bytes per block], the last block padded."""
        rows, columns = self.codes.shape
        blocks = self.scale.shape[1]
        padded = np.pad(self.codes, ((0, 0), (0, blocks * self.block - columns)))
        return pack(padded.reshape(rows, blocks, self.block), self.bits)

    def packed_rows(self) -> np.ndarray | None:
        """Return the codes as uint8 [rows, bytes per row], or None if a row does not fill its last byte."""
        return None if self.codes.shape[1] * self.bits % 8 else pack(self.codes, self.bits)

    def packed_zero_points(self) -> np.ndarray | None:
        """Return the zero points as uint8 [rows, bytes per row], the last byte padded."""
        if self.zero_point is None:
            return None
        spare = -self.zero_point.shape[1] % (8 // self.bits)
        return pack(np.pad(self.zero_point, ((0, 0), (0, spare))), self.bits)


def kernel_blocks(tensor: QuantizedTensor, gathered: bool = False) -> KernelBlocks | None:
    """Return a quantized matrix as the kernels read it, or None if they cannot express its blocks.

    Their blocks are powers of two, 16 or more. Other blocks of a table, up to whole rows, repeat their scale.
    ``gathered`` rows are read by GatherBlockQuantized, which does not store the padding of a block.
    """
    if tensor.codebook is not None or tensor.codes.ndim != 2 or tensor.block[0] not in (1, tensor.codes.shape[0]):
        return None
    rows, columns = tensor.codes.shape
    block = _block_size(tensor.block[1], columns, gathered)
    if block is None:
        return None
    bits = container(tensor.format.bits)
    blocks = -(-columns // block)

    def spread(per_block: torch.Tensor) -> np.ndarray:
        repeats = blocks if per_block.shape[1] == 1 else tensor.block[1] // block
        return per_block.expand(rows, -1).repeat_interleave(repeats, 1)[:, :blocks].numpy()

    codes, zero_point = tensor.codes.numpy(), None
    if tensor.format.symmetric:
        codes = codes.view(np.uint8) + np.uint8(2 ** (bits - 1))  # modulo 256, which maps -1 to one below the middle
    if tensor.zero_point is not None:
        zero_point = spread(tensor.zero_point)
    return KernelBlocks(bits, block, codes, spread(tensor.scale), zero_point)


def container(bits: int) -> int:
    return next(width for width in CONTAINERS if width >= bits)


def is_kernel_block(size: int) -> bool:
    return 16 <= size <= 256 and size & (size - 1) == 0


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return unsigned codes of the last axis packed into bytes, the first in the lowest bits."""
    per_byte = 8 // bits
    if per_byte == 1:
        return codes
    packed = codes[..., ::per_byte].copy()
    for position in range(1, per_byte):
        packed |= codes[..., position::per_byte] << (bits * position)
    return packed


def _block_size(group: int, columns: int, gathered: bool) -> int | None:
    """Return the widest block of the kernel that suits groups of ``group`` columns, or None."""
    sizes = [2**power for power in range(8, 3, -1)]
    if group < columns:
        return next((size for size in sizes if group % size == 0), None)
    if gathered:
        return max(sizes[-1], 2 ** (columns - 1).bit_length())
    return min(sizes, key=lambda size: -columns % size)
