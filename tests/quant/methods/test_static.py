import pytest
import torch
from torch import nn

import quant
from quant.methods import methods
from quant.methods.static import on_accumulator_grid

VARIANTS = [name for name in methods() if name.split("_")[0] == "static"]


class Uneven(nn.Module):
    """A residual stage whose linear bottleneck has channels of very different size, with a ReLU6 inside."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand, self.depthwise = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 6)
        with torch.no_grad():
            uneven = torch.logspace(-2, 1, 8)
            for layer in (self.stem, self.project):
                layer.weight.mul_(uneven.reshape(-1, 1, 1, 1))
                layer.bias.mul_(uneven)
            for layer in (self.expand, self.head):
                layer.weight.div_(uneven.reshape(-1, *[1] * (layer.weight.ndim - 2)))

    def forward(self, image):
        features = self.stem(image)
        inside = nn.functional.relu6(self.depthwise(nn.functional.relu6(self.expand(features))))
        return self.head((features + self.project(inside)).mean((2, 3)))


@pytest.fixture(scope="module")
def uneven():
    torch.manual_seed(11)
    return quant.capture(Uneven().eval(), (torch.randn(2, 3, 8, 8),))


@pytest.fixture(scope="module")
def batches():
    torch.manual_seed(12)
    return [(torch.randn(8, 3, 8, 8),) for _ in range(3)]


def error(graph, method, batches):
    image = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(13))
    expected = graph.module()(image)[0]
    found = quant.simulate(quant.quantize(graph, method, "int8", batches))(image)[0]
    return ((found - expected).norm() / expected.norm()).item()


def test_each_step_is_worth_its_while_on_uneven_channels(uneven, batches):
    plain, equalized, fast, full = (
        error(uneven, method, batches) for method in ("static_plain", "static_equalized", "static_fast", "static")
    )
    assert equalized < plain / 4
    assert fast < plain / 4
    assert full < plain / 4


@pytest.mark.parametrize("method", VARIANTS)
def test_every_variant_is_close_to_float_and_says_its_settings(uneven, batches, method):
    assert error(uneven, method, batches) < (1.0 if method == "static_plain" else 0.5)
    recipe = quant.quantize(uneven, method, "int8", batches).recipe
    assert recipe["settings"] == methods()[method].settings


@pytest.mark.parametrize("method", VARIANTS)
def test_one_constant_sample_gives_finite_tables(uneven, method):
    image = torch.full((1, 3, 8, 8), 0.5)
    quantized = quant.quantize(uneven, method, "int8", [(image,)])
    assert torch.isfinite(quant.simulate(quantized)(image)[0]).all()


@pytest.mark.parametrize("method", VARIANTS)
def test_nan_is_named_by_every_variant(uneven, method):
    with pytest.raises(ValueError, match="calibration saw NaN or infinity at"):
        quant.quantize(uneven, method, "int8", [(torch.full((2, 3, 8, 8), float("nan")),)])


def test_corrected_biases_lie_on_the_grid_of_the_accumulator(uneven, batches):
    quantized = quant.quantize(uneven, "static", "int8", batches)
    for edge, quantizer in quantized.activations.items():
        node = uneven.node(edge)
        if "conv2d" not in node.name:
            continue
        grid = quantizer.scale.double() * quantized.weights[node.arguments[1].name].scale.double().flatten()
        steps = quantized.floats[node.arguments[2].name].double() / grid
        torch.testing.assert_close(steps, steps.round(), rtol=1e-6, atol=1e-3)


def test_a_bias_is_rounded_to_the_nearest_of_its_grid():
    generator = torch.Generator().manual_seed(0)
    bias, codes = torch.randn(16, generator=generator), torch.ones(16, 4, dtype=torch.int8)
    scale, activation = torch.rand(16, 1, generator=generator) + 0.5, torch.tensor(0.25)
    found = on_accumulator_grid(bias, scale, codes, activation)
    grid = (scale * activation).flatten()
    assert ((found - bias).abs() <= grid * 0.5001).all()
    torch.testing.assert_close(found / grid, (found / grid).round())


def test_the_float_graph_is_not_touched_and_floats_hold_what_changed(uneven, batches):
    before = {name: value.clone() for name, value in uneven.parameters.items()}
    quantized = quant.quantize(uneven, "static", "int8", batches)
    assert quantized.graph is uneven
    assert all(torch.equal(uneven.parameters[name], value) for name, value in before.items())
    assert not set(quantized.floats) & set(quantized.weights)


def test_the_same_data_gives_the_same_tables(uneven, batches):
    first, second = (quant.quantize(uneven, "static", "int8", batches) for _ in range(2))
    assert all(torch.equal(first.weights[name].codes, second.weights[name].codes) for name in first.weights)
    assert all(torch.equal(first.floats[name], second.floats[name]) for name in first.floats)


def test_static_gptq_adds_in_float_and_rounds_weights_with_the_data(uneven, batches):
    found = quant.quantize(uneven, "static_gptq", "int8", batches)
    plain = quant.quantize(uneven, "static_mse", "int8", batches)
    left = set(plain.activations) - set(found.activations)
    assert {uneven.node(edge).operator for edge in left} == {"aten.add.Tensor"}
    assert len(left) == 2
    assert set(found.activations) < set(plain.activations)
    name = "expand.weight"
    assert not torch.equal(found.weights[name].codes, plain.weights[name].codes)
    assert error(uneven, "static_gptq", batches) < error(uneven, "static_mse", batches)
