"""LSTMs in float graphs: layers, steps, hidden states, and what methods make of their weights. torch is the oracle."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from quant.graph import ActivationQuantizer, QuantizedModel, simulate
from quant.methods import quantize
from quant.methods.gptq import solve_layer
from quant.nodes import LSTM, operator_of
from quant.recurrent import SteppedLSTM, hidden_before
from quant.scheme import parse
from quant.sequential import quantize_sequentially
from quant.tensor import block_of
from quant.tensor import quantize as quantize_tensor
from quant.tracing import capture

INPUTS, HIDDEN = 6, 5


class Recurrent(nn.Module):
    """All three results of an LSTM of any kind."""

    def __init__(self, **settings):
        super().__init__()
        self.lstm = nn.LSTM(INPUTS, HIDDEN, **settings)

    def forward(self, x):
        outputs, (hidden, cell) = self.lstm(x)
        return outputs, hidden, cell


KINDS = {
    "one_layer": {},
    "layers": {"num_layers": 3},
    "both_directions": {"num_layers": 2, "bidirectional": True},
    "batch_first": {"num_layers": 2, "batch_first": True},
    "no_bias": {"bias": False, "bidirectional": True, "batch_first": True},
    "dropout": {"num_layers": 2, "dropout": 0.5},
}


@cache
def make(**settings):
    torch.manual_seed(0)
    module = Recurrent(**settings).eval()
    shape = (3, 7, INPUTS) if settings.get("batch_first") else (7, 3, INPUTS)
    axes = {0: "batch", 1: "time"} if settings.get("batch_first") else {0: "time", 1: "batch"}
    return module, capture(module, (torch.randn(shape),), (axes,)), torch.randn(shape)[:, :2]


def nodes_of(graph):
    return [node for node in graph.graphs["forward"].nodes if node.operator == LSTM]


@pytest.fixture(scope="module", params=KINDS, ids=KINDS)
def captured(request):
    return make(**KINDS[request.param])


def test_layers_are_nodes_of_their_own_and_compute_the_same(captured):
    module, graph, data = captured
    assert len(nodes_of(graph)) == module.lstm.num_layers
    assert all(node.arguments[4] == 1 for node in nodes_of(graph))
    with torch.inference_mode():
        for ours, expected in zip(graph.module()(data), module(data), strict=True):
            torch.testing.assert_close(ours, expected)


def test_it_exports_again_by_the_same_names(captured):
    _, graph, data = captured
    exported = graph.export().module()
    for ours, expected in zip(exported(data), graph.module()(data), strict=True):
        torch.testing.assert_close(ours, expected)


def test_running_step_by_step_computes_the_same(captured):
    module, _, data = captured
    lstm = module.lstm
    if lstm.num_layers > 1:
        pytest.skip("one layer at a time")
    directions, batch = 2 if lstm.bidirectional else 1, data.shape[0 if lstm.batch_first else 1]
    states = tuple(torch.randn(directions, batch, HIDDEN) for _ in range(2))
    rest = (lstm.bias, 1, 0.0, False, lstm.bidirectional, lstm.batch_first)
    expected = torch.ops.aten.lstm.input(data, states, lstm._flat_weights, *rest)
    stepped = SteppedLSTM(lambda hidden: hidden)(data, states, lstm._flat_weights, *rest)
    for ours, theirs in zip(stepped, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_both_weights_of_every_layer_and_direction_are_quantizable(captured):
    module, graph, _ = captured
    weights = {name for name, value in module.named_parameters() if value.ndim == 2}
    assert set(graph.quantizable()) == weights
    for name, ((edge, operator),) in graph.quantizable().items():
        assert operator.data == ("x" if "weight_ih" in name else "h")
        assert operator_of(graph.node(edge), edge[2], name.replace("weight", "bias")) is None


def test_multiply_accumulates_are_those_of_all_steps(captured):
    module, graph, _ = captured
    weights = sum(value.numel() for value in module.parameters() if value.ndim == 2)
    axis = 1 if module.lstm.batch_first else 0
    steps, batch = graph.examples["forward"][0].shape[axis], graph.examples["forward"][0].shape[0]
    total = steps * graph.examples["forward"][0].shape[1 - axis] * weights // batch
    assert sum(graph.macs("forward", node) for node in nodes_of(graph)) == pytest.approx(total, abs=len(KINDS))


def test_hidden_states_are_what_the_recurrent_weight_multiplies_with(captured):
    """Seen by an observer inside the steps themselves, in the order in which they are read."""
    module, graph, data = captured
    (node, *_) = nodes_of(graph)
    directions, batch_first = 2 if module.lstm.bidirectional else 1, module.lstm.batch_first
    initial = torch.randn(directions, data.shape[0 if batch_first else 1], HIDDEN)
    first = module.lstm._flat_weights[: len(node.arguments[2])]
    seen = []
    stepped = SteppedLSTM(lambda hidden: seen.append(hidden) or hidden)
    output, *_ = stepped(data, (initial, torch.zeros_like(initial)), first, *node.arguments[3:])
    steps = len(seen) // directions
    for direction in range(directions):
        reference = node.arguments[2][direction * len(first) // directions + 1]
        states = hidden_before(node, output, initial, reference.name)
        order = seen[direction * steps : (direction + 1) * steps]
        expected = torch.stack(order[::-1] if direction else order, 1 if batch_first else 0)
        torch.testing.assert_close(states, expected)


def test_a_projected_lstm_stays_float():
    _, graph, data = make(proj_size=2, num_layers=2)
    assert graph.quantizable() == {}
    quantized = quantize(graph, "rtn", "int4")
    assert quantized.weights == {}
    assert "lstm.weight_hr_l0" in quantized.left_float()
    torch.testing.assert_close(simulate(quantized)(data), graph.module()(data))


@pytest.mark.parametrize("method", ["rtn", "mse", "hqq", "awq", "gptq"])
def test_weight_only_methods_quantize_all_weights(method):
    _, graph, data = make(num_layers=2, bidirectional=True)
    quantized = quantize(graph, method, "int8", [(data,)])
    assert set(quantized.weights) == set(graph.quantizable())
    with torch.inference_mode():
        error = simulate(quantized)(data)[0] - graph.module()(data)[0]
    assert 0 < error.norm() < 0.02 * graph.module()(data)[0].norm()


def test_gptq_fits_either_weight_to_what_it_multiplies_with():
    """Each weight alone: its error on fresh inputs, whose features depend on each other, is below rounding's."""
    torch.manual_seed(1)
    module = Recurrent(batch_first=True, num_layers=2).eval()
    mixing = torch.randn(2, INPUTS)
    batches = [(torch.randn(16, 9, 2) @ mixing,) for _ in range(4)]
    graph = capture(module, batches[0], ({0: "batch", 1: "time"},))
    fresh, format = torch.randn(64, 9, 2) @ mixing, parse("int3").linear
    with torch.inference_mode():
        expected = module(fresh)[0]
        for name, weight in graph.parameters.items():
            if name not in graph.quantizable():
                continue
            block = block_of(format, tuple(weight.shape), graph.channel_block(name))
            fitted = quantize_sequentially(
                graph,
                [name],
                batches,
                lambda layer, weight, moments, b=block: solve_layer(layer, weight, moments, format, b),
            )
            rounded = {name: quantize_tensor(weight, format, block)}
            errors = [
                (simulate(QuantizedModel(graph, parse("int3"), tables))(fresh)[0] - expected).norm()
                for tables in (fitted, rounded)
            ]
            assert errors[0] < 0.95 * errors[1], name


