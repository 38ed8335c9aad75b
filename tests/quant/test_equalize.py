from dataclasses import replace

import pytest
import torch
from torch import nn

import quant
from quant.calibrate import Extremes, observe
from quant.equalize import HEADROOM, equalize, groups
from quant.nodes import Value


def convolution(inputs, outputs, kernel=1, groups=1):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)


class Bottlenecks(nn.Module):
    """Two inverted residuals of one stage around a linear bottleneck whose channels differ a thousandfold."""

    def __init__(self, activation):
        super().__init__()
        self.stem, self.activation = convolution(3, 8), activation
        self.blocks = nn.ModuleList(
            nn.Sequential(convolution(8, 16), activation, convolution(16, 16, 3, 16), activation, convolution(16, 8))
            for _ in range(2)
        )
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            uneven = torch.logspace(-2, 1, 8)
            for layer in (self.stem, *(block[-1] for block in self.blocks)):
                layer.weight.mul_(uneven.reshape(-1, 1, 1, 1))
                layer.bias.mul_(uneven)

    def forward(self, image):
        features = self.stem(image)
        for block in self.blocks:
            features = features + block(features)
        return self.head(features.mean((2, 3)))


class Wrapped(nn.Module):
    """A function of modules."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, image):
        return self.function(self, image)


def captured(module, *shape):
    return quant.capture(module.eval(), (torch.randn(2, *shape),))


def read_values(graph):
    """The values that quantized operators read."""
    source = graph.graphs["forward"]
    weights = graph.quantizable()
    edges = {(edge[1], operator.data) for consumers in weights.values() for edge, operator in consumers}
    arguments = [source.by_name[node].arguments[position] for node, position in sorted(edges)]
    return sorted({argument.name for argument in arguments if isinstance(argument, Value)})


def channel_extent(graph, value, batches, axis=1):
    extremes = Extremes(axis)
    observe(graph, {value: extremes}, batches)
    return torch.maximum(extremes.high, -extremes.low)


@pytest.fixture(scope="module")
def batches():
    torch.manual_seed(7)
    return [(torch.randn(4, 3, 6, 6),), (torch.randn(2, 3, 6, 6),)]


@pytest.fixture(scope="module")
def bottlenecks():
    torch.manual_seed(8)
    return captured(Bottlenecks(nn.ReLU()), 3, 6, 6)


def test_the_function_stays_as_it_was(bottlenecks, batches):
    equalized = equalize(bottlenecks, read_values(bottlenecks), batches)
    far = 10 * torch.randn(50, 3, 6, 6)
    expected, found = bottlenecks.module()(far)[0], equalized.module()(far)[0]
    assert (found - expected).norm() / expected.norm() < 1e-5
    changed = [name for name, value in equalized.parameters.items() if value is not bottlenecks.parameters[name]]
    assert "blocks.1.4.bias" in changed
    assert "head.bias" not in changed


def test_a_stage_with_its_residual_sums_is_one_group(bottlenecks):
    chain = next(group for group in groups(bottlenecks) if "add_0" in group.axis)
    assert set(chain.axis) == {"conv2d_0", "conv2d_3", "add_0", "conv2d_6", "add_1", "mean_0"}
    assert [node.name for node in chain.producers] == ["conv2d_0", "conv2d_3", "conv2d_6"]
    assert {node.name for node in chain.consumers} == {"conv2d_1", "conv2d_4", "linear_0"}


def test_quiet_channels_are_scaled_up_and_the_loudest_stays_the_loudest(bottlenecks, batches):
    before = channel_extent(bottlenecks, "add_0", batches)
    after = channel_extent(equalize(bottlenecks, read_values(bottlenecks), batches), "add_0", batches)
    assert before.max() / before.min() > 100
    assert after.max() / after.min() < before.max() / before.min() / 10
    assert after.max() == pytest.approx(before.max().item())


def test_a_relu6_keeps_its_function_up_to_the_headroom(batches):
    torch.manual_seed(9)
    graph = captured(Bottlenecks(nn.ReLU6()), 3, 6, 6)
    equalized = equalize(graph, read_values(graph), batches)
    assert not torch.equal(graph.parameters["blocks.0.2.weight"], equalized.parameters["blocks.0.2.weight"])
    for (batch,) in batches:
        expected, found = graph.module()(batch)[0], equalized.module()(batch)[0]
        assert (found - expected).norm() / expected.norm() < 1e-5


def test_a_relu6_channel_near_its_ceiling_stays_and_others_go_only_below_it():
    module = nn.Sequential(convolution(3, 3), nn.ReLU6(), convolution(3, 3, 3, 3), nn.ReLU(), convolution(3, 2))
    with torch.no_grad():
        module[0].weight.copy_(torch.diag(torch.tensor([7.0, 0.3, 0.0]))[:, :, None, None])
        module[0].bias.zero_()
    graph = captured(module, 3, 4, 4)
    equalized = equalize(graph, ["hardtanh_0"], [(torch.ones(2, 3, 4, 4),)])
    diagonal = equalized.parameters["0.weight"][range(3), range(3), 0, 0]
    # 7 is cut off, 0.3 may go to half of the ceiling, and a dead channel has nothing to scale.
    assert diagonal.tolist() == pytest.approx([7.0, 6.0 / HEADROOM, 0.0])
    torch.testing.assert_close(
        equalized.parameters["2.weight"][1], graph.parameters["2.weight"][1] * 0.3 / (6.0 / HEADROOM)
    )


def test_a_dead_channel_and_constant_data_are_left_as_they_are(bottlenecks):
    parameters = {name: torch.zeros_like(value) for name, value in bottlenecks.parameters.items()}
    dead = replace(bottlenecks, parameters=parameters)
    equalized = equalize(dead, read_values(dead), [(torch.zeros(1, 3, 6, 6),)])
    assert all(torch.equal(equalized.parameters[name], value) for name, value in parameters.items())


def test_a_grouped_convolution_divides_the_inputs_of_each_group(batches):
    torch.manual_seed(10)
    module = nn.Sequential(convolution(3, 8), nn.ReLU(), convolution(8, 4, 3, 2), nn.Flatten(), nn.Linear(144, 2))
    with torch.no_grad():
        module[0].weight.mul_(torch.logspace(-2, 1, 8).reshape(-1, 1, 1, 1))
        module[0].bias.zero_()
    graph = captured(module, 3, 6, 6)
    equalized = equalize(graph, ["relu_0"], batches)
    assert not torch.equal(graph.parameters["2.weight"], equalized.parameters["2.weight"])
    expected, found = graph.module()(batches[0][0])[0], equalized.module()(batches[0][0])[0]
    assert (found - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.last(torch.sigmoid(m.first(x))),
        lambda m, x: m.last(torch.cat([m.first(x), x], 1)[:, :3]),
        lambda m, x: m.last((first := m.first(x)).relu()) + first.mean(),
        lambda m, x: (m.last(first := m.first(x)), first),
        lambda m, x: m.last(nn.functional.hardtanh(m.first(x))),
        lambda m, x: m.last(m.first(m.first(x))),
        lambda m, x: m.last(m.first(x) + x),
        lambda m, x: m.last(m.first(x) + 1.0),
        lambda m, x: m.last(m.first(x).mean(1, keepdim=True).expand(-1, 3, -1, -1)),
        lambda m, x: m.last(torch.cat([m.first(x)])),
    ],
    ids=["sigmoid", "cat", "read_elsewhere", "output", "hardtanh", "shared", "input", "constant", "mean", "tuple"],
)
def test_what_does_not_commute_with_a_scale_is_left(function, batches):
    graph = captured(Wrapped(function, first=convolution(3, 3), last=convolution(3, 2)), 3, 6, 6)
    assert list(groups(graph)) == []


def test_a_transformer_has_nothing_to_equalize(tied_graph):
    assert list(groups(tied_graph)) == []


def test_nan_names_the_value(bottlenecks):
    with pytest.raises(ValueError, match="NaN or infinity at 'conv2d_0'"):
        equalize(bottlenecks, read_values(bottlenecks), [(torch.full((2, 3, 6, 6), float("nan")),)])


def test_without_data_it_is_one_sentence(bottlenecks):
    with pytest.raises(ValueError, match="needs calibration data"):
        equalize(bottlenecks, read_values(bottlenecks), [])
