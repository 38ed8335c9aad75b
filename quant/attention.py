"""Attention step by step, so that its probabilities can be quantized: Vaswani et al., 2017 (arXiv:1706.03762).

Called and computed as ``aten.scaled_dot_product_attention``, in evaluation.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """An attention whose probabilities pass ``on_probabilities`` before they weigh the values."""

    def __init__(self, on_probabilities: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.on_probabilities = on_probabilities

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        if enable_gqa:
            key, value = (part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value))
        scores = query @ key.transpose(-2, -1) * (scale or 1 / math.sqrt(query.shape[-1]))
        mixed = self.on_probabilities(probabilities(scores, attn_mask, is_causal)) @ value
        # Torch's own writes the heads of one place side by side, and graphs view what it writes as it lies.
        return mixed if mixed.ndim < 4 else mixed.transpose(-3, -2).contiguous().transpose(-3, -2)


def probabilities(scores: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Return the softmax of scores [..., queries, keys]; ``mask`` is added, or of bool says which keys count."""
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)
