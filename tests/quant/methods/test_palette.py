"""k-means against brute force, and palettes against what they promise."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

import quant
from quant.methods import _k_means
from quant.methods._k_means import k_means
from quant.methods.palette import mean_squared_inputs, palettize
from quant.scheme import PALETTE_WORDS, parse

GENERATOR = torch.Generator().manual_seed(0)


def squared_error(values, table, importance=None):
    nearest = (values.double()[:, :, None] - table.double()[:, None]).square().amin(2)
    return (nearest if importance is None else nearest * importance).sum(1)


def brute_force(values, entries, importance):
    """The least weighted error of any cut of the sorted values into intervals."""
    order = np.argsort(values)
    values, importance = values[order], importance[order]

    def cost(start, stop):
        part, share = values[start:stop], importance[start:stop]
        return (share * (part - (part * share).sum() / share.sum()) ** 2).sum()

    cuts = combinations(range(1, len(values)), entries - 1)
    return min(sum(cost(i, j) for i, j in zip((0, *cut), (*cut, len(values)), strict=True)) for cut in cuts)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("entries", [2, 3, 4])
def test_few_values_get_the_best_table_there_is(entries, weighted):
    values = torch.randn(6, 11, generator=GENERATOR) ** 3
    importance = torch.rand(6, 11, generator=GENERATOR) + 0.01 if weighted else torch.ones(6, 11)
    table = k_means(values, entries, importance if weighted else None)
    found = squared_error(values, table, importance)
    for row in range(6):
        best = brute_force(values[row].double().numpy(), entries, importance[row].double().numpy())
        assert found[row] == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", ["normal", "uniform", "laplace", "outlier"])
@pytest.mark.parametrize("entries", [4, 16])
def test_many_values_come_near_the_best_table(monkeypatch, shape, entries, weighted):
    values = {
        "normal": torch.randn(1, 500, generator=GENERATOR),
        "uniform": torch.rand(1, 500, generator=GENERATOR),
        "laplace": torch.randn(1, 500, generator=GENERATOR) * torch.randn(1, 500, generator=GENERATOR).abs(),
        "outlier": torch.cat([torch.randn(1, 499, generator=GENERATOR), torch.tensor([[60.0]])], 1),
    }[shape]
    importance = torch.rand(1, 500, generator=GENERATOR) + 0.01 if weighted else None
    best = squared_error(values, k_means(values, entries, importance), importance)
    monkeypatch.setattr(_k_means, "_EXACT_UP_TO", 0)
    found = squared_error(values, k_means(values, entries, importance), importance)
    assert best * 0.99999 <= found <= 1.2 * best


@pytest.mark.parametrize(("entries", "best"), [(4, 0.1175), (16, 0.009497)])
def test_a_normal_distribution_gets_the_table_of_max(entries, best):
    """Max, "Quantizing for minimum distortion", 1960, table I."""
    values = torch.randn(1, 400_000, generator=GENERATOR)
    assert squared_error(values, k_means(values, entries)).item() / 400_000 == pytest.approx(best, rel=0.01)


def test_tables_of_many_rows_are_those_of_each_alone():
    values = torch.randn(3, 700, generator=GENERATOR)
    together = k_means(values, 8)
    for row in range(3):
        assert torch.equal(together[row], k_means(values[row : row + 1], 8)[0])


@pytest.mark.parametrize("count", [1, 3, 5, 600])
def test_no_more_values_than_entries_are_kept_exactly(count):
    values = torch.randn(1, min(count, 5), generator=GENERATOR).repeat(1, -(-count // 5))
    table = k_means(values, 8)
    assert torch.isfinite(table).all()
    assert squared_error(values, table).item() < 1e-12


@pytest.mark.parametrize("word", PALETTE_WORDS)
@pytest.mark.parametrize("rows", [None, 16])
def test_a_palette_is_its_nearest_entries(word, rows):
    weight = torch.randn(37, 24, generator=GENERATOR)
    tensor = palettize(weight, parse(word).linear, rows)
    assert tensor.codebook.shape == ((2**tensor.format.bits,) if rows is None else (3, 2**tensor.format.bits))
    assert torch.equal(tensor.codebook.half().float(), tensor.codebook)
    for first in range(0, 37, tensor.rows_per_table):
        part = weight[first : first + tensor.rows_per_table]
        table = tensor.codebook if rows is None else tensor.codebook[first // tensor.rows_per_table]
        nearest = (part[..., None] - table).abs().min(-1).values
        found = (part - tensor.dequantize()[first : first + tensor.rows_per_table]).abs()
        torch.testing.assert_close(found, nearest)
    assert tensor.nbits == weight.numel() * tensor.format.bits + tensor.codebook.numel() * 16


def test_more_entries_and_more_tables_are_closer():
    weight = torch.randn(64, 96, generator=GENERATOR) * torch.logspace(-1, 1, 64)[:, None]

    def error(word, rows=None):
        return (palettize(weight, parse(word).linear, rows).dequantize() - weight).norm()

    errors = [error(word) for word in ("lut2", "lut3", "lut4", "lut6", "lut8")]
    assert errors == sorted(errors, reverse=True)
    assert error("lut4", 16) < 0.9 * error("lut4")


def test_palettes_of_every_kind_of_weight(residual_graph, tied_graph):
    for graph in (residual_graph, tied_graph):
        for method in ("palette", "palette_grouped"):
            quantized = quant.quantize(graph, method, "lut8")
            assert set(quantized.weights) == set(graph.quantizable())
            example = graph.examples["forward"]
            expected = graph.module()(*example)[0]
            assert (quant.simulate(quantized)(*example)[0] - expected).norm() < 0.03 * expected.norm()


def test_palettes_are_the_same_every_time(residual_graph):
    image = torch.randn(4, 3, 8, 8, generator=GENERATOR)
    for method in ("palette", "palette_fisher"):
        first, second = (quant.quantize(residual_graph, method, "lut3", [(image,)]) for _ in range(2))
        for name in first.weights:
            assert torch.equal(first.weights[name].codes, second.weights[name].codes)
            assert torch.equal(first.weights[name].codebook, second.weights[name].codebook)


def test_mean_squared_inputs_are_those_of_every_product(residual_graph):
    """An element's share is the mean square of its inputs: with all others zero, that of the output of its operator."""
    image = torch.randn(4, 3, 8, 8, generator=GENERATOR)
    importance = mean_squared_inputs(residual_graph, [(image[:1],), (image[1:],)])
    assert set(importance) == set(residual_graph.quantizable())
    values = _values(residual_graph, image)
    for name in ("depthwise.weight", "up.weight", "hidden.weight", "stem.0.weight"):
        (_, node, _), _ = residual_graph.quantizable()[name][0]
        node = residual_graph.graphs["forward"].by_name[node]
        squares = values[node.arguments[0].name].square()
        channels = squares.mean(0) if squares.ndim == 2 else squares.mean((0, 2, 3))
        shape = residual_graph.parameters[name].shape
        # Each channel is the last axis of a linear weight, the second of a kernel's, or, with groups, the first.
        axis = {"hidden.weight": 1, "stem.0.weight": 1, "depthwise.weight": 0, "up.weight": 0}[name]
        expected = channels.reshape([-1 if i == axis else 1 for i in range(len(shape))]).expand(shape)
        found = importance[name].expand(shape)
        torch.testing.assert_close(found / found.mean(), (expected / expected.mean()).double(), rtol=1e-4, atol=2e-4)


