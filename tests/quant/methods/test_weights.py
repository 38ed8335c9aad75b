"""What all weight-only methods promise, and what each of mse and hqq does beyond."""

import numpy as np
import pytest
import torch
from torch import nn

import quant
from quant.grids import fit_grids
from quant.methods import hqq, methods, mse
from quant.scheme import parse
from quant.tensor import quantize, quantize_with, scale_and_zero_point

WEIGHT_METHODS = ("mse", "hqq", "gptq", "adaround")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr("quant.methods.adaround.STEPS", 20)


def images(count=8):
    return [(torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(2)),)]


@pytest.mark.parametrize("method", WEIGHT_METHODS)
@pytest.mark.parametrize("bits", ["int8", "int4", "int2"])
def test_every_kind_of_layer_is_quantized_and_no_worse_than_by_rounding(residual_graph, method, bits):
    quantized = quant.quantize(residual_graph, method, bits, images())
    rounded = quant.quantize(residual_graph, "rtn", bits)
    assert set(quantized.weights) == set(rounded.weights)
    x = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    expected = residual_graph.module()(x)[0]
    error, by_rounding = ((quant.simulate(model)(x)[0] - expected).norm() for model in (quantized, rounded))
    # The others fit weights, not outputs: on a net this small that may turn out either way.
    assert error <= by_rounding or method in ("mse", "hqq")


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_codes_are_in_range_and_scales_exact_in_storage(tied_graph, method):
    quantized = quant.quantize(tied_graph, method, "int3_g7", [(torch.randint(0, 40, (4, 7)),)])
    for weight in quantized.weights.values():
        assert weight.codes.dtype == torch.uint8
        assert weight.codes.max() <= 7
        assert torch.equal(weight.scale.half().float(), weight.scale)
        assert weight.scale.shape == weight.zero_point.shape == (weight.codes.shape[0], 4)  # 24 columns, groups of 7


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_the_same_inputs_give_the_same_codes_whatever_the_number_of_threads(residual_graph, method):
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(quant.quantize(residual_graph, method, "int4", images()))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for name, weight in found[0].weights.items():
        assert torch.equal(weight.codes, found[1].weights[name].codes)
        assert torch.equal(weight.scale, found[1].weights[name].scale)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
@pytest.mark.parametrize("value", [0.0, 0.3, -0.3])
def test_equal_weights_and_dead_channels_are_kept(method, value):
    module = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)).eval()
    nn.init.constant_(module[0].weight, value)
    module[1].weight.data[1] = 0
    graph = quant.capture(module, (torch.randn(2, 6),))
    weights = quant.quantize(graph, method, "int4", [(torch.randn(16, 6),)]).weights
    assert torch.isfinite(weights["0.weight"].dequantize()).all()
    torch.testing.assert_close(weights["1.weight"].dequantize()[1], torch.zeros(4), atol=0.02, rtol=0)
    if method in ("mse", "hqq"):
        torch.testing.assert_close(weights["0.weight"].dequantize(), module[0].weight.detach(), atol=0.01, rtol=0)


@pytest.mark.parametrize("method", [name for name in WEIGHT_METHODS if methods()[name].calibrates])
def test_ugly_calibration_is_defined_or_named(residual_graph, method):
    for batch in (torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8), torch.randn(1, 3, 8, 8)):
        quantized = quant.quantize(residual_graph, method, "int4", [(batch,)])
        assert torch.isfinite(quant.simulate(quantized)(torch.randn(2, 3, 8, 8))[0]).all()
    for bad in (float("nan"), float("inf")):
        broken = torch.randn(2, 3, 8, 8)
        broken[0, 0, 0, 0] = bad
        with pytest.raises(ValueError, match=r"NaN or infinity at the input of 'stem\.0\.weight'"):
            quant.quantize(residual_graph, method, "int4", [(broken,)])
    with pytest.raises(ValueError, match="needs calibration data"):
        quant.quantize(residual_graph, method, "int4", [])


