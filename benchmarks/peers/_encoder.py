"""MiniLM as a module of MLX, for quantizers that take no other: the same parameters, under the same names."""

from collections.abc import Mapping

from torch import Tensor

from quant.backends._mlx_blas import mx  # before mlx.nn: products then run on a tuned BLAS

import mlx.nn as nn  # isort: skip

MASKED = -1
"""What stands for a token that is no part of its text."""
_WIDTH, _HEADS, _EPSILON = 384, 12, 1e-12


class Encoder(nn.Module):
    """tokens int32 [n, t], ``MASKED`` where a text is over -> embeddings float32 [n, 384] of unit length.

    Its word, position and segment tables are no layers that can be quantized.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.layers = [Layer() for _ in {name.split(".")[1] for name in parameters if name.startswith("layers.")}]
        self.load_weights([(name, mx.array(value.numpy())) for name, value in parameters.items()])

    def __call__(self, tokens: mx.array) -> mx.array:
        kept = tokens != MASKED
        hidden = self.embeddings(tokens)
        for layer in self.layers:
            hidden = layer(hidden, kept[:, None, None, :])
        pooled = (hidden * kept[:, :, None]).sum(1)
        return pooled / mx.linalg.norm(pooled, axis=-1, keepdims=True)


class Embeddings(nn.Module):
    """Sum of the vectors of a token's word, its position and the first segment."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.position, self.segment = Table(30522), Table(512), Table(2)
        self.norm = nn.LayerNorm(_WIDTH, _EPSILON)

    def __call__(self, tokens: mx.array) -> mx.array:
        words = self.word.weight[mx.maximum(tokens, 0)]
        return self.norm(words + self.position.weight[: tokens.shape[1]] + self.segment.weight[0])

    def to_quantized(self, **settings: object) -> "Embeddings":
        """Stay as they are, where a quantizer insists on quantizing embeddings."""
        return self


class Table(nn.Module):
    """Vectors, ``weight`` float32 [n, 384]."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = mx.zeros((count, _WIDTH))


class Layer(nn.Module):
    """Transformer layer with the norms after the residual sums; ``mask`` bool [n, 1, 1, t] is True for tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(), FeedForward()
        self.attention_norm, self.feed_forward_norm = (nn.LayerNorm(_WIDTH, _EPSILON) for _ in range(2))

    def __call__(self, hidden: mx.array, mask: mx.array | None = None) -> mx.array:
        hidden = self.attention_norm(hidden + self.attention(hidden, mask))
        return self.feed_forward_norm(hidden + self.feed_forward(hidden))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(_WIDTH, _WIDTH) for _ in range(4))

    def __call__(self, hidden: mx.array, mask: mx.array | None) -> mx.array:
        projected = (project(hidden) for project in (self.query, self.key, self.value))
        heads = [value.reshape(*value.shape[:2], _HEADS, -1).swapaxes(1, 2) for value in projected]
        scale = heads[0].shape[-1] ** -0.5
        mixed = mx.fast.scaled_dot_product_attention(*heads, scale=scale, mask=mask)
        return self.output(mixed.swapaxes(1, 2).reshape(hidden.shape))


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(_WIDTH, 4 * _WIDTH), nn.Linear(4 * _WIDTH, _WIDTH)

    def __call__(self, hidden: mx.array) -> mx.array:
        return self.down(nn.gelu(self.up(hidden)))
