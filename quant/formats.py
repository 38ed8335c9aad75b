"""Named codebooks and the 8-bit types of scales: the numbers that floating-point formats consist of.

An element format of few bits is its list of values; quantizing to it is finding the nearest one. Codes of floats are
their bits, so that a runtime's own packing and torch's 8-bit dtypes read them as they are.
"""

from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor

_SMALLEST_NORMAL = 2.0**-126
_LARGEST_POWER = 2.0**127
_E4M3 = torch.finfo(torch.float8_e4m3fn)
_SMALLEST_E4M3 = 2.0**-9

# Quantiles of the normal distribution that Dettmers et al. ("QLoRA", 2023, appendix E) print, as bitsandbytes and ONNX
# Runtime hold them.
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Codebook:
    """A list of values and where one gives way to the next.

    entries     float32 [2**bits], the value of each code; not finite where a code is no number
    codes       uint8 [n], the codes of the finite values in ascending order
    boundaries  float32 [n - 1], the largest number that still belongs to each of ``codes`` but the last
    """

    entries: Tensor
    codes: Tensor
    boundaries: Tensor

    def nearest(self, values: Tensor) -> Tensor:
        """Return the codes (uint8) of the entries nearest to ``values`` (float32, any shape)."""
        ranks = torch.searchsorted(self.boundaries, values.contiguous(), out_int32=True)
        # Plain indexing would widen the indices to 64 bits first.
        return self.codes.index_select(0, ranks.flatten()).reshape(values.shape)


def codebook(entries: Tensor, ties: Literal["even", "zero"]) -> Codebook:
    """Return ``entries`` (float32 [2**bits]) as a codebook.

    A number half-way between two entries goes to the one whose code is ``even``, or to the one nearer to ``zero``.
    """
    kept = [(value, code) for code, value in enumerate(entries.tolist()) if abs(value) < inf]
    if ties == "zero":
        kept = [*{value: (value, code) for value, code in reversed(kept)}.values()]  # of both zeros the first
    # Minus zero and zero are equal: by its code alone the former would come after.
    kept.sort(key=lambda pair: (pair[0], -pair[1] if pair[0] == 0 else 0))
    codes = torch.tensor([code for _, code in kept], dtype=torch.uint8)
    values = entries[codes.int()]
    middle = (values[1:] + values[:-1]) / 2
    upper_wins = codes[1:] % 2 == 0 if ties == "even" else values[:-1].abs() > values[1:].abs()
    below = torch.nextafter(middle, torch.tensor(-inf))
    return Codebook(entries, codes, torch.where(upper_wins, below, middle))


def round_up_to_e8m0(scale: Tensor) -> Tensor:
    """Return the smallest powers of two that are no smaller than ``scale``; zero stays zero."""
    mantissa, exponent = torch.frexp(scale)
    power = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())
    return torch.where(scale > 0, power.clamp(_SMALLEST_NORMAL, _LARGEST_POWER), 0)


def round_to_e4m3(scale: Tensor) -> Tensor:
    """Return ``scale`` rounded to e4m3 times the power of two that all of them share.

    None becomes zero, as MLX has it: a block too small for its neighbours, or dead, gets the smallest scale there is.
    """
    shared = shared_power(scale)
    return (scale / shared).to(torch.float8_e4m3fn).float().clamp(min=_SMALLEST_E4M3) * shared


def shared_power(scale: Tensor) -> Tensor:
    """Return the smallest power of two (float32, no dimensions) by which all of ``scale`` are within reach of e4m3."""
    largest = scale.max() if scale.numel() else scale.new_ones(())
    return torch.where(largest > 0, round_up_to_e8m0(largest / _E4M3.max), 1.0)


def _bits_as(dtype: torch.dtype) -> Tensor:
    return torch.arange(256, dtype=torch.uint8).view(dtype).float()


CODEBOOKS = {
    "nf4": codebook(torch.tensor(_NF4), "zero"),
    "e2m1": codebook(torch.tensor([*_E2M1, *(-value for value in _E2M1)]), "zero"),
    "e4m3": codebook(_bits_as(torch.float8_e4m3fn), "even"),
    "e5m2": codebook(_bits_as(torch.float8_e5m2), "even"),
}
"""Ties are those of ``mx.quantize`` on a CPU and of torch's casts. OCP asks for even everywhere: e2m1 differs, but
only in weights that lie half-way exactly."""