def test_moments_of_the_recurrent_weight_are_those_of_the_hidden_states():
    module, graph, _ = make(batch_first=True)
    data = graph.examples["forward"][0]
    found = {}

    def solve(layer, weight, moments):
        found[layer.parameter] = moments
        format = parse("int8").linear
        return quantize_tensor(weight, format, (1, weight.shape[1]))

    quantize_sequentially(graph, list(graph.quantizable()), [(data,)], solve)
    with torch.inference_mode():
        states = module(data)[0][:, :-1].reshape(-1, HIDDEN)
    torch.testing.assert_close(found["lstm.weight_hh_l0"].gram[0], states.T @ states, atol=5e-3, rtol=2e-2)
    torch.testing.assert_close(found["lstm.weight_ih_l0"].gram[0], torch.einsum("nti,ntj->ij", data, data))


@pytest.mark.parametrize("granularity", ["token", "tensor"])
def test_dynamic_quantizes_inputs_and_hidden_states_by_name(granularity):
    _, graph, data = make(num_layers=2)
    quantized = quantize(graph, "dynamic", "int8", dynamic_granularity=granularity)
    assert set(quantized.activations) == {("forward", f"lstm_{i}", name) for i in range(2) for name in ("x", "h")}
    error = simulate(quantized)(data)[0] - graph.module()(data)[0]
    only_weights = (
        simulate(QuantizedModel(graph, quantized.scheme, quantized.weights))(data)[0] - graph.module()(data)[0]
    )
    assert only_weights.norm() < error.norm() < 0.1 * graph.module()(data)[0].norm()


