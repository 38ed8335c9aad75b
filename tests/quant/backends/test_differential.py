"""Random small nets on every backend, held to what their tables mean: layers, widths, groups and schemes are drawn.

A seed is a net; what one backend computes otherwise than the simulation is a defect of that backend, or of all others.
"""

import random
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.graph import simulate
from quant.methods import quantize
from quant.scheme import parse
from quant.tracing import capture

BACKENDS = ("torch", "onnxruntime", "mlx", "coreml")
SEEDS = range(5)
WORDS = {
    "rtn": ("int8", "int4", "int4_g7", "int3_g16", "int2_g5", "int6_channel", "int4_sym", "int5_tensor"),
    "palette": ("lut4", "lut3"),
    "static": ("int8",),
    "dynamic": ("int8",),
}
ACTIVATIONS = (torch.relu, F.gelu, F.silu, torch.tanh, F.hardswish, torch.sigmoid, F.leaky_relu)


class Mixture(nn.Module):
    """A stack of layers drawn by ``draw``, of one kind of input: [n, f], [n, c, h, w], [n, c, t] or tokens [n, t]."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.kind = draw.choice(("rows", "image", "signal", "tokens"))
        self.width = draw.choice((5, 7, 12, 24))
        self.layers, self.plan = nn.ModuleList(), []
        width = self._first(draw)
        for _ in range(draw.randint(1, 3)):
            width = self._add(draw, width)
        self.head = nn.Linear(width, draw.choice((3, 10)), bias=draw.random() < 0.7)

    def forward(self, x: Tensor) -> Tensor:
        for layer, (how, activation) in zip(self.layers, self.plan, strict=True):
            found = layer(x)
            found = found[0] if isinstance(found, tuple) else found
            x = x + activation(found) if how == "residual" else activation(found)
        if self.kind in ("image", "signal"):
            x = x.flatten(2).mean(-1)
        return self.head(x)

    def inputs(self, count: int) -> Tensor:
        shapes = {"rows": (self.width,), "image": (3, 9, 8), "signal": (3, 20)}
        if self.kind == "tokens":
            return torch.randint(0, 17, (count, 6))
        return torch.randn(count, *shapes[self.kind])

    def _first(self, draw: random.Random) -> int:
        width = draw.choice((6, 8, 13))
        if self.kind == "tokens":
            self._append(nn.Embedding(17, width), "plain", nn.Identity())
            return width
        if self.kind == "rows":
            return self.width
        convolution = nn.Conv2d if self.kind == "image" else nn.Conv1d
        layer = convolution(3, width, 3, stride=draw.choice((1, 2)), padding=draw.choice((0, 1)))
        self._append(layer, "plain", draw.choice(ACTIVATIONS))
        return width

    def _add(self, draw: random.Random, width: int) -> int:
        activation = draw.choice(ACTIVATIONS)
        if self.kind in ("image", "signal"):
            convolution = nn.Conv2d if self.kind == "image" else nn.Conv1d
            groups = draw.choice((1, width))
            self._append(
                convolution(width, width, 3, padding=1, groups=groups), draw.choice(("plain", "residual")), activation
            )
            return width
        if self.kind == "tokens" and draw.random() < 0.4:
            hidden = draw.choice((5, 8))
            both = draw.random() < 0.5
            self._append(nn.LSTM(width, hidden, batch_first=True, bidirectional=both), "plain", nn.Identity())
            return 2 * hidden if both else hidden
        if draw.random() < 0.3:
            self._append(nn.LayerNorm(width), "plain", nn.Identity())
        same = draw.random() < 0.5
        after = width if same else draw.choice((5, 9, 16, 33))
        self._append(nn.Linear(width, after, bias=draw.random() < 0.7), "residual" if same else "plain", activation)
        return after

    def _append(self, layer: nn.Module, how: str, activation: object) -> None:
        self.layers.append(layer)
        self.plan.append((how, activation))


@pytest.fixture(scope="module", params=SEEDS)
def net(request):
    """A net, its float graph, and inputs of another batch than it was captured on."""
    torch.manual_seed(request.param)
    module = Mixture(random.Random(request.param)).eval()
    return request.param, capture(module, (module.inputs(2),)), module.inputs(3)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request, net, with_template):
    """A backend with its template of the net."""
    return with_template(request.param, net[1])


@pytest.mark.parametrize("method", WORDS)
def test_a_backend_computes_what_the_tables_mean(backend, net, method, tmp_path):
    (where, template), (seed, graph, inputs) = backend, net
    draw = random.Random(zlib.crc32(f"{seed} {method}".encode()))
    for bits in draw.sample(WORDS[method], min(2, len(WORDS[method]))):
        granularity = where.constant("DYNAMIC_GRANULARITY", "token")
        family = method if method in ("static", "dynamic") else "weight_only"
        if parse(bits, family).name.partition("_")[0] not in where.constant("EXECUTES").get(family, ()):
            pytest.skip(where.constant("REFUSES").get(family, "not among its formats"))
        quantized = quantize(graph, method, bits, [(inputs,)] if family == "static" else (), granularity)
        folder = tmp_path / bits
        folder.mkdir()
        where.load().compile(quantized, template, folder)
        (found,) = where.load().load(folder, 1, None)(inputs.numpy())
        with torch.inference_mode():
            (meant,) = simulate(quantized)(inputs)
        # A value between two codes may go to either where activations are quantized.
        tolerance = 2e-5 if family == "weight_only" else 3e-2
        assert np.linalg.norm(found - meant.numpy()) <= tolerance * np.linalg.norm(meant), bits
