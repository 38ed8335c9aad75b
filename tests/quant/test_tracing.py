import inspect
from dataclasses import replace

import pytest
import torch
from torch import nn

import quant
from quant.nodes import Node


def test_folded_batch_norms_leave_the_function_unchanged(residual_module, residual_graph):
    image = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        expected = residual_module.double()(image.double())
        residual_module.float()
        (found,) = residual_graph.module()(image)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    operators = [node.operator for node in residual_graph.graphs["forward"].nodes]
    assert not any("batch_norm" in operator for operator in operators)
    assert {"stem.0.bias", "up.bias"} <= residual_graph.parameters.keys()
    assert not any("running" in name for name in residual_graph.parameters)


def test_a_batch_norm_whose_convolution_has_another_user_stays():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm = nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2)

        def forward(self, x):
            y = self.convolution(x)
            return self.norm(y) + y

    module = Shared().eval()
    graph = quant.capture(module, (torch.randn(2, 2, 4),))
    x = torch.randn(3, 2, 4)
    assert any("batch_norm" in node.operator for node in graph.graphs["forward"].nodes)
    torch.testing.assert_close(graph.module()(x)[0], module(x))


def test_batch_and_sequence_stay_open(tied_module, tied_graph):
    for shape in ((1, 3), (4, 10)):
        tokens = torch.randint(0, 40, shape)
        torch.testing.assert_close(tied_graph.module()(tokens)[0], tied_module(tokens))


def test_tied_weights_are_one_parameter_with_two_consumers(tied_graph):
    consumers = tied_graph.quantizable()["embedding.weight"]
    assert [operator.kind for _, operator in consumers] == ["embedding", "linear"]
    assert "head.weight" not in tied_graph.parameters


def test_a_sliced_parameter_is_not_quantizable(tied_graph):
    assert "positions" in tied_graph.parameters
    assert "positions" not in tied_graph.quantizable()


def test_exporting_again_keeps_every_name(residual_graph):
    program = residual_graph.export()
    names = [node.name for node in program.graph.nodes if node.op == "call_function"]
    assert names == [node.name for node in residual_graph.graphs["forward"].nodes]
    assert set(program.state_dict) == set(residual_graph.parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
@pytest.mark.parametrize(("times", "axis"), [(1, -1), (2, 1), (1, 2)])
def test_differences_are_captured_as_subtractions(dtype, times, axis):
    class Differences(nn.Module):
        def forward(self, x):
            first = x.narrow(axis, 0, 1)
            return torch.diff(x, times, axis, prepend=first, append=first).float()

    x = torch.randint(0, 2 if dtype == torch.bool else 9, (2, 5, 4)).to(dtype)
    graph = quant.capture(Differences().eval(), (x,))
    assert not any("diff" in node.operator for node in graph.graphs["forward"].nodes)
    torch.testing.assert_close(graph.module()(x)[0], Differences()(x))


def test_calls_know_the_line_that_makes_them():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm, self.lstm = nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.LSTM(4, 4, 2)

        def forward(self, x):
            x = self.norm(self.convolution(x))
            return torch.tanh(self.lstm(x.transpose(1, 2))[0])

    first = inspect.getsourcelines(Net.forward)[1]
    graph = quant.capture(Net().eval(), (torch.randn(2, 3, 9),)).graphs["forward"]
    lines = {node.operator: node.source for node in graph.nodes}
    assert lines["aten.conv1d.default"] == f"{__file__}:{first + 1}"
    assert lines["aten.lstm.input"] == lines["aten.tanh.default"] == f"{__file__}:{first + 2}"
    assert graph.by_name["tanh_0"].place == f"node 'tanh_0', {__file__}:{first + 2}"


def test_the_line_of_a_call_is_no_part_of_it():
    node = Node("a", "aten.relu.default", (), {}, "model.py:1")
    assert node == replace(node, source="model.py:2")
    assert repr(node) == repr(replace(node, source=None))


def test_an_lstm_stays_one_node():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 6, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    module = Recurrent().eval()
    graph = quant.capture(module, (torch.randn(2, 5, 4),))
    assert [node.operator for node in graph.graphs["forward"].nodes].count("aten.lstm.input") == 1
    x = torch.randn(3, 5, 4)
    torch.testing.assert_close(graph.module()(x)[0], module(x))


def test_a_module_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"call \.eval\(\)"):
        quant.capture(nn.Linear(2, 2), (torch.randn(2, 2),))


def test_an_example_with_a_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        quant.capture(nn.Linear(2, 2).eval(), (torch.randn(1, 2),))


