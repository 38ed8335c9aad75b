import json
import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnx

from quant.backends import _onnx_coverage, _onnx_template, onnxruntime, target
from quant.backends._onnx_session import open_session
from quant.backends._onnx_weights import channel_scale
from quant.graph import ActivationQuantizer, QuantizedModel, simulate
from quant.methods import quantize
from quant.scheme import DYNAMIC_WORDS, NumberFormat, parse
from quant.tensor import quantize as quantize_tensor
from quant.tracing import capture

CODEBOOKS = [
    *(("rtn", word) for word in ("nf4", "nf4_g16", "e4m3", "e5m2", "mxfp8", "mxfp4", "nvfp4")),
    *(("palette", word) for word in ("lut2", "lut3", "lut6", "lut8")),
    ("palette_grouped", "lut4"),
]
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT_ONLY = ("int8", "int6", "int5", "int4", "int3", "int2", "int4_sym", "int3_channel", "int8_tensor", "int4_g8")


class Text(nn.Module):
    """Tied embedding and head, a layer used twice, groups that do not divide, a dead channel, two results."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(2000, 64)
        self.position = nn.Parameter(torch.randn(9, 64, generator=GENERATOR))
        self.hidden = nn.Linear(64, 80)
        self.norm = nn.LayerNorm(80)
        self.back = nn.Linear(40, 64, bias=False)
        with torch.no_grad():
            self.hidden.weight[3] = 0

    def forward(self, tokens):
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        first, second = F.gelu(self.norm(self.hidden(x))).unflatten(-1, (2, 40)).unbind(-2)
        x = x + self.back(first) + self.back(second)
        return F.linear(x, self.embedding.weight)


class Image(nn.Module):
    """Plain, depthwise, transposed and one-dimensional convolutions, dead channels, a residual sum, a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.last = nn.Conv2d(16, 16, 1)
        self.up = nn.ConvTranspose2d(16, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.along = nn.Conv1d(6, 8, 5, stride=2, padding=2)
        self.back = nn.ConvTranspose1d(8, 6, 4, stride=2, padding=1)
        self.head = nn.Linear(6, 5)
        with torch.no_grad():
            self.stem.weight[2] = 0
            self.depthwise.weight[4] = 0
            self.depthwise.bias[4] = 0.7

    def forward(self, image):
        x = F.hardtanh(self.norm(self.stem(image)), 0, 6)
        x = x + self.pointwise(F.hardtanh(self.depthwise(x), 0, 6))
        x = F.relu(self.up(self.last(x)))
        x = self.back(F.relu(self.along(x.flatten(2))))
        return self.head(x.mean(2))


def tokens(batch=2, length=7):
    return torch.randint(0, 2000, (batch, length), generator=GENERATOR)


def image(batch=2):
    return torch.randn(batch, 3, 12, 12, generator=GENERATOR)


class Workbench:
    """A captured module with its template; compiles tables and compares what they give."""

    def __init__(self, module, example, dynamic_axes, folder):
        torch.manual_seed(0)
        self.graph = capture(module.eval(), (example,), dynamic_axes)
        self.template, self.folder = folder / "template", folder
        self.template.mkdir()
        onnxruntime.template(self.graph, self.template)

    def load(self, quantized):
        folder = self.folder / str(len(list(self.folder.iterdir())))
        folder.mkdir()
        onnxruntime.compile(quantized, self.template, folder)
        return onnxruntime.load(folder)

    def quantize(self, method, bits, example):
        return quantize(self.graph, method, bits, [(example,)], "tensor")

    def parity(self, quantized, example):
        executable = self.load(quantized)
        with torch.inference_mode():
            expected = simulate(quantized)(example)[0].numpy()
        return executable, error(executable(example.numpy())[0], expected)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return Workbench(Text(), tokens(), ({0: "batch", 1: "length"},), tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    return Workbench(Image(), image(), None, tmp_path_factory.mktemp("picture"))


def error(result, expected):
    return np.linalg.norm(result - expected) / np.linalg.norm(expected)


def optimized_operators(executable, tmp_path):
    path = tmp_path / "optimized.onnx"
    open_session(executable.path, optimized_model_filepath=str(path))
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def _metadata(executable):
    return open_session(executable.path).get_modelmeta().custom_metadata_map[_onnx_coverage.KEY]


def test_is_found_without_being_imported():
    found = target("onnxruntime")
    assert found.constant("DYNAMIC_GRANULARITY") == "tensor"
    assert "int4" in found.constant("EXECUTES")["weight_only"]
    assert found.missing() is None


@pytest.mark.parametrize("bits", WEIGHT_ONLY)
def test_weight_only_text_means_what_the_tables_mean(text, bits):
    example = tokens()
    _, difference = text.parity(text.quantize("rtn", bits, example), example)
    assert difference < 1e-5


@pytest.mark.parametrize("bits", WEIGHT_ONLY)
def test_weight_only_images_mean_what_the_tables_mean(picture, bits):
    example = image()
    _, difference = picture.parity(picture.quantize("rtn", bits, example), example)
    assert difference < 1e-5


@pytest.mark.parametrize("bench", ["text", "picture"])
@pytest.mark.parametrize(("method", "bits"), CODEBOOKS)
def test_codebooks_mean_what_the_tables_mean(request, bench, method, bits):
    bench, example = request.getfixturevalue(bench), tokens() if bench == "text" else image()
    executable, difference = bench.parity(bench.quantize(method, bits, example), example)
    assert difference < 1e-5
    assert executable.coverage()["notes"] == []


def test_codebooks_are_stored_in_their_codes(text):
    float_bytes = text.load(text.quantize("float", "fp32", tokens())).size_bytes
    for method, bits, largest in (("rtn", "mxfp4", 0.17), ("rtn", "mxfp8", 0.3), ("palette_grouped", "lut4", 0.19)):
        executable = text.load(text.quantize(method, bits, tokens()))
        assert executable.size_bytes < largest * float_bytes
        assert executable.evidence == "simulated"


def test_normal_floats_run_on_their_kernel_where_their_blocks_fill_rows(text, tmp_path):
    quantized = text.quantize("rtn", "nf4", tokens())
    executable = text.load(quantized)
    operators = optimized_operators(executable, tmp_path)
    assert operators["MatMulBnb4"] == 2  # of 64 columns; those of 40 are simulated
    work = {name: macs for name, macs, _ in json.loads(_metadata(executable))["operators"]}
    native = work["hidden.weight"] + work["embedding.weight"]
    assert executable.coverage()["operators_native"] == pytest.approx(native / (native + 2 * work["back.weight"]))
    tables = quantized.graph.parameter_count * quantized.bits_per_weight / 8
    assert executable.size_bytes < tables + 20_000  # the tied embedding and head are stored once


def test_four_bit_weights_run_with_eight_bit_activations(text, tmp_path):
    example = tokens()
    quantized = text.quantize("dynamic", "w4a8", example)
    executable, difference = text.parity(quantized, example)
    assert difference < 2e-3
    assert optimized_operators(executable, tmp_path)["MatMulNBits"] == 4
    assert executable.coverage() == {"operators_native": 1.0, "operators_simulated": 0.0, "notes": []}
    weight_only = QuantizedModel(quantized.graph, quantized.scheme, quantized.weights)
    assert text.parity(weight_only, example)[1] < 1e-5
    with torch.inference_mode():
        apart = error(simulate(weight_only)(example)[0].numpy(), simulate(quantized)(example)[0].numpy())
    assert apart > 2 * difference  # what the rounding of activations changes, the kernel changes alike


@pytest.mark.parametrize("columns", [10, 24, 200])
def test_a_layer_rounds_its_activations_as_the_tables_say(columns, tmp_path):
    torch.manual_seed(columns)
    example = torch.randn(3, columns) * torch.logspace(-1, 1, columns)
    bench = Workbench(nn.Linear(columns, 8), example, None, tmp_path)
    assert bench.parity(bench.quantize("dynamic", "w4a8", example), example)[1] < 1e-5


def test_groups_no_kernel_has_are_refused(text):
    quantized = text.quantize("dynamic", "w4a8", tokens())
    other = {
        edge: replace(quantizer, format=replace(quantizer.format, group_size=16))
        for edge, quantizer in quantized.activations.items()
    }
    with pytest.raises(ValueError, match="no kernel that quantizes the input of 'linear_"):
        text.load(replace(quantized, activations=other))


def test_one_sample_and_another_length(text):
    quantized = text.quantize("rtn", "int4", tokens())
    assert text.parity(quantized, tokens(1, 3))[1] < 1e-5
    assert text.parity(quantized, tokens(5, 9))[1] < 1e-5


def test_weight_only_runs_on_block_wise_kernels(text, tmp_path):
    executable = text.load(text.quantize("rtn", "int4", tokens()))
    operators = optimized_operators(executable, tmp_path)
    assert operators["MatMulNBits"] == 4
    assert operators["GatherBlockQuantized"] == 1
    assert "MatMul" not in operators
    assert executable.coverage() == {"operators_native": 1.0, "operators_simulated": 0.0, "notes": []}
    assert executable.evidence == "measured"


def test_weights_no_kernel_can_express_are_simulated(text):
    executable = text.load(text.quantize("rtn", "int4_g8", tokens()))
    assert executable.coverage() == {"operators_native": 0.0, "operators_simulated": 1.0, "notes": []}
    assert executable.evidence == "simulated"


def test_weight_only_convolutions_are_simulated_and_the_classifier_is_not(picture):
    coverage = picture.load(picture.quantize("rtn", "int4", image())).coverage()
    forward = picture.graph.graphs["forward"]
    macs = {node.operator: picture.graph.macs("forward", node) for node in forward.nodes}
    total = sum(picture.graph.macs("forward", node) for node in forward.nodes)
    assert coverage["operators_native"] == pytest.approx(macs["aten.linear.default"] / total)
    assert coverage["operators_simulated"] == pytest.approx(1 - coverage["operators_native"])


def test_tied_weights_are_stored_once_and_packed(text):
    quantized = text.quantize("rtn", "int4", tokens())
    tables = quantized.graph.parameter_count * quantized.bits_per_weight / 8
    assert tables < text.load(quantized).size_bytes < 1.2 * tables


def test_static_convolutions_stay_in_integers(picture, tmp_path):
    example = image()
    executable, difference = picture.parity(picture.quantize("static", "int8", example), example)
    operators = optimized_operators(executable, tmp_path)
    assert operators["QLinearConv"] == 5
    assert operators["QLinearAdd"] == 1
    assert operators["QGemm"] == 1
    assert not {"Clip", "FusedConv", "Add", "Gemm"} & set(operators)
    assert difference < 5e-3
    coverage = executable.coverage()
    assert 0.5 < coverage["operators_native"] < 1
    assert coverage["operators_native"] + coverage["operators_simulated"] == pytest.approx(1)


def test_a_dead_channel_keeps_its_bias_in_static_mode(tmp_path):
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
            with torch.no_grad():
                self.first.weight[4], self.first.bias[4] = 0, 0.3
                self.second.weight[:], self.second.bias[:] = torch.eye(8)[..., None, None], 0

        def forward(self, image):
            return self.second(self.first(image))

    example = image()
    bench = Workbench(Dead(), example, None, tmp_path)
    result = bench.load(bench.quantize("static", "int8", example))(example.numpy())[0]
    assert np.abs(result[:, 4] - 0.3).max() < 0.02


def test_a_dead_weight_has_a_scale_that_keeps_its_bias():
    format = NumberFormat(8, symmetric=True, granularity="channel", scale_dtype="float32")
    assert channel_scale(quantize_tensor(torch.zeros(3, 5), format, (1, 5))).max() < 1e-3
    half_dead = torch.tensor([[0.0, 0.0], [1.27, 0.1]])
    np.testing.assert_allclose(channel_scale(quantize_tensor(half_dead, format, (1, 2))), 0.01)


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_w8a8_linear_layers_run_on_integer_kernels(text, method, tmp_path):
    example = tokens()
    executable, difference = text.parity(text.quantize(method, "int8", example), example)
    operators = optimized_operators(executable, tmp_path)
    assert operators["MatMulIntegerToFloat"] + operators["DynamicQuantizeMatMul"] == 4
    assert difference < 2e-2
    assert executable.coverage()["operators_native"] == 1


def test_dynamic_scales_follow_the_data(text):
    quantized = text.quantize("dynamic", "int8", tokens())
    assert text.parity(quantized, tokens(1, 1))[1] < 2e-2


@pytest.mark.parametrize("mode", ["static", "dynamic", "none"])
def test_input_scales_multiply_what_is_quantized(text, mode):
    example = tokens()
    quantized = text.quantize("dynamic" if mode == "dynamic" else "static", "int8", example)
    edge = next(edge for edge in quantized.activations if edge[1] == "linear_0")
    channels = torch.linspace(0.5, 2, 64)
    name = quantized.graph.node(edge).arguments[1].name
    weight = quantize_tensor(quantized.graph.parameters[name] / channels, quantized.weights[name].format, (1, 64))
    scaled = replace(quantized.activations[edge], mode=mode, input_scale=channels)
    tables = {**quantized.activations, edge: scaled}
    changed = replace(quantized, weights={**quantized.weights, name: weight}, activations=tables)
    _, difference = text.parity(changed, example)
    assert difference < 2e-2


def test_run_time_quantized_convolutions_are_simulated(picture):
    example = image()
    quantized = picture.quantize("rtn", "int8", example)
    format = parse("int8", "dynamic", "tensor").activations
    tables = {("forward", "conv2d_0", 0): ActivationQuantizer("dynamic", format)}
    executable, difference = picture.parity(replace(quantized, activations=tables), example)
    assert difference < 2e-2
    assert executable.coverage()["operators_simulated"] > 0.99


def test_half_precision_is_stored_and_not_computed(text):
    example = tokens()
    executable, difference = text.parity(text.quantize("float", "fp16", example), example)
    assert difference < 1e-5
    assert executable.evidence == "simulated"
    assert executable.size_bytes < text.load(text.quantize("float", "fp32", example)).size_bytes * 0.75


def test_float_is_the_float_model(text):
    example = tokens()
    executable = text.load(text.quantize("float", "fp32", example))
    with torch.inference_mode():
        expected = text.graph.module()(example)[0].numpy()
    assert error(executable(example.numpy())[0], expected) < 1e-5
    assert executable.coverage() == {"operators_native": 0.0, "operators_simulated": 0.0, "notes": []}
    assert executable.evidence == "measured"
    assert executable.untimed_reason is None


def test_replaced_floats_are_used(text):
    example = tokens()
    bias = {"hidden.bias": torch.full((80,), 3.0), "position": torch.zeros(9, 64)}
    _, difference = text.parity(replace(text.quantize("rtn", "int4", example), floats=bias), example)
    assert difference < 1e-5


def test_a_corrected_bias_is_used_in_integer_convolutions(picture):
    example = image()
    quantized = replace(picture.quantize("static", "int8", example), floats={"pointwise.bias": torch.ones(16)})
    assert picture.parity(quantized, example)[1] < 5e-3


def test_weights_beyond_one_file_lie_beside_it(text, monkeypatch):
    example = tokens()
    single = text.load(text.quantize("float", "fp32", example))
    monkeypatch.setattr(_onnx_template, "_LARGEST_SINGLE_FILE", 100)
    split = text.load(text.quantize("float", "fp32", example))
    assert split.size_bytes > split.path.stat().st_size
    np.testing.assert_array_equal(split(example.numpy())[0], single(example.numpy())[0])
    assert split.coverage() == single.coverage()


def test_a_quantized_parameter_that_is_sliced_is_simulated(text):
    format = NumberFormat(8, symmetric=True, granularity="channel")
    weights = {"position": quantize_tensor(text.graph.parameters["position"], format, (1, 64))}
    _, difference = text.parity(QuantizedModel(text.graph, parse("int8"), weights), tokens())
    assert difference < 1e-5


def test_a_table_entry_without_target_is_an_error(text):
    format = parse("int8", "dynamic", "tensor").activations
    tables = {("forward", "slice_0", 0): ActivationQuantizer("dynamic", format)}
    with pytest.raises(ValueError, match="'slice_0' has no counterpart in the ONNX model"):
        text.load(QuantizedModel(text.graph, parse("int8", "dynamic"), activations=tables))


def test_an_unused_weight_is_an_error(text):
    graph = replace(text.graph, parameters={**text.graph.parameters, "ghost": torch.ones(4, 32)})
    weights = {"ghost": quantize_tensor(torch.ones(4, 32), parse("int4").linear, (1, 32))}
    with pytest.raises(ValueError, match="'ghost' has no counterpart in the ONNX model"):
        text.load(QuantizedModel(graph, parse("int4"), weights))


@pytest.mark.parametrize("word", DYNAMIC_WORDS)
def test_inputs_quantized_at_run_time_are_multiplied_in_integers(text, word, tmp_path):
    executable, difference = text.parity(text.quantize("dynamic", word, tokens()), tokens())
    assert difference < 2e-2
    operators = optimized_operators(executable, tmp_path)
    assert operators["MatMulIntegerToFloat"] + operators["DynamicQuantizeMatMul"] == 4
    assert executable.evidence == "measured"


def test_activations_of_fewer_bits_found_at_run_time_are_refused(text):
    quantized = text.quantize("dynamic", "int8_token_sym", tokens())
    narrow = {
        edge: replace(quantizer, format=replace(quantizer.format, bits=4))
        for edge, quantizer in quantized.activations.items()
    }
    with pytest.raises(ValueError, match="use int8 per tensor or per token"):
        text.load(replace(quantized, activations=narrow))


def test_static_activations_of_other_widths_are_refused(text):
    quantized = text.quantize("static", "int8", tokens())
    narrow = {
        edge: replace(quantizer, format=replace(quantizer.format, bits=4))
        for edge, quantizer in quantized.activations.items()
    }
    with pytest.raises(ValueError, match="use int8 per tensor"):
        text.load(replace(quantized, activations=narrow))


def test_the_number_of_inputs_is_checked(text):
    executable = text.load(text.quantize("float", "fp32", tokens()))
    with pytest.raises(ValueError, match="takes 1 inputs, not 2"):
        executable(tokens().numpy(), tokens().numpy())


def test_the_template_maps_only_what_it_verified(text):
    template = _onnx_template.read(text.template)
    tensors = {name for name, shape in text.graph.graphs["forward"].shapes.items() if shape is not None}
    assert set(template.values) == tensors
    assert set(template.parameters) == set(text.graph.parameters)


def test_an_export_that_computes_something_else_is_refused(text, monkeypatch, tmp_path, capfd, caplog):
    graph = replace(text.graph, parameters={**text.graph.parameters, "norm.bias": torch.ones(80)})
    model = _onnx_template._export(graph)
    monkeypatch.setattr(_onnx_template, "_export", lambda graph: model)
    with pytest.raises(RuntimeError, match="computes another"):
        onnxruntime.template(text.graph, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
