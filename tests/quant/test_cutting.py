import pytest
import torch
from torch import nn

import quant
from quant.cutting import cut, record, signature, values_read, written_in_integers
from quant.latency import units


@pytest.fixture(scope="module")
def transformer(transformer_graph, transformer_inputs):
    return quant.quantize(transformer_graph, "smoothquant", "int8", [(transformer_inputs,)])


@pytest.fixture(scope="module")
def residual(residual_graph):
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return quant.quantize(residual_graph, "static_plain", "int8", [(images,)])


def examples_of(quantized, nodes):
    graph = quantized.graph
    return record(graph, graph.examples["forward"], {name for node in nodes for name in values_read(node)})


def alone(quantized, nodes, **readers):
    return cut(quantized, nodes, examples_of(quantized, nodes), readers)


def test_an_input_is_recorded_by_its_name_even_where_python_has_a_function_of_it():
    graph = quant.capture(nn.Sequential(nn.Linear(4, 3)).eval(), (torch.randn(2, 4),))
    (values,) = graph.examples["forward"]
    assert record(graph, (values,), {"input"}) == {"input": values}


@pytest.mark.parametrize("kind", ["transformer", "residual"])
def test_an_operator_alone_computes_what_it_does_in_the_model(kind, request):
    quantized = request.getfixturevalue(kind)
    source = quantized.graph.graphs["forward"]
    for unit in units(quantized):
        part = alone(quantized, unit.nodes)
        assert set(part.weights) == set(unit.names)
        inputs = part.graph.examples["forward"]
        given = dict(zip(part.graph.graphs["forward"].inputs, inputs, strict=True))
        for node, found in zip(unit.nodes, quant.simulate(part)(*inputs), strict=True):
            data, weight, *rest = node.arguments
            quantizer = quantized.activations["forward", node.name, 0]
            arguments = [
                quantized.real_parameters()[one.name] if hasattr(one, "name") else one for one in (weight, *rest)
            ]
            operator = getattr(torch.ops.aten, node.operator.split(".")[1])
            expected = operator(quantizer(given[data.name]), *arguments)
            torch.testing.assert_close(found, expected)
            assert list(found.shape) == source.shapes[node.name]


def test_equal_operators_have_one_signature(transformer):
    source = transformer.graph.graphs["forward"]
    of_weight = {node.arguments[1].name: node for node in source.nodes if node.operator == "aten.linear.default"}

    def signature_of(name):
        return signature(alone(transformer, [of_weight[f"{name}.weight"]]))

    assert signature_of("attention.query") == signature_of("attention.key")
    assert signature_of("up") != signature_of("down")
    assert signature_of("up") != signature_of("late_up")  # whose input scale was not folded
    part = alone(transformer, [of_weight["up.weight"]])
    floats = alone(quant.quantize(transformer.graph, "float", "fp32"), [of_weight["up.weight"]])
    assert signature(part) != signature(floats)


def test_a_reader_lets_a_convolution_write_integers(residual):
    writing = written_in_integers(residual)
    kinds = {name: residual.graph.graphs["forward"].by_name[name].operator for name in writing}
    assert len(kinds) == 4
    assert all("conv" in kind for kind in kinds.values())
    name, quantizer = next(iter(writing.items()))
    node = residual.graph.graphs["forward"].by_name[name]
    part = alone(residual, [node], **{name: quantizer})
    inputs = part.graph.examples["forward"]
    (found,) = quant.simulate(part)(*inputs)
    (written,) = quant.simulate(alone(residual, [node]))(*inputs)
    torch.testing.assert_close(found, quantizer(written).relu())


def test_a_value_can_be_read_and_nothing_else(residual):
    value = residual.graph.graphs["forward"].inputs[0]
    graph = residual.graph
    part = cut(residual, [], record(graph, graph.examples["forward"], {value}), {value: None})
    (found,) = quant.simulate(part)(*graph.examples["forward"])
    torch.testing.assert_close(found, graph.examples["forward"][0].relu())
    assert not part.activations


def test_an_lstm_alone_gives_its_states():
    torch.manual_seed(0)

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, values):
            return self.head(self.lstm(values)[0][:, -1])

    module, values = Reader().eval(), torch.randn(2, 7, 6)
    quantized = quant.quantize(quant.capture(module, (values,)), "rtn", "int8")
    (unit,) = [unit for unit in units(quantized) if len(unit.names) == 2]
    part = alone(quantized, unit.nodes)
    with torch.no_grad():
        expected = module.lstm(values)[0]
    (found,) = quant.simulate(part)(*part.graph.examples["forward"])
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
