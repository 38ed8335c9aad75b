"""Models compiled for MLX mean what ``simulate`` means, are small, and say how they were computed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.graph import ActivationQuantizer, QuantizedModel
from quant.methods.rtn import round_weights
from quant.scheme import PALETTE_WORDS, bits_per_weight, parse

mlx = pytest.importorskip("quant.backends.mlx")
_mlx_executable = pytest.importorskip("quant.backends._mlx_executable")
_mlx_weights = pytest.importorskip("quant.backends._mlx_weights")
mx = _mlx_weights.mx

ROUNDED = 3e-4
"""Of quantized activations: a value on the edge between two codes may fall to either side."""

WORDS = [word for word in mlx.EXECUTES["weight_only"] if bits_per_weight(word) is None]


class Language(nn.Module):
    """A tied embedding, a layer whose inputs no group divides, and a channel of zeros."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(50, 64), nn.LayerNorm(64)
        self.wide, self.odd, self.narrow = nn.Linear(64, 40), nn.Linear(40, 96), nn.Linear(96, 64)
        with torch.no_grad():
            self.wide.weight[3] = 0

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = self.norm(x + self.narrow(F.gelu(self.odd(F.silu(self.wide(x))))))
        return F.linear(x, self.embedding.weight)


class Vision(nn.Module):
    """Ordinary, depthwise, grouped and transposed convolutions around a residual."""

    def __init__(self):
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.grouped, self.up = nn.Conv2d(8, 8, 3, 1, 1, groups=2), nn.ConvTranspose2d(8, 6, 2, 2, groups=2)
        self.classify = nn.Linear(6, 4)
        with torch.no_grad():
            self.stem.weight[1] = 0

    def forward(self, x):
        x = F.hardtanh(self.stem(x), 0, 6)
        x = x + self.grouped(F.relu(self.deep(x)))
        return self.classify(F.relu(self.up(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def graphs():
    torch.manual_seed(0)
    return {
        "language": quant.capture(Language().eval(), (torch.arange(12).reshape(2, 6),)),
        "vision": quant.capture(Vision().eval(), (torch.randn(2, 3, 14, 12),)),
    }


@pytest.fixture(scope="module")
def templates(graphs, tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) for name in graphs}
    for name, graph in graphs.items():
        mlx.template(graph, folders[name], "float32")
    return folders


@pytest.fixture(scope="module")
def samples():
    generator = torch.Generator().manual_seed(1)
    return {
        "language": (torch.randint(0, 50, (3, 6), generator=generator),),
        "vision": (torch.randn(3, 3, 14, 12, generator=generator),),
    }


def compiled(quantized, template, folder):
    mlx.compile(quantized, template, folder)
    return mlx.load(folder, 1, None)


def error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def parity(executable, quantized, inputs):
    with torch.inference_mode():
        expected = quant.simulate(quantized)(*inputs)[0].numpy()
    return error(executable(*(value.numpy() for value in inputs))[0], expected)


@pytest.mark.parametrize("model", ["language", "vision"])
@pytest.mark.parametrize("bits", [*WORDS, "int4_sym", "int4_g64", "int3_g48", "int4_channel", "int8_tensor"])
def test_weights_mean_what_simulate_means(graphs, templates, samples, tmp_path, model, bits):
    method = "palette_grouped" if bits in PALETTE_WORDS else "rtn"
    quantized = quant.quantize(graphs[model], method, bits)
    executable = compiled(quantized, templates[model], tmp_path)
    assert parity(executable, quantized, samples[model]) < 1e-5
    assert executable.evidence == "simulated" or mx.default_device() == mx.gpu


@pytest.mark.parametrize("model", ["language", "vision"])
def test_float_is_measured_and_agrees_with_torch(graphs, templates, samples, tmp_path, model):
    quantized = quant.quantize(graphs[model], "float", "fp32")
    executable = compiled(quantized, templates[model], tmp_path)
    assert parity(executable, quantized, samples[model]) < 1e-5
    assert executable.evidence == "measured"
    assert executable.untimed_reason is None
    coverage = executable.coverage()
    assert coverage["operators_native"] == coverage["operators_simulated"] == coverage["parameters_quantized"] == 0


@pytest.mark.parametrize(("bits", "tolerance"), [("fp16", 5e-3), ("bf16", 5e-2)])
@pytest.mark.parametrize("model", ["language", "vision"])
def test_half_precision_is_half_the_size(graphs, templates, samples, tmp_path, model, bits, tolerance):
    quantized = quant.quantize(graphs[model], "float", bits)
    executable = compiled(quantized, templates[model], tmp_path)
    assert parity(executable, quantized, samples[model]) < tolerance
    weights = mx.load(str(tmp_path / "model.safetensors"))
    assert {value.itemsize for value in weights.values()} == {2}


@pytest.mark.parametrize("model", ["language", "vision"])
@pytest.mark.parametrize(("method", "bits"), [("static", "int8"), ("dynamic", "int8"), ("dynamic", "w4a8")])
def test_quantized_activations_mean_what_simulate_means(graphs, templates, samples, tmp_path, model, method, bits):
    quantized = quant.quantize(graphs[model], method, bits, [samples[model]])
    executable = compiled(quantized, templates[model], tmp_path)
    assert quantized.activations
    assert parity(executable, quantized, samples[model]) < ROUNDED
    float_model = replace(quantized, activations={})
    assert parity(executable, float_model, samples[model]) > 2 * parity(executable, quantized, samples[model])
    assert executable.evidence == "simulated"


@pytest.mark.parametrize("mode", ["none", "dynamic"])
@pytest.mark.parametrize("granularity", ["token", "tensor", "group"])
def test_scaled_inputs_of_any_layout(graphs, templates, samples, tmp_path, mode, granularity):
    """The last axis of ATen's order carries the input scale and the tokens, wherever MLX has it."""
    for model, position in (("language", 0), ("vision", 0)):
        graph = graphs[model]
        format = parse("int8", "dynamic", granularity).activations
        if granularity == "group":
            format = replace(parse("w4a8", "dynamic").activations, group_size=5)
        activations = {}
        for edge in [edge for uses in graph.quantizable().values() for edge, operator in uses if operator.data == 0]:
            value = graph.node(edge).arguments[position]
            size = graph.graphs["forward"].shapes[value.name][-1]
            scale = torch.linspace(0.5, 2, size)
            activations[(*edge[:2], 0)] = ActivationQuantizer(
                mode, None if mode == "none" else format, input_scale=scale
            )
        quantized = QuantizedModel(graph, parse("int8", "dynamic"), activations=activations)
        executable = compiled(quantized, templates[model], tmp_path / model)
        assert parity(executable, quantized, samples[model]) < (1e-5 if mode == "none" else ROUNDED)


def test_one_quantizer_of_several_arguments_is_one_entry(graphs, templates, samples, tmp_path):
    quantized = quant.quantize(graphs["vision"], "static", "int8", [samples["vision"]])
    compiled(quantized, templates["vision"], tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())["activations"]
    assert max(len(entry["edges"]) for entry in entries) > 1
    assert sum(len(entry["edges"]) for entry in entries) == len(quantized.activations)


@pytest.mark.parametrize("bits", ["int4", "mxfp4", "mxfp8", "nvfp4"])
def test_packed_weights_give_what_dequantized_ones_give(graphs, templates, samples, tmp_path, bits):
    """What runs on a GPU, run on this device: ``quantized_matmul`` and gathered rows of codes."""
    quantized = quant.quantize(graphs["language"], "rtn", bits)
    executable = compiled(quantized, templates["language"], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    arrays = mx.load(str(tmp_path / "model.safetensors"))
    packed = {
        name: _mlx_weights.decode(entry, arrays, mx.float32)
        for name, entry in config["weights"].items()
        if entry["form"] != "codes"
    }
    assert set(packed) == {"embedding.weight", "wide.weight", "narrow.weight"}
    plain = {name: mx.array(value.numpy()) for name, value in quantized.real_parameters().items()}
    graph = _mlx_executable.graph_from_json(json.loads((tmp_path / "graph.json").read_text()))
    program = _mlx_executable.Program(graph, plain | packed)
    tokens = samples["language"][0].numpy()
    assert error(np.array(program(mx.array(tokens))[0]), executable(tokens)[0]) < 1e-6


@pytest.mark.skipif(shutil.which("g++") is None, reason="MLX compiles for a CPU with g++")
def test_a_program_can_be_compiled_as_it_is_on_a_gpu(graphs, templates, samples, tmp_path):
    quantized = quant.quantize(graphs["language"], "float", "fp32")
    executable = compiled(quantized, templates["language"], tmp_path)
    tokens = samples["language"][0].numpy()
    compiled_outputs = mx.compile(executable._run)(mx.array(tokens))
    assert error(np.array(compiled_outputs[0]), executable(tokens)[0]) < 1e-6


def test_tied_weights_are_stored_once_under_mlx_names(graphs, templates, tmp_path):
    executable = compiled(quant.quantize(graphs["language"], "rtn", "int4"), templates["language"], tmp_path)
    arrays = mx.load(str(tmp_path / "model.safetensors"))
    assert arrays["embedding.weight"].shape == (50, 64 * 4 // 32)
    assert arrays["embedding.scales"].shape == arrays["embedding.biases"].shape == (50, 2)
    assert not any("linear" in name for name in arrays)
    assert executable.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_coverage_is_weighted_by_the_work_of_quantized_operators(graphs, templates, tmp_path):
    graph = graphs["language"]
    weights = round_weights(graph, parse("int4"))
    del weights["odd.weight"]
    executable = compiled(QuantizedModel(graph, parse("int4"), weights), templates["language"], tmp_path)
    if mx.default_device() == mx.cpu:
        assert executable.coverage()["operators_native"] == 0
    work = {"wide": 64 * 40, "odd": 40 * 96, "narrow": 96 * 64, "head": 64 * 50}
    coverage = executable.coverage()
    total = coverage["operators_native"] + coverage["operators_simulated"]
    assert total == pytest.approx(1 - work["odd"] / sum(work.values()))
    quantized = 50 * 64 + 64 * 40 + 96 * 64
    assert coverage["parameters_quantized"] == pytest.approx(quantized / graph.parameter_count)
    assert all(isinstance(note, str) for note in coverage["notes"])
    json.dumps(coverage)


@pytest.mark.parametrize("bits", [4, 8])
def test_native_codes_are_those_of_mlx(graphs, templates, samples, tmp_path, bits):
    mlx.compile_native("native", f"int{bits}", templates["language"], tmp_path, [])
    executable = mlx.load(tmp_path, 1, None)
    arrays = mx.load(str(tmp_path / "model.safetensors"))
    parameters = dict(graphs["language"].parameters)
    for name in ("embedding", "wide"):
        weight = mx.array(parameters[f"{name}.weight"].numpy())
        codes, scales, biases = mx.quantize(weight, 64, bits)
        for part, expected in (("weight", codes), ("scales", scales), ("biases", biases)):
            assert mx.array_equal(arrays[f"{name}.{part}"], expected)
        parameters[f"{name}.weight"] = torch.from_numpy(np.array(mx.dequantize(codes, scales, biases, 64, bits)))
    assert arrays["odd.weight"].dtype == mx.float32
    with torch.inference_mode():
        expected = graphs["language"].module("forward", parameters)(*samples["language"])[0].numpy()
    assert error(executable(samples["language"][0].numpy())[0], expected) < 1e-5


def test_mlx_has_no_other_quantizer(templates, tmp_path):
    with pytest.raises(ValueError, match="native int8 or int4"):
        mlx.compile_native("native_static", "int8", templates["vision"], tmp_path, [])


def test_any_number_of_samples(graphs, templates, samples, tmp_path):
    executable = compiled(quant.quantize(graphs["vision"], "rtn", "int8"), templates["vision"], tmp_path)
    images = samples["vision"][0].numpy()
    together = executable(images)[0]
    assert together.dtype == np.float32
    alone = np.concatenate([executable(images[i : i + 1])[0] for i in range(3)])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)
    assert executable(images[:0])[0].shape == (0, 4)


def test_a_model_lives_on_its_folder_alone(graphs, templates, samples, tmp_path):
    quantized = quant.quantize(graphs["vision"], "static", "int8", [samples["vision"]])
    mlx.compile(quantized, templates["vision"], tmp_path / "made")
    shutil.move(tmp_path / "made", tmp_path / "moved")
    executable = mlx.load(tmp_path / "moved", 1, "cpu")
    shutil.rmtree(tmp_path / "moved")
    assert parity(executable, quantized, samples["vision"]) < ROUNDED


def test_a_template_of_another_model_is_refused(graphs, templates, tmp_path):
    with pytest.raises(ValueError, match="made from other weights"):
        mlx.compile(quant.quantize(graphs["vision"], "rtn", "int4"), templates["language"], tmp_path)


@pytest.mark.parametrize("name", ["graph.json", "config.json", "model.safetensors"])
def test_a_damaged_folder_is_refused_by_name(graphs, templates, tmp_path, name):
    mlx.compile(quant.quantize(graphs["vision"], "float", "fp32"), templates["vision"], tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(ValueError, match=f"{tmp_path}.*compile it again"):
        mlx.load(tmp_path, 1, None)


def test_wrong_inputs_are_refused_by_name(graphs, templates, samples, tmp_path):
    executable = compiled(quant.quantize(graphs["vision"], "float", "fp32"), templates["vision"], tmp_path)
    image = samples["vision"][0].numpy()
    with pytest.raises(ValueError, match=r"takes 1 inputs \(x\), not 2"):
        executable(image, image)
    with pytest.raises(ValueError, match=r"'x' has shape \[3, 3, 14\], but the model takes \['batch', 3, 14, 12\]"):
        executable(image[..., 0])
    with pytest.raises(ValueError, match=r"'x' has shape \[3, 3, 14, 11\]"):
        executable(image[..., :11])
