"""Codes in streams of bits, as MLX stores them, undone."""

import numpy as np
import torch
from torch import Tensor

from quant.exporting import Layout
from quant.tensor import unpack


def packed_codes(stored: Tensor, layout: Layout) -> np.ndarray:
    """Return the codes of MLX's own packing: of as many bits as they have, and unsigned."""
    codes = unpack(stored.reshape(-1).view(torch.uint8), layout.bits, layout.shape, signed=False)
    # Signed codes are stored from the middle of the range on.
    return ((codes.short() - 2 ** (layout.bits - 1)).to(torch.int8) if layout.signed else codes).numpy()


def plain_codes(stored: Tensor, layout: Layout) -> np.ndarray:
    """Return codes of which up to four bits lie two to a byte, and others one to a byte, signed if they are."""
    bits = 4 if layout.bits <= 4 else 8
    return unpack(stored.reshape(-1).view(torch.uint8), bits, layout.shape, signed=layout.signed).numpy()
