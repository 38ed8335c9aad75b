"""A linear layer of 4096 by 4096 behind a norm, the size of one in a language model of seven billion parameters.

Its weights are random, with the heavy tails of trained ones; its inputs are correlated, and a few of their channels
carry most of the energy, as in Dettmers et al., "LLM.int8()", 2022 (arXiv:2208.07339).
"""

import numpy as np
import torch
from torch import nn

from fixtures.model import DataOptions, Model, Samples

FAMILY = "linear"
PACKAGES = {}
CORE = False
BITS = ("int4_g128",)

WIDTH = 4096
SAMPLES = 16
TOKENS = 64
_DIRECTIONS = 256
_TAIL = 5


def load(options: DataOptions) -> Model:
    return Model(
        name="linear_4096",
        family=FAMILY,
        build=build,
        input_names=("hidden",),
        dynamic_axes=({0: "batch"},),
        calibration=lambda: samples(SAMPLES),
        evaluation=samples,
        evaluation_samples=SAMPLES,
        metric=None,
        no_metric_reason="a single layer has no task",
    )


def build() -> nn.Module:
    """The norm, whose gains differ by channel, and the layer, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    norm, linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
    gains = torch.randn(WIDTH, generator=generator).exp()
    # Student's t, a normal variable over the root of a mean of squares.
    spread = torch.randn(_TAIL, WIDTH, WIDTH, generator=generator).square_().mean(0).sqrt_()
    weight = torch.randn(WIDTH, WIDTH, generator=generator).div_(spread).mul_(0.02)
    with torch.no_grad():
        norm.weight.copy_(gains)
        linear.weight.copy_(weight)
        linear.bias.zero_()
    return nn.Sequential(norm, linear).eval()


def samples(count: int) -> Samples:
    """The first ``count`` sequences, float32 [count, TOKENS, WIDTH]."""
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((_DIRECTIONS, WIDTH), dtype=np.float32)
    sequences = [
        generator.standard_normal((TOKENS, _DIRECTIONS), dtype=np.float32) @ mixing / _DIRECTIONS**0.5
        + generator.standard_normal((TOKENS, WIDTH), dtype=np.float32)
        for _ in range(count)
    ]
    return Samples((np.stack(sequences),), None, np.arange(count))
