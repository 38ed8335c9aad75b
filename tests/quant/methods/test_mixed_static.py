from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import quant
from quant.latency import Latency, estimated, units
from quant.methods import method
from quant.methods.mixed_static import FORMATS, ranked
from quant.replaying import tables_sha256
from quant.scheme import parse

SCHEME = parse("int8", "static")


@pytest.fixture(scope="module")
def images():
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def transformer(transformer_graph, transformer_inputs):
    return ranked(transformer_graph, SCHEME, [(transformer_inputs,)])


@pytest.fixture(scope="module")
def residual(residual_graph, images):
    return ranked(residual_graph, SCHEME, [(images,)])


def latency_of(candidates, seed=0):
    """A latency model of random times, with conversions at every border."""
    generator = np.random.default_rng(seed)
    whole = candidates.smoothed.whole
    names = tuple(candidates.errors)
    edges = [(maker, name) for unit in units(whole) for name in unit.names for maker in unit.makers]
    narrow = generator.uniform(1, 2, len(names))
    seconds = np.stack([narrow, narrow * generator.uniform(1.5, 4, len(names))], 1)
    conversions = tuple((*edge, float(generator.uniform(0.2, 2))) for edge in edges)
    return Latency("runtime", {}, names, FORMATS, seconds, conversions, 3.0, whole.graph.weights_sha256)


def seconds_of(latency, wide):
    """What an assignment takes, counted anew."""
    total = latency.rest + sum(latency.seconds[row, int(name in wide)] for row, name in enumerate(latency.weights))
    return total + sum(cost for maker, reader, cost in latency.conversions if (maker in wide) != (reader in wide))


def assignments(candidates):
    for wide in product([False, True], repeat=len(candidates.errors)):
        yield {name for name, is_wide in zip(candidates.errors, wide, strict=True) if is_wide}


def lost(candidates, wide):
    return sum(error for name, error in candidates.errors.items() if name not in wide)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.15, 0.5])
def test_the_choice_is_that_of_brute_force_conversions_and_all(residual, seed, share):
    latency = latency_of(residual, seed)
    assert latency.conversions
    least, most = seconds_of(latency, set()), seconds_of(latency, set(residual.errors))
    bound = least + share * (most - least)
    within = [wide for wide in assignments(residual) if seconds_of(latency, wide) <= bound]
    best = min(lost(residual, wide) for wide in within)
    recipe = residual.chosen(latency, max_latency=bound).recipe
    wide = set(recipe["left_float"])
    assert recipe["predicted_latency"] == pytest.approx(seconds_of(latency, wide))
    assert seconds_of(latency, wide) <= bound * (1 + 1e-6)
    assert lost(residual, wide) == pytest.approx(best, rel=1e-5)
    assert recipe["predicted_error"] == pytest.approx(best**0.5, rel=1e-5)
    tolerated = lost(residual, set()) * share
    quickest = min(seconds_of(latency, wide) for wide in assignments(residual) if lost(residual, wide) <= tolerated)
    found = residual.chosen(latency, max_error=tolerated**0.5).recipe["left_float"]
    assert lost(residual, set(found)) <= tolerated * (1 + 1e-5)
    assert seconds_of(latency, set(found)) == pytest.approx(quickest, rel=1e-5)


def test_wide_operators_are_not_in_the_tables_and_compute_what_they_did(transformer, transformer_inputs):
    quantized = transformer.chosen()
    wide = quantized.recipe["left_float"]
    assert wide
    assert set(wide) == set(transformer.smoothed.whole.weights) - set(quantized.weights)
    narrow = transformer.smoothed.leaving()
    expected = quantized.graph.module()(transformer_inputs)[0]
    errors = [
        float((quant.simulate(one)(transformer_inputs)[0] - expected).norm() / expected.norm())
        for one in (quantized, narrow)
    ]
    assert errors[0] < 0.9 * errors[1]
    assert errors[0] == pytest.approx(quantized.recipe["predicted_error"], rel=0.5)


