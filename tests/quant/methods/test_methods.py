import subprocess
import sys

import pytest
import torch
from torch import nn

import quant
from quant.methods import method, methods


def test_methods_are_listed_without_importing_torch(pytestconfig):
    code = "import sys; from quant.methods import methods; methods(); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_core_bits_are_among_the_bits():
    assert all(set(entry.core) <= set(entry.bits) for entry in methods().values())


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean static"):
        method("statik")


def test_a_native_method_has_no_tables(residual_graph):
    with pytest.raises(ValueError, match="runtime's own quantizer"):
        quant.quantize(residual_graph, "native", "int4")


def test_the_recipe_says_how_the_tables_were_made(residual_graph):
    recipe = quant.quantize(residual_graph, "rtn", "int4").recipe
    assert recipe == {"method": "rtn", "bits": "int4", "settings": {}}


def test_rtn_quantizes_every_kind_of_weight(residual_graph, tied_graph):
    quantized = quant.quantize(residual_graph, "rtn", "int4")
    assert {name for name, value in residual_graph.parameters.items() if value.ndim > 1} == set(quantized.weights)
    # [in, out / groups, kernel, kernel] of a transposed convolution: one scale for each output channel.
    assert quantized.weights["up.weight"].scale.shape == (2, 3, 1, 1)
    assert quantized.weights["depthwise.weight"].scale.shape == (8, 1, 1, 1)
    assert quant.quantize(tied_graph, "rtn", "int4").weights["embedding.weight"].scale.shape == (40, 1)


def test_a_transposed_convolution_is_scaled_per_output_channel(residual_graph):
    weight = residual_graph.parameters["up.weight"]
    quantized = quant.quantize(residual_graph, "rtn", "int8").weights["up.weight"]
    for group in range(2):
        for channel in range(3):
            largest = weight[group * 4 : group * 4 + 4, channel].abs().max()
            assert quantized.scale[group, channel, 0, 0] == pytest.approx(float(largest) / 127, rel=2e-3)


def test_fewer_bits_are_never_closer(residual_graph):
    image = torch.randn(16, 3, 8, 8)
    expected = residual_graph.module()(image)[0]
    errors = [
        (quant.simulate(quant.quantize(residual_graph, "rtn", bits))(image)[0] - expected).norm()
        for bits in ("int8", "int6", "int4", "int2")
    ]
    assert errors == sorted(errors)


def test_a_nan_weight_is_named():
    module = nn.Linear(4, 4).eval()
    nn.init.constant_(module.weight, float("nan"))
    graph = quant.capture(nn.Sequential(module).eval(), (torch.randn(2, 4),))
    with pytest.raises(ValueError, match=r"'0\.weight' holds NaN"):
        quant.quantize(graph, "rtn", "int4")


def test_half_precision_that_overflows_is_named():
    module = nn.Linear(4, 4).eval()
    nn.init.constant_(module.bias, 1e6)
    graph = quant.capture(module, (torch.randn(2, 4),))
    with pytest.raises(ValueError, match="'bias' does not fit float16"):
        quant.quantize(graph, "float", "fp16")
    assert quant.quantize(graph, "float", "bf16").floats["bias"].dtype == torch.bfloat16


def test_static_keeps_the_convolutional_path_in_integers(residual_graph):
    quantized = quant.quantize(residual_graph, "static", "int8", [(torch.randn(8, 3, 8, 8),)])
    assert ("forward", "add_0", 0) in quantized.activations
    assert ("forward", "add_0", 1) in quantized.activations
    relu_zero_points = [
        quantized.activations["forward", node, 0].zero_point.item() for node in ("conv2d_1", "linear_1")
    ]
    assert relu_zero_points == [0, 0]


def test_static_leaves_a_residual_stream_that_never_is_integer_alone(tied_graph):
    quantized = quant.quantize(tied_graph, "static", "int8", [(torch.randint(0, 40, (4, 7)),)])
    assert {edge[1].rpartition("_")[0] for edge in quantized.activations} == {"linear"}


def test_static_without_calibration_is_one_sentence(residual_graph):
    with pytest.raises(ValueError, match="needs calibration data"):
        quant.quantize(residual_graph, "static", "int8")


def test_one_calibration_sample_is_enough(residual_graph):
    image = torch.randn(1, 3, 8, 8)
    quantized = quant.quantize(residual_graph, "static", "int8", [(image,)])
    assert torch.isfinite(quant.simulate(quantized)(image)[0]).all()


def test_a_constant_activation_keeps_its_value():
    module = nn.Linear(4, 2).eval()
    graph = quant.capture(module, (torch.randn(2, 4),))
    for constant in (0.0, 3.0, -3.0):
        x = torch.full((2, 4), constant)
        found = quant.simulate(quant.quantize(graph, "static", "int8", [(x,)]))(x)[0]
        torch.testing.assert_close(found, module(x), rtol=0.02, atol=0.02)


def test_dynamic_quantizes_linear_and_embedding_only(residual_graph, tied_graph):
    assert set(quant.quantize(residual_graph, "dynamic", "int8").weights) == {"hidden.weight", "head.weight"}
    quantized = quant.quantize(tied_graph, "dynamic", "int8")
    assert set(quantized.weights) == {"embedding.weight", "feed_forward.weight"}
    assert {quantizer.mode for quantizer in quantized.activations.values()} == {"dynamic"}


def test_dynamic_attention_quantizes_values_per_tensor_because_products_sum_over_their_rows(transformer_graph):
    quantized = quant.quantize(transformer_graph, "dynamic_attention", "int8")
    inside = {edge: entry.format for edge, entry in quantized.activations.items() if "attention" in edge[1]}
    assert len(inside) == 8
    assert {str(format) for edge, format in inside.items() if edge[2] == 2} == {"int8 symmetric per tensor"}
    assert {str(format) for edge, format in inside.items() if edge[2] != 2} == {"int8 symmetric per token"}
    plain = quant.quantize(transformer_graph, "dynamic", "int8")
    assert set(quantized.activations) - set(inside) == set(plain.activations)
