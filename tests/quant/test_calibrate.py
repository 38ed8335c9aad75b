import pytest
import torch
from torch import nn

import quant
from quant.calibrate import observe_ranges


@pytest.fixture(scope="module")
def graph():
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)).eval()
    nn.init.eye_(module[0].weight)
    return quant.capture(module, (torch.randn(2, 3),))


def test_ranges_are_the_extremes_over_all_batches(graph):
    batches = [(torch.tensor([[1.0, -2.0, 0.5]]),), (torch.tensor([[3.0, 0.0, 0.0], [0.0, -7.0, 0.0]]),)]
    names = [graph.graphs["forward"].inputs[0], "relu_0"]
    ranges = observe_ranges(graph, names, batches)
    assert ranges[names[0]] == (-7.0, 3.0)
    assert ranges["relu_0"] == (0.0, 3.0)


def test_numpy_batches_are_taken(graph):
    (name,) = graph.graphs["forward"].inputs
    assert observe_ranges(graph, [name], [(torch.ones(1, 3).numpy(),)])[name] == (1.0, 1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("position", [0, 1])
def test_a_value_that_is_not_finite_is_named_wherever_it_comes(graph, bad, position):
    batches = [[torch.ones(1, 3)], [torch.ones(1, 3)]]
    batches[position][0][0, 1] = bad
    with pytest.raises(ValueError, match="calibration saw NaN or infinity at"):
        observe_ranges(graph, list(graph.graphs["forward"].inputs), batches)


def test_no_data_is_one_sentence(graph):
    with pytest.raises(ValueError, match="needs calibration data"):
        observe_ranges(graph, ["relu_0"], [])
