"""LSTMs and attention on torch's int8 products, whose factors are all quantized at run time.

There is one kernel, ``torch._int_mm``, for two matrices: an LSTM calls it for all steps of its input together and once
for the hidden state of every step, attention twice for every head of every sample.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from quant.attention import probabilities
from quant.backends._torch_kernels import RunTimeCodes

Linear = Callable[[RunTimeCodes], Tensor]
Rounding = Callable[[Tensor], RunTimeCodes]


def lstm(directions: Sequence[tuple[Linear, Linear]], batch_first: bool, on_hidden: Rounding) -> Callable:
    """Return (codes of x, (hidden, cell)) -> what ``aten.lstm.input`` of one layer does.

    ``directions`` has for each its products with the input, biases added, and with the hidden state; gates are in the
    order input, forget, cell, output.
    """

    def run(data: RunTimeCodes, states: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        found = []
        for direction, (of_data, of_hidden) in enumerate(directions):
            given = of_data(data)
            steps = (given.transpose(0, 1) if batch_first else given).unbind(0)
            state = states[0][direction], states[1][direction]
            found.append(_steps(steps[::-1] if direction else steps, state, of_hidden))
            if direction:
                found[-1][0].reverse()
        outputs, hidden, cells = zip(*found, strict=True)
        joined = torch.cat([torch.stack(each, 1 if batch_first else 0) for each in outputs], -1)
        return joined, torch.stack(hidden), torch.stack(cells)

    def _steps(
        steps: Sequence[Tensor], state: tuple[Tensor, Tensor], of_hidden: Linear
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        (hidden, cell), outputs = state, []
        for given in steps:
            enter, keep, candidate, leave = of_hidden(on_hidden(hidden)).add_(given).chunk(4, -1)
            cell = keep.sigmoid_().mul(cell).addcmul_(enter.sigmoid_(), candidate.tanh_())
            hidden = leave.sigmoid_() * cell.tanh()
            outputs.append(hidden)
        return outputs, hidden, cell

    return run


def attention(on_probabilities: Rounding) -> Callable:
    """Return codes of query, key and value -> what ``aten.scaled_dot_product_attention`` does, without dropout."""

    def run(
        query: RunTimeCodes, key: RunTimeCodes, value: RunTimeCodes, mask: Tensor | None = None, dropout: float = 0.0,
        is_causal: bool = False, *, scale: float | None = None,
    ) -> Tensor:  # fmt: skip
        scores = product(query, _transposed(key)).mul_(scale or 1 / math.sqrt(query.codes.shape[-1]))
        return product(on_probabilities(probabilities(scores, mask, is_causal)), value)

    return run


def product(left: RunTimeCodes, right: RunTimeCodes) -> Tensor:
    """Return float32 [..., m, n]: the product of [..., m, k] and [..., k, n], whose first axes are the same."""
    *outer, rows, inner = left.codes.shape
    columns = right.codes.shape[-1]
    pairs = zip(left.codes.reshape(-1, rows, inner), right.codes.reshape(-1, inner, columns), strict=True)
    sums = torch.stack([torch._int_mm(*pair) for pair in pairs]).view(*outer, rows, columns).float()
    if left.shift is not None:
        sums += left.shift * right.codes.sum(-2, keepdim=True, dtype=torch.float32)
    if right.shift is not None:
        of_rows = left.codes.sum(-1, keepdim=True, dtype=torch.float32)
        sums += right.shift * (of_rows if left.shift is None else of_rows + inner * left.shift)
    return sums.mul_(left.scale).mul_(right.scale)


def _transposed(values: RunTimeCodes) -> RunTimeCodes:
    """Return the codes with their last two axes swapped, and what belongs to rows now belonging to columns."""
    return RunTimeCodes(*(part.transpose(-2, -1) if part is not None and part.ndim else part for part in values))
