import pytest
import torch
from torch import nn

import quant
from quant.channels import linear_groups, sample_inputs
from quant.methods.awq import _Error, candidates
from quant.methods.mse import search
from quant.scheme import parse
from quant.tensor import quantize, quantize_with

FORMAT = parse("int4").linear


@pytest.fixture(scope="module")
def layer():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48)).eval()


@pytest.fixture(scope="module")
def graph(layer):
    return quant.capture(layer, (torch.randn(2, 64),))


@pytest.fixture(scope="module")
def inputs():
    """Inputs [256, 64] with a mean, of which some channels are far larger than others."""
    values = torch.randn(256, 64, generator=torch.Generator().manual_seed(1)) + 0.5
    values[:, ::16] *= 20
    return values


def sample_of(graph, values):
    (group,) = linear_groups(graph, graph.quantizable())
    return sample_inputs(graph, [group], [(values,)])[group]


def error(graph, method, bits, values):
    expected = graph.module()(values)[0]
    found = quant.simulate(quant.quantize(graph, method, bits, [(values,)]))(values)[0]
    return float((found - expected).norm() / expected.norm())


def test_candidates_are_powers_of_the_mean_size(graph, inputs):
    scales = candidates(sample_of(graph, inputs))
    size = inputs.abs().mean(0)
    for step, scale in enumerate(scales, start=1):
        paper = size ** (step / 10)
        torch.testing.assert_close(scale * paper, (scale * paper)[0].expand(64))
        assert (scale.max() * scale.min()).item() == pytest.approx(1, rel=1e-4)


def test_the_error_is_that_of_the_products_where_channels_are_independent(layer, graph):
    weight, values = layer[0].weight.detach(), torch.diag(torch.rand(64) + 0.1)
    estimate = _Error(weight, sample_of(graph, values), FORMAT, (1, 32))
    for scale in (torch.ones(64), torch.rand(64) + 0.5):
        rounded = quantize(weight / scale, FORMAT, (1, 32)).dequantize()
        exact = ((values * scale) @ rounded.T - values @ weight.T).square().sum() / 64
        assert estimate(scale) == pytest.approx(float(exact), rel=1e-4)


@pytest.mark.parametrize("bits", ["int4", "int3", "int4_g64", "int4_channel"])
def test_large_inputs_are_protected(graph, inputs, bits):
    assert error(graph, "awq", bits, inputs) < 0.85 * min(error(graph, name, bits, inputs) for name in ("rtn", "mse"))


def test_even_inputs_are_not_scaled(graph):
    quantized = quant.quantize(graph, "awq", "int4", [(torch.ones(4, 64) * torch.tensor([[1.0], [-1], [1], [-1]]),)])
    assert not quantized.activations


def test_the_bias_takes_up_the_mean_error(graph, inputs):
    quantized = quant.quantize(graph, "awq", "int2", [(inputs,)])
    difference = quant.simulate(quantized)(inputs)[0] - graph.module()(inputs)[0]
    assert difference.std(0).min() > 0.05
    assert difference.mean(0).abs().max() < 1e-3


def test_a_transformer_gets_better_and_multiplies_only_where_it_must(transformer_graph, transformer_inputs):
    errors = [error(transformer_graph, name, "int4_g16", transformer_inputs) for name in ("awq", "mse", "rtn")]
    assert errors[0] < min(errors[1:])
    quantized = quant.quantize(transformer_graph, "awq", "int4_g16", [(transformer_inputs,)])
    scaled = {quantized.graph.node(edge).arguments[1].name for edge in quantized.activations}
    assert "late_up.weight" in scaled
    assert not scaled & {"up.weight", "attention.query.weight", "attention.output.weight"}
    assert "norms.1.weight" in quantized.floats


def test_what_it_cannot_scale_gets_scales_of_least_error(residual_graph, tied_graph):
    image = torch.randn(4, 3, 8, 8)
    for graph, batch, name in (
        (residual_graph, image, "depthwise.weight"),
        (tied_graph, torch.randint(0, 40, (4, 7)), "embedding.weight"),
    ):
        found = quant.quantize(graph, "awq", "int4", [(batch,)]).weights[name]
        weight = graph.parameters[name]
        expected = quantize_with(weight, *search(weight, found.format, found.block), found.format, found.block)
        assert torch.equal(found.codes, expected.codes)