def _values(graph, image):
    seen = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, node):
            seen[node.name] = super().run_node(node)
            return seen[node.name]

    Recorder(graph.module()).run(image)
    return seen


def test_fisher_weights_lower_the_error_of_the_output():
    torch.manual_seed(0)
    layer = nn.Linear(64, 48, bias=False)
    spread = torch.logspace(-1, 1, 64)
    with torch.no_grad():
        layer.weight /= spread  # as layers have it that follow a norm: small weights take large inputs
    inputs = torch.randn(256, 64) * spread
    graph = quant.capture(layer.eval(), (inputs[:2],))

    def error(method):
        return (quant.simulate(quant.quantize(graph, method, "lut3", [(inputs,)]))(inputs)[0] - layer(inputs)).norm()

    assert error("palette_fisher") < 0.8 * error("palette")


def test_a_channel_that_never_wakes_and_a_layer_of_zeros_have_a_result():
    torch.manual_seed(0)
    graph = quant.capture(nn.Linear(8, 40).eval(), (torch.randn(2, 8),))
    awake = torch.randn(1, 8)
    awake[:, 3] = 0
    for batch in (awake, torch.zeros(1, 8)):
        weight = quant.quantize(graph, "palette_fisher", "lut6", [(batch,)]).weights["weight"]
        assert (weight.dequantize() - graph.parameters["weight"]).abs().max() < 0.05


def test_bad_input_is_one_sentence(residual_graph):
    with pytest.raises(ValueError, match="need calibration data"):
        quant.quantize(residual_graph, "palette_fisher", "lut4")
    with pytest.raises(ValueError, match=r"NaN or infinity at '\w+'"):
        quant.quantize(residual_graph, "palette_fisher", "lut4", [(torch.full((1, 3, 8, 8), torch.inf),)])
    with pytest.raises(ValueError, match="int4 has no look-up tables"):
        quant.quantize(residual_graph, "palette", "int4")
    with pytest.raises(ValueError, match="use a palette"):
        quant.quantize(residual_graph, "rtn", "lut4")
    for value, sentence in ((torch.nan, "'head.weight' holds NaN"), (1e6, "'head.weight' does not fit half precision")):
        broken = {**residual_graph.parameters, "head.weight": torch.full((5, 16), value)}
        with pytest.raises(ValueError, match=sentence):
            quant.quantize(replace(residual_graph, parameters=broken), "palette", "lut4")


def test_equal_weights_are_one_entry():
    tensor = palettize(torch.full((20, 40), 0.25), parse("lut4").linear, 16)
    assert torch.all(tensor.dequantize() == 0.25)