def test_multiply_accumulates_are_those_of_the_textbook(residual_graph):
    graph = residual_graph.graphs["forward"]
    macs = [residual_graph.macs("forward", node) for node in graph.nodes]
    stem, branch, depthwise = 64 * 8 * 27, 64 * 8 * 72, 64 * 8 * 9
    transposed = 64 * 8 * 3 * 4
    assert [count for count in macs if count] == [stem, branch, depthwise, transposed, 6 * 16, 16 * 5]


class Convolved(nn.Module):
    """A convolution and a batch norm after it, whose statistics are those of something."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.last = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(6, 2, 1)
        self.bias = nn.Parameter(torch.randn(3, 1, 1))
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)


class JoinedWithItsNorm(Convolved):
    def forward(self, x):
        plain = self.convolution(x)
        return self.last(torch.cat([plain, self.norm(plain)], 1))


class GivenBesideItsNorm(Convolved):
    def forward(self, x):
        plain = self.convolution(x)
        return self.norm(plain), plain


class CalledTwice(Convolved):
    def forward(self, x):
        return self.norm(self.convolution(x)) + self.convolution(2 * x)


class BesideABiasOfTheSameName(Convolved):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 1, 1))

    def forward(self, x):
        return self.norm(nn.functional.conv2d(x, self.weight)) + self.bias


@pytest.mark.parametrize("kind", [JoinedWithItsNorm, GivenBesideItsNorm, CalledTwice, BesideABiasOfTheSameName])
def test_a_norm_is_folded_only_where_nothing_else_would_see_it(kind):
    module, x = kind().eval(), torch.randn(2, 3, 4, 4)
    expected, found = module(x), quant.capture(module, (x,)).module()(x)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


class Unquantizable(nn.Module):
    """Layers that no method quantizes: their work counts all the same."""

    def __init__(self):
        super().__init__()
        self.gru, self.bilinear = nn.GRU(4, 8, batch_first=True), nn.Bilinear(8, 8, 5)

    def forward(self, x):
        last = self.gru(x)[0][:, -1]
        return self.bilinear(last, last)


def test_the_work_of_what_no_method_quantizes_counts():
    graph = quant.capture(Unquantizable().eval(), (torch.randn(2, 6, 4),))
    macs = {node.operator: graph.macs("forward", node) for node in graph.graphs["forward"].nodes}
    assert macs["aten.gru.input"] == 6 * 3 * 8 * (4 + 8)
    assert macs["aten.bilinear.default"] == 5 * 8 * 8


def test_a_transformer_layer_of_torch_is_captured():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    graph = quant.capture(layer, (torch.randn(2, 5, 16),))
    x = torch.randn(3, 5, 16)
    torch.testing.assert_close(graph.module()(x)[0], layer(x), rtol=1e-5, atol=1e-5)


def test_a_view_of_permuted_values_is_captured():
    class Permuted(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 1).reshape(x.shape[0], -1) + 1

    module = Permuted().eval()
    graph = quant.capture(module, (torch.randn(2, 3, 4),))
    x = torch.randn(5, 3, 4)
    assert torch.equal(graph.module()(x)[0], module(x))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_padding_by_word_becomes_padding_by_number(padding, dilation):
    module = nn.Conv2d(2, 4, (3, 5), padding=padding, dilation=dilation).eval()
    graph = quant.capture(module, (torch.randn(2, 2, 16, 16),))
    x = torch.randn(3, 2, 16, 16)
    torch.testing.assert_close(graph.module()(x)[0], module(x))
    assert list(graph.quantizable()) == ["weight"]


def test_same_padding_of_an_even_kernel_is_kept_as_it_is():
    module = nn.Conv1d(2, 4, 4, padding="same").eval()
    graph = quant.capture(module, (torch.randn(2, 2, 16),))
    x = torch.randn(3, 2, 16)
    torch.testing.assert_close(graph.module()(x)[0], module(x))


def test_operators_of_python_are_captured_under_their_usual_names():
    class Both(nn.Module):
        def forward(self, x):
            return torch.where((x > 0) & (x < 1) | (x > 2) ^ (x > 3), x, 0.0)

    x = torch.linspace(-1, 4, 12).reshape(2, 6)
    graph = quant.capture(Both().eval(), (x,))
    operators = {node.operator for node in graph.graphs["forward"].nodes}
    assert {f"aten.bitwise_{word}.Tensor" for word in ("and", "or", "xor")} <= operators
    torch.testing.assert_close(graph.module()(x)[0], Both()(x))
