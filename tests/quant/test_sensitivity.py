import json

import numpy as np
import pytest
import torch
from torch import nn

import quant
from quant.sensitivity import (
    CRITERIA,
    Sensitivity,
    fisher,
    hessian,
    hessian_traces,
    load,
    most_sensitive,
    output_divergence,
    output_errors,
)


class Parallel(nn.Module):
    """Layers of which one reads an input with an outlier, and one is far larger."""

    def __init__(self):
        super().__init__()
        self.hurt, self.plain, self.large = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 64)

    def forward(self, values, calm):
        return self.hurt(values) + self.plain(calm) + self.large(calm).sum(-1, keepdim=True)


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    values, calm = torch.randn(16, 8, generator=generator), torch.randn(16, 8, generator=generator)
    values[::4, 0] = 50
    return values, calm


@pytest.fixture(scope="module")
def quantized(batch):
    torch.manual_seed(0)
    graph = quant.capture(Parallel().eval(), tuple(array[:2] for array in batch))
    return quant.quantize(graph, "static_plain", "int8", [batch])


def test_the_layer_with_the_outlier_costs_the_output_most(quantized, batch):
    errors = output_errors(quantized, [batch])
    assert set(errors) == set(quantized.weights)
    assert max(errors, key=errors.get) == "hurt.weight"


def test_an_error_is_that_of_one_layer_quantized_alone(quantized, batch):
    few = [array[:8] for array in batch]
    (edge,) = (edge for edge in quantized.activations if quantized.graph.node(edge).arguments[1].name == "plain.weight")
    alone = quant.QuantizedModel(
        quantized.graph,
        quantized.scheme,
        {"plain.weight": quantized.weights["plain.weight"]},
        {},
        {edge: quantized.activations[edge]},
    )
    expected = quantized.graph.module()(*few)[0].double()
    difference = quant.simulate(alone)(*few)[0].double() - expected
    error = output_errors(quantized, [batch])["plain.weight"]
    assert error == pytest.approx(float(difference.square().sum() / expected.square().sum()), rel=1e-4)


def test_the_share_of_the_work_bounds_what_stays_float(quantized, batch):
    assert most_sensitive(quantized, [batch], 0.0) == []
    # 32 of the 32 + 32 + 512 multiply-accumulates.
    assert most_sensitive(quantized, [batch], 0.06) == ["hurt.weight"]
    assert set(most_sensitive(quantized, [batch], 1.0)) == set(quantized.weights)


@pytest.fixture(scope="module")
def planted():
    """Four layers in a row, each with two small changes to its weight; those of the third are far larger."""
    torch.manual_seed(3)
    layers = [nn.Linear(12, 12) for _ in range(4)]
    module = nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh()))).eval()
    batch = (torch.randn(16, 12),)
    graph = quant.capture(module, (batch[0][:2],))
    changes = {}
    for name, value in graph.parameters.items():
        if value.ndim == 2:
            size = 0.03 if name == "4.weight" else 0.001
            changes[name] = [size * torch.randn_like(value), 2 * size * torch.randn_like(value)]
    return graph, changes, [batch]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_ranks_the_planted_layer_first(planted, criterion):
    graph, changes, batches = planted
    errors = CRITERIA[criterion](graph, changes, batches)
    assert errors.shape == (4, 2)
    assert np.isfinite(errors).all()
    assert (errors >= 0).all()
    assert [list(changes)[row] for row in errors.argmax(0)] == ["4.weight"] * 2


def test_fisher_is_the_second_order_of_the_divergence(planted):
    graph, changes, batches = planted
    estimated, exact = fisher(graph, changes, batches), output_divergence(graph, changes, batches)
    # Sixteen draws of a square whose spread is as large as its mean.
    assert np.abs(np.log(estimated / exact)).max() < np.log(4)


@pytest.fixture(scope="module")
def tiny():
    """A classifier whose whole Hessian can be computed: 4 x 3 and 3 x 4 weights."""
    torch.manual_seed(5)
    module = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False)).eval()
    batch = (torch.randn(6, 3),)
    return quant.capture(module, (batch[0][:2],)), batch


