"""What decoder language models are made of, on every backend: causal attention, RMS norms, rotations, a tied head."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.graph import simulate
from quant.methods import quantize
from quant.tracing import capture

BACKENDS = ("torch", "onnxruntime", "mlx", "coreml", "openvino")
VOCABULARY, WIDTH, HEADS, CONTEXT = 64, 64, 2, 16


class Decoder(nn.Module):
    """One block of the kind Llama has: ids int64 [n, t] -> logits float32 [n, t, 64]."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.projections = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(WIDTH, 2 * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.norms = nn.ParameterList(1 + 0.1 * torch.randn(WIDTH) for _ in range(3))
        angles = torch.arange(CONTEXT)[:, None] * 10 ** -torch.linspace(0, 2, WIDTH // HEADS // 2)
        self.register_buffer("cosine", angles.repeat(1, 2).cos(), persistent=False)
        self.register_buffer("sine", angles.repeat(1, 2).sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        hidden = self.embedding(ids)
        query, key, value, output = self.projections
        normed = self.normed(hidden, 0)
        heads = [p(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in (query, key, value)]
        turned = [self.turned(features, length) for features in heads[:2]]
        mixed = F.scaled_dot_product_attention(*turned, heads[2], is_causal=True)
        hidden = hidden + output(mixed.transpose(1, 2).flatten(2))
        normed = self.normed(hidden, 1)
        hidden = hidden + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return F.linear(self.normed(hidden, 2), self.embedding.weight)

    def normed(self, hidden: Tensor, which: int) -> Tensor:
        return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-5) * self.norms[which]

    def turned(self, features: Tensor, length: int) -> Tensor:
        first, second = features.chunk(2, dim=-1)
        return features * self.cosine[:length] + torch.cat([-second, first], -1) * self.sine[:length]


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return capture(Decoder().eval(), (torch.randint(0, VOCABULARY, (2, 6)),), ({0: "batch", 1: "time"},))


@pytest.fixture(scope="module")
def data():
    return torch.randint(0, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request, graph, with_template):
    """A runtime with its template of the graph, made once."""
    return with_template(request.param, graph)


def compiled(backend, quantized, folder):
    where, template = backend
    where.load().compile(quantized, template, folder)
    return where.open(folder, 1)


@pytest.mark.parametrize(
    ("method", "bits"), [("float", "fp32"), ("rtn", "int4"), ("gptq", "int8"), ("palette", "lut6")]
)
def test_every_backend_agrees_with_the_tables(backend, graph, data, tmp_path, method, bits):
    quantized = quantize(graph, method, bits, [(data,)])
    outputs = compiled(backend, quantized, tmp_path)(data.numpy())[0]
    with torch.inference_mode():
        expected = simulate(quantized)(data)[0].numpy()
    assert np.linalg.norm(outputs - expected) <= 1e-5 * np.linalg.norm(expected)


def test_a_token_does_not_see_those_after_it(backend, graph, data, tmp_path):
    executable = compiled(backend, quantize(graph, "rtn", "int4"), tmp_path)
    changed = data.clone()
    changed[:, 5:] = (changed[:, 5:] + 7) % VOCABULARY
    before, after = (executable(ids.numpy())[0] for ids in (data, changed))
    np.testing.assert_allclose(after[:, :5], before[:, :5], atol=1e-5)
    assert np.abs(after[:, 5:] - before[:, 5:]).max() > 0.1


def test_embedding_and_head_are_one_entry_stored_once(backend, graph, tmp_path):
    assert {edge[1].split("_")[0] for edge in graph.consumers("embedding.weight")} == {"embedding", "linear"}
    quantized = quantize(graph, "rtn", "int4")
    assert "embedding.weight" in quantized.weights
    executable = compiled(backend, quantized, tmp_path)
    coverage = executable.coverage()
    weighted = sum(graph.macs("forward", node) for node in graph.graphs["forward"].nodes if "linear" in node.operator)
    share = weighted / sum(graph.macs("forward", node) for node in graph.graphs["forward"].nodes)
    assert coverage["operators_native"] + coverage["operators_simulated"] == pytest.approx(share)


def test_rotations_depend_on_how_far_tokens_are_apart(graph):
    """The reference itself: a shift of all positions leaves the products of queries and keys as they are."""
    decoder = Decoder()
    features = torch.randn(2, 1, WIDTH // HEADS)
    turned = decoder.turned(features.expand(2, CONTEXT, -1), CONTEXT)
    products = turned[0] @ turned[1].T
    for distance in range(1, CONTEXT):
        torch.testing.assert_close(
            products.diagonal(distance), products[0, distance].expand(CONTEXT - distance), atol=1e-4, rtol=1e-4
        )
