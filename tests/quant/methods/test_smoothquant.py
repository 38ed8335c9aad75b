import pytest
import torch
from torch import nn

import quant
from quant.channels import linear_groups, sample_inputs
from quant.methods.smoothquant import _Error, quantize, smoothing
from quant.scheme import parse
from quant.tensor import quantize as quantize_tensor

SCHEME = parse("int8", "static")


def captured(module, values):
    return quant.capture(module.eval(), (values[:2],))


def linear(inputs, outputs=24):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs)


def sample_of(graph, values):
    groups = linear_groups(graph, graph.quantizable())
    return sample_inputs(graph, groups, [(values,)])[groups[0]]


def output_error(quantized, values):
    expected = quantized.graph.module()(values)[0]
    return float((quant.simulate(quantized)(values)[0] - expected).norm() / expected.norm())


def outliers(rows=64, channels=16):
    values = torch.randn(rows, channels, generator=torch.Generator().manual_seed(1))
    values[:, 3] *= 60
    return values


def test_smoothing_is_the_papers_without_a_floor():
    module, values = linear(16), outliers()
    sample = sample_of(captured(module, values), values)
    scale = smoothing(module.weight.detach(), sample, 0.7, 0.0)
    paper = values.abs().amax(0) ** 0.7 / module.weight.detach().abs().amax(0) ** 0.3
    torch.testing.assert_close(scale * paper, (scale * paper)[0].expand(16))
    assert scale.log().mean().item() == pytest.approx(0, abs=1e-5)


def test_a_floor_scales_large_channels_alone():
    module, values = linear(16), outliers()
    sample = sample_of(captured(module, values), values)
    scale = smoothing(module.weight.detach(), sample, 1.0, 0.25)
    others = torch.arange(16) != 3
    torch.testing.assert_close(scale[others], scale[0].expand(15))
    assert scale[0] / scale[3] == pytest.approx(4)


def test_the_error_that_is_searched_is_the_error_of_the_products():
    module, values = linear(16, 200), outliers(400)
    sample = sample_of(captured(module, values), values)
    weight = module.weight.detach()
    estimate = _Error(weight, sample, SCHEME.linear, SCHEME.activations, "static")
    for strength in (0.3, 0.6, 0.9):
        scale = smoothing(weight, sample, strength, 0.0)
        rounded = quantize_tensor(weight / scale, SCHEME.linear, (1, 16)).dequantize()
        low, high = (values * scale).amin(), (values * scale).amax()
        step = (high - low) / 255
        zero = (-low / step).round()
        inputs = ((values * scale / step).round() + zero).clamp(0, 255).sub(zero) * step
        exact = (inputs @ rounded.T - values @ weight.T).square().sum() / len(values)
        assert estimate(scale) == pytest.approx(float(exact), rel=0.1)


def test_an_outlier_channel_costs_less_than_half():
    values = outliers()
    graph = captured(nn.Sequential(linear(16)), values)
    plain = output_error(quant.quantize(graph, "static", "int8", [(values,)]), values)
    smooth = quant.quantize(graph, "smoothquant", "int8", [(values,)])
    assert output_error(smooth, values) < plain / 2
    (quantizer,) = smooth.activations.values()
    assert quantizer.input_scale[3] < quantizer.input_scale[torch.arange(16) != 3].min() / 10