def best_squared_error(values, format):
    """The smallest squared error of one block over a fine grid of scales and all zero points."""
    low, high = min(values.min().item(), 0), max(values.max().item(), 0)
    found = float("inf")
    for share in torch.linspace(0.2, 1.0, 400).tolist():
        scale = torch.tensor([[share * (high - low) / format.highest]])
        for zero in range(format.highest + 1):
            tried = quantize_with(values, scale, torch.tensor([[zero]], dtype=torch.uint8), format, values.shape)
            found = min(found, (tried.dequantize() - values).double().square().sum().item())
    return found


@pytest.mark.parametrize("bits", ["int4", "int3", "int2"])
def test_mse_is_near_the_best_of_all_grids(bits):
    torch.manual_seed(0)
    format, total, best = parse(bits).linear, 0.0, 0.0
    for _ in range(8):
        values = torch.randn(1, 32)
        chosen = quantize_with(values, *mse.search(values, format, (1, 32)), format, (1, 32))
        total += (chosen.dequantize() - values).double().square().sum().item()
        best += best_squared_error(values, format)
    assert best <= total * 1.001
    assert total <= 1.2 * best


@pytest.mark.parametrize("bits", ["int4", "int3", "int2"])
def test_mse_is_no_worse_in_any_block_than_any_narrower_range(bits):
    torch.manual_seed(1)
    weight, format = torch.distributions.StudentT(3.0).sample((64, 32)), parse(bits).linear
    low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)

    def error(scale, zero_point):
        found = quantize_with(weight, scale, zero_point, format, (1, 32)).dequantize()
        return (found - weight).square().sum(1)

    narrowest = {"int4": 0.55, "int3": 0.45, "int2": 0.3}[bits]
    ranges = (scale_and_zero_point(low * share, high * share, format) for share in np.linspace(1, narrowest, 10))
    least = torch.stack([error(*found) for found in ranges]).amin(0)
    assert (error(*mse.search(weight, format, (1, 32))) <= least * 1.0001).all()


def test_mse_never_has_a_larger_error_than_rounding():
    torch.manual_seed(1)
    weight, format = torch.randn(64, 64) * torch.rand(64, 1), parse("int3").linear
    chosen = quantize_with(weight, *mse.search(weight, format, (1, 32)), format, (1, 32))
    errors = [
        (tensor.dequantize() - weight).unflatten(1, (2, 32)).square().sum(-1)
        for tensor in (chosen, quantize(weight, format, (1, 32)))
    ]
    assert (errors[0] <= errors[1] + 1e-6).all()
    assert errors[0].sum() < 0.97 * errors[1].sum()


def test_mse_protects_what_is_important():
    torch.manual_seed(2)
    weight, format = torch.randn(32, 32), parse("int2").linear
    importance = torch.ones(32)
    importance[:4] = 100.0
    plain, weighted = (
        quantize_with(weight, *mse.search(weight, format, (1, 32), chosen), format, (1, 32)).dequantize()
        for chosen in (None, importance)
    )
    assert (weighted - weight)[:, :4].square().sum() < 0.8 * (plain - weight)[:, :4].square().sum()


def test_hqq_lowers_its_own_objective_in_every_block():
    torch.manual_seed(3)
    weight = torch.distributions.StudentT(3.0).sample((64, 64))
    format = parse("int3").linear
    chosen = quantize_with(weight, *fit_grids(weight, format, (1, 32), hqq.fit), format, (1, 32))
    errors = [
        (tensor.dequantize() - weight).unflatten(1, (2, 32)).abs().pow(hqq.POWER).sum(-1)
        for tensor in (chosen, quantize(weight, format, (1, 32)))
    ]
    assert (errors[0] <= errors[1] * 1.0001).all()
    assert errors[0].sum() < 0.97 * errors[1].sum()
