from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import quant
from quant.graph import ActivationQuantizer, QuantizedModel, shared_quantizers
from quant.nodes import Graph, Node, Parameter, Value
from quant.scheme import NumberFormat, parse
from quant.tensor import quantize


def test_simulating_two_layers_equals_arithmetic_written_by_hand():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    graph = quant.capture(module, (torch.randn(2, 8),))
    x = torch.randn(4, 8)
    quantized = quant.quantize(graph, "static_plain", "int8", [(x,)])
    hidden = _dequantize(x.double().numpy(), quantized, "linear_0") @ _weight(quantized, "0.weight").T
    hidden = np.maximum(hidden + module[0].bias.detach().double().numpy(), 0)
    expected = _dequantize(hidden, quantized, "linear_1") @ _weight(quantized, "2.weight").T
    expected += module[2].bias.detach().double().numpy()
    np.testing.assert_allclose(quant.simulate(quantized)(x)[0].numpy(), expected, rtol=1e-4, atol=1e-5)


def _dequantize(values, quantized, node):
    quantizer = quantized.activations["forward", node, 0]
    scale, zero = float(quantizer.scale), int(quantizer.zero_point)
    return (np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale


def _weight(quantized, name):
    weight = quantized.weights[name]
    return weight.codes.double().numpy() * weight.scale.double().numpy()


def test_dynamic_per_token_equals_a_row_by_row_oracle():
    quantizer = ActivationQuantizer("dynamic", parse("int8", "dynamic", "token").activations)
    values = torch.randn(3, 5, 16) * torch.tensor([0.01, 1.0, 100.0])[:, None, None]
    for row, found in zip(values.reshape(-1, 16), quantizer(values).reshape(-1, 16), strict=True):
        scale = row.abs().max() / 127
        torch.testing.assert_close(found, torch.round(row / scale) * scale)


@pytest.mark.parametrize("columns", [5, 32, 40, 96])
def test_dynamic_in_groups_equals_a_group_by_group_oracle(columns):
    quantizer = ActivationQuantizer("dynamic", parse("w4a8", "dynamic").activations)
    values = torch.randn(2, 3, columns) * torch.logspace(-2, 2, columns)
    values[1, 2] = 0
    result = quantizer(values)
    for row in np.ndindex(2, 3):
        for start in range(0, columns, 32):
            group = values[row][start : start + 32]
            scale = group.abs().max() / 127
            expected = torch.round(group / scale) * scale if scale > 0 else group
            torch.testing.assert_close(result[row][start : start + 32], expected, rtol=1e-6, atol=0)


def test_dynamic_per_tensor_equals_the_onnx_definition():
    quantizer = ActivationQuantizer("dynamic", parse("int8", "dynamic", "tensor").activations)
    values = torch.rand(4, 6) * 5 + 1
    scale = values.max() / 255
    torch.testing.assert_close(quantizer(values), torch.round(values / scale) * scale)


def test_an_input_scale_multiplies_before_quantizing():
    format = NumberFormat(8, True, "tensor", scale_dtype="float32")
    quantizer = ActivationQuantizer("static", format, torch.tensor(0.5), None, torch.tensor([1.0, 10.0]))
    assert quantizer(torch.tensor([[1.2, 0.12]])).tolist() == [[1.0, 1.0]]


def test_edges_of_one_value_share_a_quantizer_only_if_they_agree(residual_graph):
    quantized = quant.quantize(residual_graph, "static", "int8", [(torch.randn(4, 3, 8, 8),)])
    shared = shared_quantizers(quantized)
    assert max(len(edges) for _, edges in shared) == 2  # the stem feeds the branch and the sum
    edge = next(edges for _, edges in shared if len(edges) == 2)[1]
    other = replace(quantized.activations[edge], scale=torch.tensor(0.123))
    changed = replace(quantized, activations={**quantized.activations, edge: other})
    assert len(shared_quantizers(changed)) == len(shared) + 1


def test_a_table_entry_without_a_target_is_an_error(residual_graph):
    weight = quantize(torch.randn(4, 4), parse("int4").linear, (1, 4))
    with pytest.raises(ValueError, match="'absent' has no target"):
        QuantizedModel(residual_graph, parse("int4"), weights={"absent": weight})
    with pytest.raises(ValueError, match="has no target"):
        QuantizedModel(residual_graph, parse("int4"), activations={("forward", "nowhere_0", 0): None})


def test_replaced_floats_change_what_the_model_means(residual_graph):
    bias = residual_graph.parameters["head.bias"] + 1
    quantized = QuantizedModel(residual_graph, parse("fp32", "float"), floats={"head.bias": bias})
    image = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(quant.simulate(quantized)(image)[0], residual_graph.module()(image)[0] + 1)


def test_bits_per_weight_counts_scales_zero_points_and_what_stays_float(tied_graph):
    quantized = quant.quantize(tied_graph, "rtn", "int4")
    table, linear = 40 * 24, 24 * 24
    groups = 40 + 24
    rest = 10 * 24 + 24 + 24 + 24
    expected = (4 * (table + linear) + groups * (16 + 4) + 32 * rest) / (table + linear + rest)
    assert quantized.bits_per_weight == pytest.approx(expected)
    assert quantized.parameters_quantized == pytest.approx((table + linear) / (table + linear + rest))
    assert quantized.left_float() == ["positions"]


def test_several_graphs_share_one_namespace_of_parameters():
    def graph(name):
        node = Node(f"{name}_0", "aten.linear.default", (Value("x"), Parameter("w")), {})
        return Graph(("x",), (node,), (node.name,), ({0: "batch"},), {"x": [2, 4], node.name: [2, 3]})

    weight, x = torch.randn(3, 4), torch.randn(2, 4)
    model = quant.FloatGraph(
        {name: graph(name) for name in ("prefill", "decode")}, {"w": weight}, {"prefill": (x,), "decode": (x,)}
    )
    assert len(model.consumers("w")) == 2
    quantized = quant.quantize(model, "rtn", "int8")
    assert list(quantized.weights) == ["w"]
    expected = x @ quantized.weights["w"].dequantize().T
    torch.testing.assert_close(quant.simulate(quantized, "decode")(x)[0], expected)