def test_inputs_that_are_even_are_not_scaled():
    values = torch.rand(64, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    quantized = quant.quantize(captured(nn.Sequential(linear(16)), values), "smoothquant", "int8", [(values,)])
    (quantizer,) = quantized.activations.values()
    assert quantizer.input_scale is None


@pytest.mark.parametrize("method", ["smoothquant", "smoothquant_dynamic"])
def test_a_transformer_gets_better_and_folds_what_it_can(transformer_graph, transformer_inputs, method):
    batches = [(transformer_inputs,)]
    smooth = quant.quantize(transformer_graph, method, "int8", batches)
    plain = quant.quantize(transformer_graph, "static" if method == "smoothquant" else "dynamic", "int8", batches)
    assert output_error(smooth, transformer_inputs) < 0.8 * output_error(plain, transformer_inputs)
    scaled = {
        smooth.graph.node(edge).arguments[1].name
        for edge, quantizer in smooth.activations.items()
        if quantizer.input_scale is not None
    }
    assert "late_up.weight" in scaled
    folded = {f"attention.{name}.weight" for name in ("query", "key", "value", "output")} | {"up.weight"}
    assert not scaled & (folded | {"late_attention.output.weight"})
    assert {"norms.0.weight", "norms.0.bias", "norms.1.weight"} <= set(smooth.floats)


def test_folded_scales_leave_the_norm_and_the_layer_in_agreement(transformer_graph, transformer_inputs):
    quantized = quant.quantize(transformer_graph, "smoothquant", "int8", [(transformer_inputs,)])
    ratio = quantized.floats["norms.1.weight"] / transformer_graph.parameters["norms.1.weight"]
    undone = quantized.weights["up.weight"].dequantize() * ratio
    original = transformer_graph.parameters["up.weight"]
    assert ratio.max() / ratio.min() > 2
    assert (undone - original).norm() < 0.05 * original.norm()


def test_outlier_operators_stay_float_and_are_listed(transformer_graph, transformer_inputs):
    quantized = quantize(transformer_graph, SCHEME, [(transformer_inputs,)], left_float=0.15)
    left = quantized.recipe["left_float"]
    whole = quant.quantize(transformer_graph, "smoothquant", "int8", [(transformer_inputs,)])
    assert left
    assert set(left) == set(whole.weights) - set(quantized.weights) == set(quantized.left_float())
    assert not {quantized.graph.node(edge).arguments[1].name for edge in quantized.activations} & set(left)
    assert output_error(quantized, transformer_inputs) < output_error(whole, transformer_inputs)


def test_an_operator_left_float_computes_what_it_did(transformer_graph, transformer_inputs, monkeypatch):
    """All of them left float: scales folded and unfolded must all cancel."""
    every = [name for name in transformer_graph.quantizable() if name.endswith("weight")]
    monkeypatch.setattr("quant.methods.smoothquant.most_sensitive", lambda *_: every)
    quantized = quant.quantize(transformer_graph, "smoothquant_outliers", "int8", [(transformer_inputs,)])
    assert not quantized.weights
    assert not quantized.activations
    assert output_error(quantized, transformer_inputs) < 1e-5


def test_convolutions_are_quantized_as_static_does(residual_graph):
    batches = [(torch.randn(8, 3, 8, 8),)]
    smooth = quant.quantize(residual_graph, "smoothquant", "int8", batches)
    plain = quant.quantize(residual_graph, "static_plain", "int8", batches)
    assert smooth.activations.keys() == plain.activations.keys()
    assert torch.equal(smooth.weights["branch.0.weight"].codes, plain.weights["branch.0.weight"].codes)
    assert smooth.activations["forward", "add_0", 0].same_as(plain.activations["forward", "add_0", 0])


def test_convolutions_stay_float_where_activations_are_quantized_at_run_time(residual_graph):
    quantized = quant.quantize(residual_graph, "smoothquant_dynamic", "int8", [(torch.randn(8, 3, 8, 8),)])
    assert set(quantized.weights) == {"hidden.weight", "head.weight"}


def test_the_same_inputs_give_the_same_codes(transformer_graph, transformer_inputs):
    first, second = (quant.quantize(transformer_graph, "smoothquant", "int8", [(transformer_inputs,)]) for _ in "ab")
    assert all(torch.equal(first.weights[name].codes, second.weights[name].codes) for name in first.weights)


@pytest.mark.parametrize(("word", "bits"), [("int8_sym", 8), ("int8_reduced", 7)])
def test_it_makes_every_word_that_it_offers(transformer_graph, transformer_inputs, word, bits):
    quantized = quant.quantize(transformer_graph, "smoothquant", word, [(transformer_inputs,)])
    assert {weight.format.bits for weight in quantized.weights.values()} == {bits}
    symmetric = "symmetric" if word == "int8_sym" else "asymmetric"
    assert {str(entry.format) for entry in quantized.activations.values()} == {f"int8 {symmetric} per tensor"}
