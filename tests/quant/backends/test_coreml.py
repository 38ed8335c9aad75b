import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("coremltools")

from quant.backends import coreml
from quant.graph import ActivationQuantizer, QuantizedModel, simulate
from quant.methods import quantize
from quant.scheme import PALETTE_WORDS, NumberFormat, parse
from quant.tracing import capture

GENERATOR = torch.Generator().manual_seed(0)


class Text(nn.Module):
    """Tied embedding and head, groups that do not divide, a dead channel, a constant the converter computes."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 40)
        self.position = nn.Parameter(torch.randn(3, 40, generator=GENERATOR))
        self.hidden = nn.Linear(40, 24)
        self.norm = nn.LayerNorm(24)
        self.back = nn.Linear(24, 40)
        with torch.no_grad():
            self.hidden.weight[3] = 0

    def forward(self, tokens):
        x = self.embedding(tokens) + self.position[1]
        x = x + self.back(F.gelu(self.norm(self.hidden(x))))
        return F.linear(x, self.embedding.weight)


class Image(nn.Module):
    """Plain, depthwise, transposed and pointwise convolutions and a residual sum."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.head = nn.Linear(6, 5)
        with torch.no_grad():
            self.stem.weight[2] = 0

    def forward(self, image):
        x = F.relu(self.norm(self.stem(image)))
        x = x + self.pointwise(F.relu(self.depthwise(x)))
        return self.head(F.relu(self.up(x)).mean((2, 3)))


def text(batch=2, length=7):
    return torch.randint(0, 50, (batch, length), generator=GENERATOR)


def image(batch=2):
    return torch.randn(batch, 3, 10, 9, generator=GENERATOR)


@pytest.fixture(scope="module")
def graphs():
    torch.manual_seed(0)
    axes = ({0: "batch", 1: "length"},)
    return {"text": capture(Text().eval(), (text(),), axes), "image": capture(Image().eval(), (image(),))}


@pytest.fixture(scope="module")
def templates(graphs, tmp_path_factory):
    folders = {}
    for name, graph in graphs.items():
        folders[name] = tmp_path_factory.mktemp(name)
        coreml.template(graph, folders[name], "float32")
    return folders


