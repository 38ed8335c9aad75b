import pytest
import torch
from torch import nn

import quant
from quant import bias
from quant.bias import correct_fast, correct_full
from quant.calibrate import ChannelMean, observe
from quant.graph import ActivationQuantizer, QuantizedModel, simulate
from quant.methods.rtn import round_weights
from quant.scheme import parse

SCHEME = parse("int8", "static")
FOUR_BITS = parse("int4_sym_channel")


@pytest.fixture(scope="module")
def batches():
    torch.manual_seed(5)
    return [(torch.randn(size, 3, 8, 8),) for size in (3, 1, 4)]


@pytest.fixture(scope="module")
def tables(residual_graph, batches):
    """Coarse tables of a net with all kinds of layers, so that the errors to correct are large."""
    activations = quant.quantize(residual_graph, "static_plain", "int8", batches).activations
    coarse = {edge: coarser(quantizer) for edge, quantizer in activations.items()}
    return round_weights(residual_graph, FOUR_BITS), coarse


def coarser(quantizer):
    return ActivationQuantizer(
        quantizer.mode, quantizer.format, quantizer.scale * 8, (quantizer.zero_point / 8).to(torch.uint8)
    )


def output_means(graph, parameters, batches, edges=None):
    """The mean of each channel of each layer's output, in a module of its own for every layer."""
    source, means = graph.graphs["forward"], {}
    module = simulate(QuantizedModel(graph, SCHEME, floats=parameters, activations=edges or {}))
    for node in module.graph.nodes:
        if node.name in source.by_name and source.by_name[node.name].operator.split(".")[1] in (
            "conv2d",
            "linear",
            "conv_transpose2d",
        ):
            axis = 1 if len(source.shapes[node.name]) == 4 else -1
            means[node.name] = ChannelMean(axis)
    for batch in batches:
        values = Recorder(module).run_all(*batch)
        for name, mean in means.items():
            mean(values[name])
    return {name: mean.mean for name, mean in means.items()}


class Recorder(torch.fx.Interpreter):
    """Keeps every value of a graph."""

    def run_all(self, *inputs):
        self.seen = {}
        with torch.no_grad():
            self.run(*inputs)
        return self.seen

    def run_node(self, node):
        self.seen[node.name] = super().run_node(node)
        return self.seen[node.name]


def dequantized(tables, biases):
    return {name: weight.dequantize() for name, weight in tables[0].items()} | biases


def test_after_full_correction_every_layer_has_the_mean_of_float(residual_graph, tables, batches):
    expected = output_means(residual_graph, {}, batches)
    before = output_means(residual_graph, dequantized(tables, {}), batches, tables[1])
    corrected = correct_full(residual_graph, *tables, batches)
    after = output_means(residual_graph, dequantized(tables, corrected), batches, tables[1])
    assert len(corrected) == 6
    for name, mean in expected.items():
        torch.testing.assert_close(after[name], mean, rtol=0, atol=2e-5)
        assert (before[name] - mean).abs().max() > 1e-3, "there was nothing to correct"


def test_computing_again_instead_of_keeping_changes_nothing(residual_graph, tables, batches, monkeypatch):
    kept = correct_full(residual_graph, *tables, batches)
    monkeypatch.setattr(bias._QuantizedRun, "_bytes", lambda self, values: self._limit + 1)
    again = correct_full(residual_graph, *tables, batches)
    for name, value in kept.items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("correct", [correct_fast, correct_full])
def test_a_single_layer_is_corrected_by_its_mean_error(correct):
    torch.manual_seed(6)
    module = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2)).eval()
    graph = quant.capture(module, (torch.randn(2, 4, 7, 7),))
    batches = [(torch.rand(3, 4, 7, 7),), (torch.rand(2, 4, 7, 7),)]
    weights = round_weights(graph, FOUR_BITS)
    images = torch.cat([batch[0] for batch in batches]).double()
    exact = nn.functional.conv2d(images, module[0].weight.double(), None, 2, 1, 1, 2)
    rounded = nn.functional.conv2d(images, weights["0.weight"].dequantize().double(), None, 2, 1, 1, 2)
    expected = module[0].bias.double() + (exact - rounded).mean((0, 2, 3))
    found = correct(graph, weights, {}, batches)
    torch.testing.assert_close(found["0.bias"].double(), expected, rtol=0, atol=1e-6)


def test_fast_takes_each_layers_own_error_on_float_inputs(residual_graph, tables, batches):
    weights, activations = tables
    found = correct_fast(residual_graph, weights, activations, batches)
    inputs = []

    def keep(values):
        inputs.append(values.clone())
        return values

    observe(residual_graph, {"relu_3": keep}, batches)
    features = torch.cat(inputs)
    exact = features @ residual_graph.parameters["head.weight"].T
    rounded = activations["forward", "linear_1", 0](features) @ weights["head.weight"].dequantize().T
    expected = residual_graph.parameters["head.bias"] + (exact - rounded).mean(0)
    torch.testing.assert_close(found["head.bias"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("correct", [correct_fast, correct_full])
def test_layers_without_a_bias_of_their_own_are_left(correct, tied_graph):
    batches = [(torch.randint(0, 40, (4, 7)),)]
    weights = round_weights(tied_graph, FOUR_BITS)
    assert set(correct(tied_graph, weights, {}, batches)) == {"feed_forward.bias"}


@pytest.mark.parametrize("correct", [correct_fast, correct_full])
def test_without_data_it_is_one_sentence(correct, residual_graph, tables):
    with pytest.raises(ValueError, match="needs calibration data"):
        correct(residual_graph, *tables, [])


@pytest.mark.parametrize("correct", [correct_fast, correct_full])
def test_one_sample_gives_a_defined_result(correct, residual_graph, tables):
    found = correct(residual_graph, *tables, [(torch.zeros(1, 3, 8, 8),)])
    assert all(torch.isfinite(value).all() for value in found.values())


class Joined(nn.Module):
    """A layer whose output nothing takes but a list."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(7, 2)

    def forward(self, x):
        return self.last(torch.cat([x, self.first(x)], dim=1))


def test_a_layer_whose_output_is_joined_with_others_is_corrected():
    torch.manual_seed(0)
    batches = [(torch.randn(32, 3),)]
    graph = quant.capture(Joined().eval(), batches[0])
    weights = round_weights(graph, FOUR_BITS)
    biases = correct_full(graph, weights, {}, batches)
    assert set(biases) == {"first.bias", "last.bias"}
    corrected = output_means(graph, dequantized((weights,), biases), batches)
    for name, mean in output_means(graph, {}, batches).items():
        torch.testing.assert_close(corrected[name], mean, rtol=0, atol=1e-6)
