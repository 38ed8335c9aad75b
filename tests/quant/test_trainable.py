from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import quant
from quant.backends import target
from quant.fake_quantize import LearnedActivation
from quant.methods import gptq
from quant.registry import missing
from quant.scheme import parse
from quant.trainable import TrainableModel, learning_vectors
from tests.quant.backends.test_recurrent import Classifier

BACKENDS = ("torch", "onnxruntime", "mlx", "coreml")


@pytest.fixture(scope="module")
def lstm_graph():
    torch.manual_seed(0)
    return quant.capture(Classifier().eval(), (torch.randint(0, 50, (2, 6)),), ({0: "batch", 1: "time"},))


@pytest.fixture
def starts(residual_graph, tied_graph, lstm_graph, transformer_graph, transformer_inputs):
    """Tables of every kind, each with inputs of its model."""
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(0, 40, (6, 7), generator=torch.Generator().manual_seed(1))

    def made(graph, method, bits, inputs):
        return quant.quantize(graph, method, bits, [(inputs,)]), inputs

    return {
        "convolutions": lambda: made(residual_graph, "gptq", "int2", images),
        "tied": lambda: made(tied_graph, "rtn", "int3", tokens),
        "lstm": lambda: made(lstm_graph, "mse", "int4", tokens),
        "lstm at run time": lambda: made(lstm_graph, "dynamic", "int8", tokens),
        "scaled inputs": lambda: made(transformer_graph, "awq", "int3_g16", transformer_inputs),
        "static": lambda: made(residual_graph, "static", "int8", images),
        "smoothed": lambda: made(transformer_graph, "smoothquant", "int8", transformer_inputs),
        "w4a8": lambda: made(tied_graph, "dynamic", "w4a8", tokens),
    }


KINDS = ("convolutions", "tied", "lstm", "lstm at run time", "scaled inputs", "static", "smoothed", "w4a8")


def trained(start, inputs, steps=4, rate=1e-2, **settings):
    """A model some steps away from where it started, in weights, scales and biases."""
    model = TrainableModel(start, **settings)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learning, rate)
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs)[0].square().mean().backward()
        optimizer.step()
        model.keep_valid()
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_what_the_tables_mean(starts, kind):
    start, inputs = starts[kind]()
    model = TrainableModel(start)
    torch.testing.assert_close(model(inputs)[0], quant.simulate(start)(inputs)[0], rtol=1e-6, atol=1e-6)
    for name, weight in model.tables().weights.items():
        assert torch.equal(weight.codes, start.weights[name].codes)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_trained_is_what_the_tables_mean(starts, kind):
    start, inputs = starts[kind]()
    model = trained(start, inputs)
    tables = model.tables()
    found = model(inputs)[0]
    torch.testing.assert_close(found, quant.simulate(tables)(inputs)[0], rtol=1e-6, atol=1e-6)
    assert (found - quant.simulate(start)(inputs)[0]).norm() > 1e-3 * found.norm(), "it has learned something"
    for name, weight in tables.weights.items():
        assert not torch.equal(weight.scale, start.weights[name].scale)
        assert weight.format == start.weights[name].format


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["convolutions", "lstm", "static"])
def test_backends_run_what_was_trained(starts, kind, backend, tmp_path):
    lacking = missing(target(backend).constant("REQUIRES", {}))
    if lacking:
        pytest.skip(lacking)
    start, inputs = starts[kind]()
    tables = trained(start, inputs).tables()
    found = np.asarray(quant.compile(tables, backend=backend, folder=tmp_path)(inputs.numpy())[0])
    expected = quant.simulate(tables)(inputs)[0].detach().numpy()
    # A value at the border of two codes may fall to either side.
    tolerance = 0.05 if kind == "static" else 1e-4
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