@pytest.fixture(scope="module")
def half_template(graphs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("half")
    coreml.template(graphs["image"], folder, "float16")
    return folder


def compiled(quantized, template, folder):
    coreml.compile(quantized, template, folder)
    return coreml.load(folder, threads=1, device=None)


def error(executable, quantized, *inputs):
    """Relative distance between an executable and the reference meaning of the tables."""
    with torch.no_grad():
        expected = simulate(quantized)(*inputs)[0].numpy()
    (result,) = executable(*(value.numpy() for value in inputs))
    assert result.shape == expected.shape
    return np.linalg.norm(result - expected) / np.linalg.norm(expected)


def operators(folder):
    return [operation.type for operation in coreml.Package(folder).operations]


SAMPLES = {"text": text(3, 5), "image": image(1)}


@pytest.mark.parametrize("bits", ["int8", "int6", "int5", "int4", "int3", "int2", "int4_sym", "int8_tensor"])
@pytest.mark.parametrize("model", SAMPLES)
def test_weights_mean_on_disk_what_the_tables_say(model, bits, graphs, templates, tmp_path):
    quantized = quantize(graphs[model], "rtn", bits)
    executable = compiled(quantized, templates[model], tmp_path)
    assert error(executable, quantized, SAMPLES[model]) < 1e-5
    assert executable.coverage()["operators_native"] == 1
    assert executable.coverage()["parameters_quantized"] == pytest.approx(quantized.parameters_quantized)


def test_coremltools_decompresses_the_same_weights(graphs, templates, tmp_path):
    from coremltools.converters.mil.frontend.milproto.load import load

    quantized = quantize(graphs["text"], "rtn", "int4")
    package = compiled(quantized, templates["text"], tmp_path)._package
    weights = str(package.folder / "Data" / "com.apple.CoreML" / "weights")
    program = load(package.model, package.model.specificationVersion, weights)
    found = program.functions["main"].find_ops(op_type="constexpr_blockwise_shift_scale")
    decompressed = {operation.outputs[0].name: operation.materialized_val_inference() for operation in found}
    assert len(decompressed) == len(quantized.weights) == 3
    for name, weight in quantized.weights.items():
        np.testing.assert_array_equal(decompressed[package.names["constants"][name]], weight.dequantize().numpy())


def test_tied_weight_is_stored_once(graphs, templates, tmp_path):
    quantized = quantize(graphs["text"], "rtn", "int4")
    compiled(quantized, templates["text"], tmp_path)
    assert operators(tmp_path).count("constexpr_blockwise_shift_scale") == 3


def test_four_bits_take_an_eighth_of_the_space(tmp_path):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(2000, 256)
            self.linear = nn.Linear(256, 1024, bias=False)

        def forward(self, tokens):
            return self.linear(self.embedding(tokens))

    graph = capture(Wide().eval(), (torch.zeros(2, 3, dtype=torch.long),))
    coreml.template(graph, tmp_path / "template", "float32")
    executable = compiled(quantize(graph, "rtn", "int4"), tmp_path / "template", tmp_path / "int4")
    # 4 bits of code, and per group of 32 one half-precision scale and one zero point of 4 bits
    assert executable.size_bytes / (4 * graph.parameter_count) < (4 + 16 / 32 + 4 / 32) / 32 + 0.01


def test_half_precision_parameters_stay_half_on_disk(graphs, templates, tmp_path):
    quantized = quantize(graphs["image"], "float", "fp16")
    half = compiled(quantized, templates["image"], tmp_path / "half")
    assert error(half, quantized, SAMPLES["image"]) < 1e-5
    full = compiled(quantize(graphs["image"], "float", "fp32"), templates["image"], tmp_path / "full")
    weights = "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    sizes = [(executable.path / weights).stat().st_size for executable in (half, full)]
    assert sizes[0] < 0.75 * sizes[1]


@pytest.mark.parametrize(("method", "bits"), [("float", "fp16"), ("rtn", "int8"), ("rtn", "int4")])
def test_half_precision_program(method, bits, graphs, half_template, tmp_path):
    quantized = quantize(graphs["image"], method, bits)
    executable = compiled(quantized, half_template, tmp_path)
    distance = error(executable, quantized, SAMPLES["image"])
    assert 0 < distance < 1e-2  # halves are rounded: not equal, but near


@pytest.mark.parametrize("model", SAMPLES)
def test_static_activations(model, graphs, templates, tmp_path):
    quantized = quantize(graphs[model], "static", "int8", [(SAMPLES[model].numpy(),)])
    executable = compiled(quantized, templates[model], tmp_path)
    assert error(executable, quantized, SAMPLES[model]) < 2e-2
    assert executable.coverage()["operators_native"] == 1


def test_edges_of_one_value_share_one_pair(graphs, templates, tmp_path):
    quantized = quantize(graphs["image"], "static", "int8", [(SAMPLES["image"].numpy(),)])
    values = {quantized.graph.node(edge).arguments[edge[2]].name for edge in quantized.activations}
    assert len(values) < len(quantized.activations)
    compiled(quantized, templates["image"], tmp_path)
    assert operators(tmp_path).count("quantize") == operators(tmp_path).count("dequantize") == len(values)


def linear_edge(graph, index=0):
    nodes = [node for node in graph.graphs["forward"].nodes if node.operator == "aten.linear.default"]
    return ("forward", nodes[index].name, 0)


def test_an_input_that_is_called_as_a_function_of_python(tmp_path):
    """torch.fx renames such, as the argument of nn.Sequential."""
    module = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    values = torch.randn(8, 16, generator=GENERATOR)
    graph = capture(module, (values[:2],))
    assert graph.graphs["forward"].inputs == ("input",)
    quantized = quantize(graph, "static_plain", "int8", [(values.numpy(),)])
    (tmp_path / "template").mkdir()
    (tmp_path / "artifact").mkdir()
    coreml.template(graph, tmp_path / "template", "float32")
    executable = compiled(quantized, tmp_path / "template", tmp_path / "artifact")
    assert error(executable, quantized, values) < 2e-2


def test_input_scale_alone_and_with_codes(graphs, templates, tmp_path):
    graph, tokens = graphs["text"], SAMPLES["text"]
    scale = torch.linspace(0.5, 2, 40)
    codes = ActivationQuantizer(
        "static", NumberFormat(8, False, "tensor"), torch.tensor(0.02), torch.tensor(100, dtype=torch.uint8), scale
    )
    for name, quantizer in (("scaled", ActivationQuantizer("none", input_scale=scale)), ("codes", codes)):
        quantized = QuantizedModel(graph, parse("int8", "static"), activations={linear_edge(graph): quantizer})
        executable = compiled(quantized, templates["text"], tmp_path / name)
        assert error(executable, quantized, tokens) < 1e-5
        # The weight is float: codes on the input alone buy no integer kernel.
        assert (executable.coverage()["operators_simulated"] > 0) == (name == "codes")
        assert executable.coverage()["operators_native"] == 0


def test_symmetric_codes_stop_at_their_lowest(graphs, templates, tmp_path):
    graph, tokens = graphs["text"], SAMPLES["text"]
    for bits in (8, 6):
        quantizer = ActivationQuantizer("static", NumberFormat(bits, True, "tensor"), torch.tensor(0.005))
        quantized = QuantizedModel(graph, parse("int8", "static"), activations={linear_edge(graph): quantizer})
        executable = compiled(quantized, templates["text"], tmp_path / str(bits))
        assert error(executable, quantized, tokens) < 1e-5


def test_replaced_parameters_and_what_was_computed_from_them(graphs, templates, tmp_path):
    graph = graphs["text"]
    floats = {name: graph.parameters[name] + 0.5 for name in ("norm.bias", "position")}
    quantized = QuantizedModel(graph, parse("fp32", "float"), floats=floats)
    executable = compiled(quantized, templates["text"], tmp_path)
    assert error(executable, quantized, SAMPLES["text"]) < 1e-5
    assert error(executable, QuantizedModel(graph, parse("fp32", "float")), SAMPLES["text"]) > 1e-2


def test_float_model_runs_at_other_sizes(graphs, templates, tmp_path):
    quantized = quantize(graphs["text"], "float", "fp32")
    executable = compiled(quantized, templates["text"], tmp_path)
    for shape in ((1, 1), (5, 11)):
        assert error(executable, quantized, text(*shape)) < 1e-5
    assert executable.evidence in ("evaluated", "measured")
    assert (executable.untimed_reason is None) == (executable.evidence == "measured")


@pytest.mark.parametrize(("bits", "limit"), [("int8", 0.05), ("int4", 0.5)])
def test_coremltools_own_quantizer(bits, limit, tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval()
    graph, x = capture(module, (torch.randn(2, 64),)), torch.randn(4, 64)
    coreml.template(graph, tmp_path / "template", "float32")
    coreml.compile_native("native", bits, tmp_path / "template", tmp_path / bits, ())
    executable = coreml.load(tmp_path / bits, 1, None)
    assert 0 < error(executable, QuantizedModel(graph, parse("fp32", "float")), x) < limit
    assert executable.coverage()["operators_native"] == 1
    assert executable.coverage()["parameters_quantized"] > 0.9


def test_dynamic_activations_are_refused(graphs, templates, tmp_path):
    quantized = quantize(graphs["text"], "dynamic", "int8")
    with pytest.raises(ValueError, match="quantized at run time, which Core ML cannot do"):
        coreml.compile(quantized, templates["text"], tmp_path)


def test_activation_scale_per_channel_is_refused(graphs, templates, tmp_path):
    quantizer = ActivationQuantizer("static", NumberFormat(8, True, "channel"), torch.full((1, 40), 0.1))
    graph = graphs["text"]
    quantized = QuantizedModel(graph, parse("int8", "static"), activations={linear_edge(graph): quantizer})
    with pytest.raises(ValueError, match="needs one scale per tensor"):
        coreml.compile(quantized, templates["text"], tmp_path)


def test_entry_without_a_target_is_named(graphs, templates, tmp_path):
    graph = graphs["text"]
    quantizer = ActivationQuantizer("static", NumberFormat(8, True, "tensor"), torch.tensor(0.1))
    node = next(node for node in graph.graphs["forward"].nodes if node.operator == "aten.embedding.default")
    quantized = QuantizedModel(graph, parse("int8", "static"), activations={("forward", node.name, 1): quantizer})
    with pytest.raises(ValueError, match=f"argument 1 of '{node.name}'"):
        coreml.compile(quantized, templates["text"], tmp_path)
    weight = quantize(graph, "rtn", "int8").weights["hidden.weight"]
    elsewhere = QuantizedModel(graph, parse("int8"), weights={"position": weight})
    with pytest.raises(ValueError, match="'position'"):
        coreml.compile(elsewhere, templates["text"], tmp_path)


@pytest.mark.parametrize("name", ["text", "image"])
@pytest.mark.parametrize(
    ("method", "bits"),
    [*(("palette", word) for word in PALETTE_WORDS), ("palette_grouped", "lut4"), ("palette_grouped", "lut3")],
)
def test_palettes_mean_what_the_tables_mean(graphs, templates, tmp_path, name, method, bits):
    quantized = quantize(graphs[name], method, bits)
    executable = compiled(quantized, templates[name], tmp_path)
    assert error(executable, quantized, SAMPLES[name]) < 1e-5
    assert operators(tmp_path).count("constexpr_lut_to_dense") == len(quantized.weights)
    assert executable.coverage()["notes"] == []
    assert executable.coverage()["operators_native"] > 0.9


def test_palettes_of_a_half_precision_program(graphs, half_template, tmp_path):
    quantized = quantize(graphs["image"], "palette_grouped", "lut6")
    assert error(compiled(quantized, half_template, tmp_path), quantized, SAMPLES["image"]) < 5e-3


def test_indices_are_packed_in_their_own_width(tmp_path):
    values = torch.randn(64, 640, generator=GENERATOR)
    layer = nn.Linear(640, 64)
    layer.weight = nn.Parameter(values)
    graph = capture(layer.eval(), (torch.randn(2, 640),))
    coreml.template(graph, tmp_path, "float32")
    sizes = []
    for word, bits in PALETTE_WORDS.items():
        folder = tmp_path / word
        compiled(quantize(graph, "palette", word), tmp_path, folder)
        sizes.append((folder / coreml.PACKAGE / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size)
        assert sizes[-1] == pytest.approx(values.numel() * bits / 8, abs=2000)
    assert sizes == sorted(sizes, reverse=True)


def test_scaled_codebooks_and_bfloat16_are_refused(graphs, templates, tmp_path):
    graph = graphs["text"]
    with pytest.raises(ValueError, match=r"the weight '[a-z.]+' is a look-up table with scales"):
        coreml.compile(quantize(graph, "rtn", "nf4"), templates["text"], tmp_path)
    with pytest.raises(ValueError, match="bfloat16"):
        coreml.compile(quantize(graph, "float", "bf16"), templates["text"], tmp_path)
    with pytest.raises(ValueError, match="not in bfloat16"):
        coreml.template(graph, tmp_path, "bfloat16")


def test_template_of_other_weights_is_refused(graphs, templates, tmp_path):
    with pytest.raises(ValueError, match="converted from other weights"):
        coreml.compile(quantize(graphs["text"], "rtn", "int4"), templates["image"], tmp_path)


def test_bad_calls_say_what_is_wrong(graphs, templates, tmp_path):
    with pytest.raises(ValueError, match="holds no Core ML model"):
        coreml.load(tmp_path, 1, None)
    executable = coreml.load(templates["text"], 1, None)
    with pytest.raises(ValueError, match="takes 1 inputs"):
        executable()
    with pytest.raises(ValueError, match="no quantizer for native_static int8"):
        coreml.compile_native("native_static", "int8", templates["text"], tmp_path, ())


class Counted(nn.Module):
    """Adds ones as many as there are samples, in the type of the input and in another."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        samples = x.shape[0]
        return self.head(x) + 2 * x.new_ones(samples, 3) + x.new_ones((samples, 1), dtype=torch.int32)


def test_tensors_are_filled_with_ones_in_the_type_that_is_asked_for(tmp_path):
    torch.manual_seed(0)
    quantized = quantize(capture(Counted().eval(), (torch.randn(2, 4),)), "float", "fp32")
    coreml.template(quantized.graph, tmp_path / "template", "float32")
    assert error(compiled(quantized, tmp_path / "template", tmp_path / "artefact"), quantized, torch.randn(5, 4)) < 1e-6
