"""A convolutional net stays channels-last between its borders, and every operator on the way means the same."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant

mlx = pytest.importorskip("quant.backends.mlx")


class Block(nn.Module):
    """An inverted residual between two convolutions, then a classifier."""

    def __init__(self, head):
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.Conv2d(8, 16, 1)
        self.norm, self.deep = nn.BatchNorm2d(8), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.narrow, self.head, self.classify = nn.Conv2d(16, 8, 1), head, nn.LazyLinear(5)

    def forward(self, x):
        x = F.relu6(self.norm(self.stem(x)))
        x = x + self.narrow(F.silu(self.deep(F.hardtanh(self.wide(x), 0, 6))))
        return self.classify(self.head(F.max_pool2d(x, 2)))


class OnFeatures(nn.Module):
    """Expressions on the channels-last output of a convolution."""

    def __init__(self, *functions):
        super().__init__()
        self.convolution, self.functions = nn.Conv2d(3, 4, 3), functions

    def forward(self, x):
        features = self.convolution(x)
        return tuple(function(features) for function in self.functions)


def conversions(module, folder):
    """Return how often the compiled graph changes to channels-last and back."""
    graph = quant.capture(module.eval(), (torch.randn(2, 3, 12, 10),))
    mlx.template(graph, folder, "float32")
    operators = [operator for _, operator, _, _ in json.loads((folder / "graph.json").read_text())["nodes"]]
    return operators.count("mlx.channels_last"), operators.count("mlx.channels_first")


def assert_like_torch(module, folder):
    image = torch.randn(3, 3, 12, 10)
    executable = quant.compile(
        quant.quantize(quant.capture(module.eval(), (image[:2],)), "float", "fp32"), "mlx", folder
    )
    with torch.inference_mode():
        expected = module(image)
    for position, (ours, theirs) in enumerate(zip(executable(image.numpy()), expected, strict=True)):
        assert ours.shape == tuple(theirs.shape), f"output {position}"
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-5, err_msg=f"output {position}")


def built(head):
    block = Block(head)
    block(torch.randn(2, 3, 12, 10))
    return block


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def test_a_net_that_averages_transposes_only_its_input(tmp_path):
    assert conversions(built(Mean()), tmp_path) == (1, 0)


def test_a_net_that_flattens_transposes_at_both_borders(tmp_path):
    assert conversions(built(nn.Flatten()), tmp_path) == (1, 1)


def test_a_model_without_convolutions_has_no_conversion(tmp_path):
    module = nn.Sequential(nn.Linear(10, 4), nn.LayerNorm(4), nn.Softmax(1))
    assert conversions(module, tmp_path) == (0, 0)


def test_reductions_of_channels_last_values(tmp_path):
    functions = (
        lambda x: x.mean((2, 3)),
        lambda x: x.mean((-1, -2), keepdim=True),
        lambda x: x.sum(1),
        lambda x: x.sum(1, keepdim=True) + x,
        lambda x: x.amax(2),
        lambda x: F.conv1d(x.amin(3), torch.ones(2, 4, 1)),
        lambda x: x.mean(0),
        lambda x: x.sum((0, 2, 3), keepdim=True),
        lambda x: x.mean(),
        lambda x: torch.linalg.vector_norm(x, 2, 1, True),
        lambda x: x.max(1)[0],
    )
    assert_like_torch(OnFeatures(*functions), tmp_path)


def test_operands_of_another_layout(tmp_path):
    per_channel, image = torch.randn(4, 1, 1), torch.randn(10, 8)

    functions = (
        lambda x: x * per_channel + image,
        lambda x: torch.where(x > 0, x, image) - x.mean((2, 3))[:, :, None, None],
        lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
        lambda x: x[None] + torch.ones(2, 1, 1, 1, 1),
        lambda x: x + torch.arange(8) + x.shape[2],
        lambda x: x @ image.mT,
        lambda x: x.flatten(2).mT + 1,
    )
    assert_like_torch(OnFeatures(*functions), tmp_path)


def test_operators_along_an_axis(tmp_path):
    functions = (
        lambda x: torch.cat([x, x * 2], 1),
        lambda x: torch.cat([torch.ones_like(x), F.relu(x)], -1),
        lambda x: x.split(3, 1)[1] + 1,
        lambda x: x.chunk(2, 2)[0] * x[:, :, 5:],
        lambda x: x.split([1, 3], 1)[0] + x[:, -1:],
        lambda x: x.softmax(1) + x.log_softmax(-1),
        lambda x: F.pad(x, (1, 2, 0, 1)) + 1,
        lambda x: F.pad(x, (0, 1, 0, 0, 2, -1), value=3.0),
        lambda x: x.reshape(x.shape[0], x.shape[2], -1),
        lambda x: F.interpolate(x, scale_factor=2) + 1,
        lambda x: F.relu(x).permute(0, 2, 3, 1) + 1,
    )
    assert_like_torch(OnFeatures(*functions), tmp_path)
