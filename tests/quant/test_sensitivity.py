import pytest
import torch
from torch import nn

import quant
from quant.sensitivity import most_sensitive, output_errors


class Parallel(nn.Module):
    """Layers of which one reads an input with an outlier, and one is far larger."""

    def __init__(self):
        super().__init__()
        self.hurt, self.plain, self.large = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 64)

    def forward(self, values, calm):
        return self.hurt(values) + self.plain(calm) + self.large(calm).sum(-1, keepdim=True)


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    values, calm = torch.randn(16, 8, generator=generator), torch.randn(16, 8, generator=generator)
    values[::4, 0] = 50
    return values, calm


@pytest.fixture(scope="module")
def quantized(batch):
    torch.manual_seed(0)
    graph = quant.capture(Parallel().eval(), tuple(array[:2] for array in batch))
    return quant.quantize(graph, "static_plain", "int8", [batch])


def test_the_layer_with_the_outlier_costs_the_output_most(quantized, batch):
    errors = output_errors(quantized, [batch])
    assert set(errors) == set(quantized.weights)
    assert max(errors, key=errors.get) == "hurt.weight"


def test_an_error_is_that_of_one_layer_quantized_alone(quantized, batch):
    few = [array[:8] for array in batch]
    (edge,) = (edge for edge in quantized.activations if quantized.graph.node(edge).arguments[1].name == "plain.weight")
    alone = quant.QuantizedModel(
        quantized.graph,
        quantized.scheme,
        {"plain.weight": quantized.weights["plain.weight"]},
        {},
        {edge: quantized.activations[edge]},
    )
    expected = quantized.graph.module()(*few)[0].double()
    difference = quant.simulate(alone)(*few)[0].double() - expected
    error = output_errors(quantized, [batch])["plain.weight"]
    assert error == pytest.approx(float(difference.square().sum() / expected.square().sum()), rel=1e-4)


def test_the_share_of_the_work_bounds_what_stays_float(quantized, batch):
    assert most_sensitive(quantized, [batch], 0.0) == []
    # 32 of the 32 + 32 + 512 multiply-accumulates.
    assert most_sensitive(quantized, [batch], 0.06) == ["hurt.weight"]
    assert set(most_sensitive(quantized, [batch], 1.0)) == set(quantized.weights)
