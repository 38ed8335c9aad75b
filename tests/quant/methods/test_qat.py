from dataclasses import replace

import pytest
import torch

import quant
from quant.methods import distill as distill_method
from quant.methods import methods
from quant.recipe import Recipe, Training, Validation, unlabelled
from quant.training import train


def images(count=16, seed=0):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def error(quantized, graph):
    expected = graph.module()(images(32, seed=9))[0]
    return float((quant.simulate(quantized)(images(32, seed=9))[0] - expected).norm() / expected.norm())


def training(rate=3e-3):
    """Training of the small net towards its float outputs."""
    recipe = Recipe(steps=60, rate=rate, scale_rate=rate, distance="mse", validate_every=20)
    batches = [(images(16, seed),) for seed in range(1, 5)]
    return Training(batches, None, recipe, Validation([(images(16, 7),)]))


@pytest.mark.parametrize(("method", "bits"), [("qat", "int2"), ("qat", "int3"), ("qat_dynamic", "int8")])
def test_training_is_better_than_what_it_starts_from(residual_graph, method, bits):
    calibration = [(images(),)]
    start = quant.quantize(residual_graph, "gptq" if method == "qat" else "dynamic", bits, calibration)
    quantized = quant.quantize(residual_graph, method, bits, calibration, training=training())
    assert error(quantized, residual_graph) < error(start, residual_graph)
    assert set(quantized.weights) == set(start.weights)
    assert quantized.recipe["method"] == method
    assert quantized.recipe["settings"] == {}
    assert quantized.recipe["training"]["steps"] == 60


def test_activations_are_trained_with_their_ranges(residual_graph):
    calibration = [(images(),)]
    start = quant.quantize(residual_graph, "static_plain", "int8", calibration)
    assert error(train(start, training(1e-4)), residual_graph) < error(start, residual_graph)
    best = quant.quantize(residual_graph, "static", "int8", calibration)
    quantized = quant.quantize(residual_graph, "qat_static", "int8", calibration, training=training(1e-4))
    assert set(quantized.activations) == set(best.activations)
    assert error(quantized, residual_graph) <= error(best, residual_graph)


def test_distilling_moves_scales_alone(residual_graph, monkeypatch):
    monkeypatch.setattr(distill_method, "STEPS", 60)
    calibration = [(images(),)]
    start = quant.quantize(residual_graph, "gptq", "int3", calibration)
    quantized = quant.quantize(residual_graph, "distill", "int3", calibration, training=training())
    assert quantized.floats == {}
    assert all(torch.equal(quantized.weights[name].codes, start.weights[name].codes) for name in start.weights)
    assert error(quantized, residual_graph) < error(start, residual_graph)


@pytest.mark.parametrize("method", ["qat", "distill"])
def test_without_training_data_the_float_model_teaches_on_the_calibration(tied_graph, method, monkeypatch):
    monkeypatch.setattr("quant.recipe.Recipe.steps", 3, raising=False)
    monkeypatch.setattr(distill_method, "STEPS", 3)
    tokens = torch.randint(0, 40, (16, 7), generator=torch.Generator().manual_seed(0))
    lines = []
    from quant import methods as package

    quantized = package.quantize(tied_graph, method, "int3", [(tokens[:8],), (tokens[8:],)], progress=lines.append)
    assert set(quantized.weights) == {"embedding.weight", "feed_forward.weight"}
    assert any(line.startswith(f"{method}: step ") and "validation loss" in line for line in lines)
    with pytest.raises(ValueError, match="needs calibration data"):
        quant.quantize(tied_graph, method, "int3")


@pytest.mark.parametrize("method", ["qat", "distill"])
def test_what_validates_calibrates_nothing_that_training_starts_from(residual_graph, method, monkeypatch):
    monkeypatch.setattr(distill_method, "STEPS", 1)
    training = replace(unlabelled([(images(16),), (images(16, seed=1),)]), recipe=Recipe(steps=1, rate=1e-9))
    (judged,) = (values for (values,) in training.validation.loader)
    expected = quant.quantize(residual_graph, "gptq", "int3", training.start_data)
    found = quant.quantize(residual_graph, method, "int3", [(100 * judged,)], training=training)
    for name, weight in expected.weights.items():
        assert torch.equal(found.weights[name].codes, weight.codes)


def test_methods_that_train_say_so():
    training_methods = {name for name, entry in methods().items() if entry.trains}
    assert training_methods == {"qat", "qat_static", "qat_dynamic", "distill"}
    assert not any(methods()[name].core for name in training_methods), "none runs unless it is asked for"