def test_scales_and_norms_learn_while_codes_and_biases_stay(starts):
    start, inputs = starts["tied"]()
    tables = trained(start, inputs, learns="scales").tables()
    assert set(tables.floats) == set(learning_vectors(start.graph, "scales"))
    assert all(not torch.equal(value, start.graph.parameters[name]) for name, value in tables.floats.items())
    for name, weight in tables.weights.items():
        assert torch.equal(weight.codes, start.weights[name].codes)
        assert not torch.equal(weight.scale, start.weights[name].scale)


def test_edges_of_one_value_keep_one_quantizer(starts):
    start, inputs = starts["static"]()
    model = trained(start, inputs)
    before, after = start.activations, model.tables().activations
    assert set(after) == set(before)
    assert len({id(one) for one in after.values()}) == sum(isinstance(a, LearnedActivation) for a in model.activations)
    assert any(not torch.equal(after[edge].scale, before[edge].scale) for edge in after)


def test_biases_added_to_integers_stay_on_their_grid(starts):
    start, inputs = starts["static"]()
    tables = trained(start, inputs).tables()
    grid = tables.weights["hidden.weight"].scale.flatten().double()
    grid = grid * tables.activations["forward", "linear_0", 0].scale.double()
    steps = tables.floats["hidden.bias"].double() / grid
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)


def test_biases_and_gains_learn_and_what_normalizes_does_not():
    class Norms(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.batch, self.last = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.LayerNorm(8)
            self.gain = nn.Parameter(torch.ones(8))
            self.positions = nn.Parameter(torch.zeros(4, 8))
            self.used_twice = nn.Parameter(torch.ones(8))

        def forward(self, values):
            hidden = self.last(self.batch(torch.relu(self.first(values))) * self.gain)
            return hidden + self.positions[1] + self.used_twice * self.used_twice.cumsum(0)

    graph = quant.capture(Norms().eval(), (torch.randn(2, 8),))
    assert set(learning_vectors(graph)) == {
        "first.bias", "batch.weight", "batch.bias", "last.weight", "last.bias", "gain",
    }  # fmt: skip
    assert set(learning_vectors(graph, "scales")) == set(learning_vectors(graph)) - {"first.bias"}


def test_a_batch_norm_is_trained_folded(residual_graph):
    """Its statistics are frozen in the weights that the graph has; what is rounded is what is deployed."""
    assert not any("running" in name for name in residual_graph.parameters)
    model = TrainableModel(quant.quantize(residual_graph, "rtn", "int4"))
    assert "stem.0.weight" in model.weight_names
    assert "stem.0.bias" in model.float_names
    model.train()
    images = torch.randn(4, 3, 8, 8)
    together, alone = model(images)[0], torch.cat([model(image[None])[0] for image in images])
    torch.testing.assert_close(together, alone)  # one that normalized by the batch would tell them apart


def test_bits_are_lowered_from_where_the_weights_are(residual_graph):
    start = quant.quantize(residual_graph, "mse", "int2")
    model = TrainableModel(start)
    image = torch.randn(4, 3, 8, 8)
    exact = residual_graph.module()(image)[0]
    errors = []
    for bits in (8, 4, 0):
        model.restart(bits)
        errors.append(float((model(image)[0] - exact).detach().norm()))
    assert errors == sorted(errors)
    assert model.tables().weights["stem.0.weight"].format == start.weights["stem.0.weight"].format


def test_gradients_reach_everything_that_learns(starts):
    for kind in ("convolutions", "lstm", "static"):
        start, inputs = starts[kind]()
        model = TrainableModel(start)
        model(inputs)[0].square().sum().backward()
        missing_gradients = [name for name, one in model.named_parameters() if one.grad is None]
        assert not missing_gradients


def test_an_approximate_start_is_taken_for_its_codes(residual_graph):
    """GPTQ's codes are no nearest ones; the weights start inside their cells all the same."""
    scheme = parse("int4")
    start = gptq.quantize(residual_graph, scheme, [(torch.randn(8, 3, 8, 8),)])
    plain = replace(start, weights={}, floats={})
    assert TrainableModel(plain).weight_names == ()
    model = TrainableModel(start)
    assert all(torch.equal(weight.codes, start.weights[name].codes) for name, weight in model.tables().weights.items())
