"""The torch backend as a user sees it: folders written, folders loaded, numbers that agree with `simulate`."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.backends import _torch_kernels as kernels
from quant.backends import target
from quant.backends import torch as backend
from quant.graph import ActivationQuantizer, QuantizedModel
from quant.scheme import CODEBOOK_FORMATS, PALETTE_WORDS, NumberFormat, parse
from quant.tensor import QuantizedTensor

needs_kernels = pytest.mark.skipif(kernels.unusable() is not None, reason=f"int8 kernels: {kernels.unusable()}")


class Convolutional(nn.Module):
    """Padding, stride, dilation, groups, a residual sum, pooling, a transposed convolution and linear layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, padding=2, dilation=2, groups=4)
        self.pointwise, self.up = nn.Conv2d(12, 12, 1), nn.ConvTranspose2d(12, 6, 3, stride=2, groups=2)
        self.hidden, self.head = nn.Linear(6 * 9, 7), nn.Linear(7, 5, bias=False)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = F.max_pool2d(torch.relu(x + self.branch(x)), 2)
        x = self.pointwise(torch.clamp(self.grouped(x), -0.4, 0.3))
        x = F.adaptive_avg_pool2d(F.hardtanh(self.up(x)), 3).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


class Attention(nn.Module):
    """An embedding tied to the output head, three layers that read one value, a mask of constants."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 24)
        self.q, self.k, self.v, self.out = (nn.Linear(24, 24) for _ in range(4))
        self.head = nn.Linear(24, 50, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens, mask):
        x = self.words(tokens)
        q, k, v = (layer(x).unflatten(-1, (2, 12)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        hidden = (1.0 - mask[:, None, None].float()) * -3.4e38
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden)
        return self.head(F.gelu(self.out(y.transpose(1, 2).flatten(2))) + x)


IMAGES = torch.randn(4, 3, 17, 19, generator=torch.Generator().manual_seed(0))
TOKENS = (torch.arange(15).reshape(3, 5) % 50, torch.ones(3, 5, dtype=torch.long))


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return quant.capture(Convolutional().eval(), (IMAGES,))


@pytest.fixture(scope="module")
def attention():
    torch.manual_seed(0)
    return quant.capture(Attention().eval(), TOKENS, ({0: "batch", 1: "sequence"},) * 2)


@pytest.fixture
def build(tmp_path):
    def compile_and_load(quantized):
        backend.template(quantized.graph, tmp_path / "template")
        backend.compile(quantized, tmp_path / "template", tmp_path / "artefact")
        return backend.load(tmp_path / "artefact", threads=1)

    return compile_and_load


def run(executable, inputs):
    return executable(*(value.numpy() for value in inputs))[0]


def reference(quantized, inputs):
    with torch.inference_mode():
        return quant.simulate(quantized)(*inputs)[0].numpy()


def error(got, expected):
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def test_the_constants_are_read_without_importing():
    assert target("torch").device is None
    assert target("torch_mps").device == "mps"
    assert target("torch_mps").platform == "darwin"
    assert target("torch").missing() is None
    assert target("torch").constant("DYNAMIC_GRANULARITY") == "token"
    assert target("torch").constant("EXECUTES")["static"] == ["int8", "int8_reduced"]
    assert backend.version() == f"torch {torch.__version__}"


def test_the_float_model_is_the_original(images, build):
    executable = build(quant.quantize(images, "float", "fp32"))
    with torch.inference_mode():
        expected = images.module()(IMAGES)[0].numpy()
    assert np.array_equal(run(executable, (IMAGES,)), expected)
    assert executable.evidence == "measured"
    assert executable.untimed_reason is None
    assert executable.coverage() == {"operators_native": 0.0, "operators_simulated": 0.0, "notes": []}


@pytest.mark.parametrize(("bits", "tolerance"), [("fp16", 3e-3), ("bf16", 3e-2)])
@pytest.mark.parametrize(("model", "inputs"), [("attention", TOKENS), ("images", (IMAGES,))])
def test_half_precision_computes_in_half_precision(request, build, model, inputs, bits, tolerance):
    graph = request.getfixturevalue(model)
    quantized = quant.quantize(graph, "float", bits)
    executable = build(quantized)
    inexact = error(run(executable, inputs), reference(quantized, inputs))
    assert 0 < inexact < tolerance
    assert executable.evidence == "measured"
    single = sum(value.numel() * 4 for value in graph.parameters.values())
    stored = (executable.path / "model.safetensors").stat().st_size
    assert stored < 0.5 * single + 4096


@pytest.mark.parametrize("bits", ["int8", "int6", "int5", "int4", "int3", "int2", "int4_sym", "int4_g7"])
def test_weight_only_is_what_the_tables_say_and_is_called_simulated(attention, build, bits):
    quantized = quant.quantize(attention, "rtn", bits)
    executable = build(quantized)
    assert error(run(executable, TOKENS), reference(quantized, TOKENS)) <= 1e-6
    assert executable.evidence == "simulated"
    assert executable.coverage()["operators_native"] == 0
    assert executable.coverage()["operators_simulated"] > 0.5
    assert "dequantized when loaded" in executable.coverage()["notes"][0]


def test_packed_codes_take_the_bits_they_claim(attention, build):
    sizes = {bits: build(quant.quantize(attention, "rtn", bits)).size_bytes for bits in ("int8", "int4", "int2")}
    codes = sum(entry.codes.numel() for entry in quant.quantize(attention, "rtn", "int8").weights.values())
    assert 0.45 * codes < sizes["int8"] - sizes["int4"] < 0.55 * codes + 512
    assert 0.2 * codes < sizes["int4"] - sizes["int2"] < 0.3 * codes + 512


@needs_kernels
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_static_int8_agrees_with_simulate_for_any_batch(images, build, batch):
    quantized = quant.quantize(images, "static", "int8", [(IMAGES,)])
    executable = build(quantized)
    assert error(run(executable, (IMAGES[:batch],)), reference(quantized, (IMAGES[:batch],))) <= 2e-2
    assert executable.evidence == "simulated"  # torch has no int8 kernel for its transposed convolution


@needs_kernels
def test_coverage_counts_a_transposed_convolution_as_simulated(images, build):
    coverage = build(quant.quantize(images, "static", "int8", [(IMAGES,)])).coverage()
    forward = images.graphs["forward"]
    work = {node.operator: images.macs("forward", node) for node in forward.nodes if "transpose" in node.operator}
    total = sum(images.macs("forward", node) for node in forward.nodes)
    assert coverage["operators_simulated"] == pytest.approx(sum(work.values()) / total)
    assert coverage["operators_native"] == pytest.approx(1 - sum(work.values()) / total)
    assert any("Sums and poolings" in note for note in coverage["notes"])


@needs_kernels
def test_dynamic_int8_agrees_with_simulate_for_any_length(attention, build):
    quantized = quant.quantize(attention, "dynamic", "int8")
    executable = build(quantized)
    for inputs in (TOKENS, (TOKENS[0][:1, :2], TOKENS[1][:1, :2])):
        assert error(run(executable, inputs), reference(quantized, inputs)) <= 2e-2
    assert executable.evidence == "measured"
    assert executable.coverage()["operators_native"] > 0.4


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_without_kernels_it_is_simulated_and_says_why(attention, build, monkeypatch, method):
    monkeypatch.setattr(kernels, "unusable", lambda largest: "this processor is too old")
    quantized = quant.quantize(attention, method, "int8", [TOKENS])
    executable = build(quantized)
    assert error(run(executable, TOKENS), reference(quantized, TOKENS)) <= 1e-5
    assert executable.evidence == "simulated"
    assert executable.coverage()["operators_native"] == 0
    assert "Quantized operators run in float: this processor is too old." in executable.coverage()["notes"]


@pytest.mark.parametrize(
    ("method", "bits"),
    [
        *(("rtn", word) for word in CODEBOOK_FORMATS),
        *(("palette", word) for word in PALETTE_WORDS),
        ("palette_grouped", "lut4"),
    ],
)
@pytest.mark.parametrize(("model", "inputs"), [("attention", TOKENS), ("images", (IMAGES,))])
def test_codebooks_are_simulated_and_stored_in_their_bits(request, build, model, inputs, method, bits):
    quantized = quant.quantize(request.getfixturevalue(model), method, bits)
    executable = build(quantized)
    assert error(run(executable, inputs), reference(quantized, inputs)) <= 1e-6
    assert executable.evidence == "simulated"
    tables = quantized.bits_per_weight * quantized.graph.parameter_count / 8
    assert (executable.path / "model.safetensors").stat().st_size < tables + 12_000


def test_four_bit_weights_with_eight_bit_activations_are_simulated(attention, build):
    quantized = quant.quantize(attention, "dynamic", "w4a8")
    executable = build(quantized)
    assert error(run(executable, TOKENS), reference(quantized, TOKENS)) <= 1e-5
    assert executable.coverage()["operators_native"] == 0
    assert executable.evidence == "simulated"


def test_a_codebook_survives_the_folder(attention, build):
    weight = attention.parameters["q.weight"]
    codes = torch.randint(0, 8, weight.shape, dtype=torch.uint8)
    scale = torch.full((24, 1), 0.5)
    palette = torch.linspace(-1, 1, 8).half().float()
    table = QuantizedTensor(codes, scale, None, palette, (1, 24), NumberFormat(3, False, "channel", codebook="learned"))
    quantized = QuantizedModel(attention, parse("int3"), {"q.weight": table})
    assert error(run(build(quantized), TOKENS), reference(quantized, TOKENS)) <= 1e-6


def test_floats_replace_parameters(images, build):
    quantized = QuantizedModel(images, parse("fp32", "float"), floats={"hidden.bias": torch.full((7,), 3.0)})
    got = run(build(quantized), (IMAGES,))
    assert error(got, reference(quantized, (IMAGES,))) <= 1e-6
    assert error(got, reference(QuantizedModel(images, parse("fp32", "float")), (IMAGES,))) > 0.1


@pytest.mark.parametrize("mode", ["none", "dynamic", "static"])
def test_input_scales_are_applied(attention, build, mode):
    quantized = quant.quantize(attention, "static" if mode == "static" else "dynamic", "int8", [TOKENS])
    factors = torch.linspace(0.5, 2, 24)
    scaled = {
        edge: replace(quantizer, input_scale=factors)
        if mode != "none"
        else ActivationQuantizer("none", input_scale=factors)
        for edge, quantizer in quantized.activations.items()
    }
    quantized = replace(quantized, activations=scaled)
    assert error(run(build(quantized), TOKENS), reference(quantized, TOKENS)) <= 2e-2


def test_wrong_inputs_are_named(attention, images, build):
    executable = build(quant.quantize(attention, "float", "fp32"))
    tokens, mask = (value.numpy() for value in TOKENS)
    with pytest.raises(ValueError, match="takes 2 inputs \\(tokens, mask\\), not 1"):
        executable(tokens)
    with pytest.raises(ValueError, match=r"'tokens' has shape \[15\], but the model takes \['any', 'any'\]"):
        executable(tokens.reshape(-1), mask)
    with pytest.raises(ValueError, match="'tokens' is empty"):
        executable(tokens[:0], mask[:0])
    executable = build(quant.quantize(images, "float", "fp32"))
    with pytest.raises(ValueError, match=r"takes \['any', 3, 17, 19\]"):
        executable(IMAGES[:, :2].numpy())


@pytest.mark.filterwarnings("error")
def test_read_only_and_double_precision_inputs_are_taken(images, build):
    executable = build(quant.quantize(images, "float", "fp32"))
    frozen = IMAGES.numpy().astype(np.float64)
    frozen.setflags(write=False)
    assert np.array_equal(executable(frozen)[0], run(executable, (IMAGES,)))


def test_a_template_of_other_weights_is_refused(images, attention, tmp_path):
    backend.template(images, tmp_path / "template")
    with pytest.raises(ValueError, match="made from other weights"):
        backend.compile(quant.quantize(attention, "rtn", "int4"), tmp_path / "template", tmp_path / "artefact")


@pytest.mark.parametrize("name", ["config.json", "graph.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_a_damaged_artefact_gives_one_sentence(attention, build, name, damage):
    path = build(quant.quantize(attention, "rtn", "int4")).path / name
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(content[: len(content) // 2 * (damage == "truncated")])
    with pytest.raises(ValueError, match=r"holds no readable torch artefact .* compile the model again"):
        backend.load(path.parent, threads=1)


def test_codes_of_another_shape_are_refused(attention, build):
    path = build(quant.quantize(attention, "rtn", "int8")).path / "config.json"
    config = json.loads(path.read_text())
    config["weights"]["q.weight"]["shape"] = [12, 48]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"codes have shape \[24, 24\] instead of \[12, 48\]"):
        backend.load(path.parent, threads=1)


def test_loading_sets_the_number_of_threads(images, build):
    before = torch.get_num_threads()
    executable = build(quant.quantize(images, "float", "fp32"))
    try:
        backend.load(executable.path, threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