def test_either_activation_has_an_effect_of_its_own():
    _, graph, data = make()
    quantized = quantize(graph, "dynamic", "int8")
    outputs = []
    for names in ((), ("x",), ("h",), ("x", "h")):
        activations = {edge: quantizer for edge, quantizer in quantized.activations.items() if edge[2] in names}
        outputs.append(
            simulate(QuantizedModel(graph, quantized.scheme, quantized.weights, activations=activations))(data)[0]
        )
    assert all((a != b).any() for i, a in enumerate(outputs) for b in outputs[:i])


def test_four_bit_weights_with_grouped_activations_leave_the_lstm_weight_only():
    _, graph, _ = make()
    quantized = quantize(graph, "dynamic", "w4a8")
    assert set(quantized.weights) == {"lstm.weight_ih_l0", "lstm.weight_hh_l0"}
    assert quantized.activations == {}


def test_one_quantizer_of_an_lstm_and_a_linear_layer_that_read_one_value():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.linear = nn.LSTM(INPUTS, HIDDEN, batch_first=True), nn.Linear(INPUTS, HIDDEN)

        def forward(self, x):
            return self.lstm(x)[0] + self.linear(x)

    torch.manual_seed(0)
    data = torch.randn(2, 4, INPUTS)
    graph = capture(Both().eval(), (data,), ({0: "batch"},))
    quantized = quantize(graph, "dynamic", "int8")
    module = simulate(quantized)
    edges = [name for name, _ in module.named_modules() if name.startswith("edge_")]
    assert len(edges) == 1
    assert torch.isfinite(module(data)[0]).all()


def test_nan_in_an_lstm_weight_names_it():
    _, graph, _ = make()
    broken = graph.parameters["lstm.weight_hh_l0"].clone()
    broken[2, 3] = float("nan")
    graph = replace(graph, parameters={**graph.parameters, "lstm.weight_hh_l0": broken})
    with pytest.raises(ValueError, match=r"lstm.weight_hh_l0.*NaN"):
        quantize(graph, "rtn", "int4")


def test_nan_in_hidden_states_names_the_weight():
    _, graph, data = make()
    data = data.clone()
    data[3, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"'lstm\.weight_ih_l0'"):
        quantize(graph, "gptq", "int4", [(data,)])


def test_a_quantizer_on_an_unknown_node_is_refused():
    _, graph, _ = make()
    edge = ("forward", "lstm_9", "h")
    with pytest.raises(ValueError, match="has no target"):
        QuantizedModel(graph, parse("int8"), activations={edge: ActivationQuantizer("none")})