def exact_trace(graph, batch, name):
    """The trace of one weight's part of the Hessian of the divergence, from the whole matrix in float64."""
    values = {key: value.double() for key, value in graph.parameters.items()}
    module, inputs = graph.module(parameters=values).double(), batch[0].double()
    expected = module(inputs)[0].log_softmax(-1)

    def divergence(weight):
        output = torch.func.functional_call(module, {name: weight}, (inputs,))[0].log_softmax(-1)
        return (expected.exp() * (expected - output)).sum(-1).mean()

    size = values[name].numel()
    return float(torch.autograd.functional.hessian(divergence, values[name]).reshape(size, size).trace())


def test_traces_are_those_of_the_exact_hessian(tiny):
    graph, batch = tiny
    names = list(graph.parameters)
    exact = [exact_trace(graph, batch, name) for name in names]
    estimated = hessian_traces(graph, names, [batch], draws=3000)
    assert estimated == pytest.approx(exact, rel=0.05)
    assert hessian_traces(graph, names, [batch]) == pytest.approx(exact, rel=0.6)


def test_the_hessian_criterion_is_the_mean_eigenvalue_times_the_square_of_the_change(tiny):
    graph, batch = tiny
    changes = {name: [torch.full_like(value, 0.1), value] for name, value in graph.parameters.items()}
    traces = hessian_traces(graph, list(changes), [batch])
    errors = hessian(graph, changes, [batch])
    for row, value in enumerate(graph.parameters.values()):
        squares = np.array([0.01 * value.numel(), float(value.square().sum())])
        assert errors[row] == pytest.approx(traces[row] / value.numel() * squares / 2, rel=1e-5)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_come_through_attention(transformer_graph, transformer_inputs, criterion):
    changes = {name: [0.01 * torch.ones(64, 64)] for name in ("attention.query.weight", "late_attention.value.weight")}
    errors = CRITERIA[criterion](transformer_graph, changes, [(transformer_inputs,)])
    assert np.isfinite(errors).all()
    assert criterion == "alignment" or (errors > 0).all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_weight_without_a_change_costs_nothing(planted, criterion):
    graph, changes, batches = planted
    same = {name: [torch.zeros_like(change) for change in of_weight] for name, of_weight in changes.items()}
    assert CRITERIA[criterion](graph, same, batches) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_need_calibration_data(planted, criterion):
    graph, changes, _ = planted
    with pytest.raises(ValueError, match="need calibration data"):
        CRITERIA[criterion](graph, changes, [])


def test_one_sample_and_an_output_of_one_number_are_enough():
    torch.manual_seed(0)
    batch = (torch.randn(2, 5),)
    graph = quant.capture(nn.Linear(5, 1).eval(), batch)
    changes = {"weight": [0.1 * torch.ones(1, 5)]}
    for criterion in CRITERIA.values():
        assert criterion(graph, changes, [batch])[0, 0] > 0


def test_sensitivities_are_saved_and_read_again(planted, tmp_path):
    graph, changes, _ = planted
    saved = Sensitivity("kl", tuple(changes), ("int4", "int2"), np.arange(8.0).reshape(4, 2), graph.weights_sha256)
    saved.save(tmp_path / "kl.json")
    read = load(tmp_path / "kl.json", graph)
    assert (read.criterion, read.weights, read.formats) == ("kl", tuple(changes), ("int4", "int2"))
    np.testing.assert_array_equal(read.errors, saved.errors)


def test_errors_are_looked_up_by_name(planted):
    graph, changes, _ = planted
    found = Sensitivity("kl", tuple(changes), ("int4", "int2"), np.arange(8.0).reshape(4, 2), graph.weights_sha256)
    np.testing.assert_array_equal(found.among(["4.weight", "0.weight"], ["int2"]), [[5], [1]])
    with pytest.raises(ValueError, match="nothing of the format 'int3'"):
        found.among(["4.weight"], ["int3"])


@pytest.mark.parametrize("damage", ["other weights", "no errors", "no JSON", "no file"])
def test_a_file_that_does_not_fit_is_refused(planted, tmp_path, damage):
    graph, changes, _ = planted
    path = tmp_path / "kl.json"
    Sensitivity("kl", tuple(changes), ("int4",), np.ones((4, 1)), graph.weights_sha256).save(path)
    entry = json.loads(path.read_text())
    entry |= {"weights_sha256": "0"} if damage == "other weights" else {}
    entry |= {"errors": []} if damage == "no errors" else {}
    path.write_text("{" if damage == "no JSON" else json.dumps(entry))
    if damage == "no file":
        path.unlink()
    with pytest.raises(ValueError, match=r"kl\.json .*: measure"):
        load(path, graph)
