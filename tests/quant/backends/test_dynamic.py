"""Activations quantized at run time on every backend: per tensor and per token, symmetric and not, and in attention."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quant.graph import QuantizedModel, simulate
from quant.methods import method, quantize
from quant.scheme import DYNAMIC_WORDS
from quant.tracing import capture

BACKENDS = ("torch", "onnxruntime", "mlx", "openvino")
WITH_KERNELS = ("torch", "onnxruntime")
ROUNDING = 2e-3
"""Values near the border of two codes may fall to either side."""


class Attending(nn.Module):
    """Masked and causal attention, a layer that reads what another one reads: float32 [n, t, 32] -> [n, t, 48]."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.output = nn.Linear(32, 48, bias=False)

    def forward(self, hidden, mask):
        def heads(projected):
            return projected.unflatten(-1, (4, 8)).transpose(1, 2)

        query, key, value = (heads(layer(hidden)) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.5)
        mixed = F.scaled_dot_product_attention(mixed, key, mixed, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    example = torch.randn(2, 6, 32), torch.zeros(2, 1, 6, 6)
    return capture(Attending().eval(), example, ({0: "batch", 1: "time"}, {0: "batch", 2: "time", 3: "time"}))


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(5, 9, 32, generator=generator) * torch.tensor([0.1, 1, 10]).repeat(3)[:, None] + 0.3
    return hidden, torch.zeros(5, 1, 9, 9).masked_fill(torch.rand(5, 1, 9, 9, generator=generator) < 0.3, -1e9)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request, graph, with_template):
    """A runtime with its template of the graph, made once."""
    return with_template(request.param, graph)


def compiled(backend, quantized, folder):
    where, template = backend
    where.load().compile(quantized, template, folder)
    return where.load().load(folder, 1, None)


def meaning(quantized, data):
    with torch.inference_mode():
        return simulate(quantized)(*data)[0].numpy()


def distance(outputs, expected):
    return np.linalg.norm(outputs - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("word", ["int8", *DYNAMIC_WORDS])
def test_every_backend_computes_what_the_word_says(backend, graph, data, tmp_path, word):
    where, _ = backend
    granularity = where.constant("DYNAMIC_GRANULARITY", "token")
    quantized = quantize(graph, "dynamic", word, dynamic_granularity=granularity)
    executable = compiled(backend, quantized, tmp_path)
    expected = meaning(quantized, data)
    assert distance(executable(*(part.numpy() for part in data))[0], expected) < ROUNDING
    rounded = distance(expected, meaning(QuantizedModel(graph, quantized.scheme, quantized.weights), data))
    assert rounded > 2 * ROUNDING
    if where.name in WITH_KERNELS:
        assert executable.evidence == "measured"


def test_words_are_cases_where_there_are_kernels(backend):
    where, _ = backend
    executed = set(where.constant("EXECUTES")["dynamic"])
    assert (set(DYNAMIC_WORDS) <= executed) == (where.name in WITH_KERNELS)
    assert set(DYNAMIC_WORDS) <= set(method("dynamic").bits)


@pytest.mark.parametrize("granularity", ["token", "tensor"])
def test_both_products_of_attention_are_quantized(backend, graph, data, tmp_path, granularity):
    where, _ = backend
    quantized = quantize(graph, "dynamic_attention", "int8", dynamic_granularity=granularity)
    if granularity == "token" and where.name in ("onnxruntime", "openvino"):
        with pytest.raises(ValueError, match=r"quantizes the attention 'scaled_dot_product_attention_0' .* per tensor"):
            compiled(backend, quantized, tmp_path)
        return
    executable = compiled(backend, quantized, tmp_path)
    expected = meaning(quantized, data)
    assert distance(executable(*(part.numpy() for part in data))[0], expected) < ROUNDING
    without = quantize(graph, "dynamic", "int8", dynamic_granularity=granularity)
    assert distance(expected, meaning(without, data)) > 2 * ROUNDING
    share = "operators_native" if where.name in WITH_KERNELS else "operators_simulated"
    assert where.name == "openvino" or executable.coverage()[share] == pytest.approx(1)


def test_attention_in_groups_stays_float(graph):
    in_groups = quantize(graph, "dynamic_attention", "int8", dynamic_granularity="group")
    assert {edge[1].rpartition("_")[0] for edge in in_groups.activations} == {"linear"}
    assert {edge[2] for edge in quantize(graph, "dynamic_attention", "int8").activations} == {0, 1, 2, "p"}