def test_the_more_time_there_is_the_less_is_lost(transformer):
    latency = estimated(transformer.smoothed.whole)
    least, most = seconds_of(latency, set()), seconds_of(latency, set(transformer.errors))
    bounds = np.linspace(least, most, 6)
    recipes = [transformer.chosen(latency, max_latency=bound).recipe for bound in bounds]
    errors = [recipe["predicted_error"] for recipe in recipes]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[2] > errors[-1] == 0
    assert all(recipe["predicted_latency"] <= bound * (1 + 1e-6) for recipe, bound in zip(recipes, bounds, strict=True))


def test_a_bound_out_of_reach_is_refused(transformer):
    with pytest.raises(ValueError, match="out of reach"):
        transformer.chosen(latency_of(transformer), max_latency=3.1)
    other = replace(latency_of(transformer), weights=("other", *list(transformer.errors)[1:]))
    with pytest.raises(ValueError, match="has no times of the weight"):
        transformer.chosen(other, max_latency=100.0)


def test_it_is_a_method_of_the_matrix(transformer_graph, transformer_inputs, transformer, tmp_path):
    quantized = quant.quantize(transformer_graph, "mixed_static", "int8", [(transformer_inputs,)])
    assert quantized.recipe["left_float"] == transformer.chosen().recipe["left_float"]
    quant.save(quantized, tmp_path)
    assert quant.load(tmp_path, transformer_graph).recipe == quantized.recipe
    with pytest.raises(ValueError, match="calibration data"):
        quant.quantize(transformer_graph, "mixed_static", "int8")


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_convolutions_stay_integer_beside_wide_ones(residual, images, backend, tmp_path):
    graph = residual.smoothed.graph
    macs = {
        name: sum(graph.macs("forward", graph.node(edge)) for edge in graph.consumers(name)) for name in residual.errors
    }
    whole = quant.compile(residual.smoothed.leaving(), backend, tmp_path / "whole").coverage()
    for wide in (["branch.0.weight"], ["depthwise.weight", "head.weight"], ["stem.0.weight", "hidden.weight"]):
        quantized = residual.smoothed.leaving(wide)
        executable = quant.compile(quantized, backend, tmp_path / wide[0])
        expected = quant.simulate(quantized)(images)[0]
        found = torch.from_numpy(executable(images.numpy())[0])
        assert (found - expected).norm() < 0.02 * expected.norm()
        coverage = executable.coverage()
        left = sum(macs[name] for name in wide) / sum(macs.values())
        assert coverage["operators_native"] == pytest.approx(whole["operators_native"] - left)
        assert coverage["operators_simulated"] == pytest.approx(whole["operators_simulated"])


def test_a_model_without_operators_to_choose_from_is_left_as_it_is():
    torch.manual_seed(0)
    module, tokens = nn.Sequential(nn.Embedding(10, 8), nn.LayerNorm(8)).eval(), torch.randint(0, 10, (2, 5))
    quantized = quant.quantize(quant.capture(module, (tokens,)), "mixed_static", "int8", [(tokens,)])
    assert set(quantized.weights) == {"0.weight"}


def test_one_sample_and_a_constant_one_are_enough(transformer_graph):
    for values in (torch.randn(1, 8, 64), torch.ones(1, 8, 64)):
        quantized = quant.quantize(transformer_graph, "mixed_static", "int8", [(values,)])
        assert torch.isfinite(quant.simulate(quantized)(values)[0]).all()


def test_what_is_chosen_already_can_be_given(transformer_graph, transformer_inputs, transformer, monkeypatch):
    wide = ["up.weight", "late_attention.output.weight"]
    given = replace(method("mixed_static"), settings={"wide": wide})
    quantized = quant.quantize(transformer_graph, given, "int8", [(transformer_inputs,)])
    assert set(quantized.weights) == set(transformer.smoothed.whole.weights) - set(wide)
    expected = replace(transformer.smoothed.leaving(wide), recipe=quantized.recipe)
    assert tables_sha256(quantized) == tables_sha256(expected)
    # Choices of one model come one by one, and smoothing takes longest.
    monkeypatch.setattr("quant.methods.mixed_static.smooth", lambda *arguments: pytest.fail("it was smoothed before"))
    strange = replace(method("mixed_static"), settings={"wide": ["norms.0.weight"]})
    with pytest.raises(ValueError, match=r"'norms\.0\.weight' is to be left wide, but is no weight"):
        quant.quantize(transformer_graph, strange, "int8", [(transformer_inputs,)])
