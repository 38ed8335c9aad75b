import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("openvino", reason="pip install openvino")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from quant.backends import openvino, target
from quant.graph import QuantizedModel, simulate
from quant.methods import quantize
from quant.tracing import capture

WEIGHT_ONLY = ("int8", "int6", "int4", "int3", "int4_sym", "int4_g8", "int8_tensor", "nf4", "e4m3", "mxfp4", "nvfp4")


class Text(nn.Module):
    """Tied embedding and head, a feed-forward, groups that do not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(500, 64)
        self.up, self.down = nn.Linear(64, 96), nn.Linear(96, 64)
        self.narrow, self.wide = nn.Linear(64, 40), nn.Linear(40, 64)
        self.norm = nn.LayerNorm(64)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return F.linear(x + self.wide(F.relu(self.narrow(x))), self.embedding.weight)


class Image(nn.Module):
    """Plain, depthwise and transposed convolutions, a residual sum, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise, self.pointwise = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.hardtanh(self.stem(image), 0, 6)
        x = x + self.pointwise(F.hardtanh(self.depthwise(x), 0, 6))
        return self.head(F.relu(self.up(x)).mean((2, 3)))


class Mixing(nn.Module):
    """Attention, as one operator or as products around a softmax; or a softmax that no product follows."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.projection = kind, nn.Linear(32, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.projection(x)[:, None].chunk(3, -1)
        if self.kind == "operator":
            return F.scaled_dot_product_attention(query, key, value)
        if self.kind == "products":
            return (query @ key.transpose(-1, -2)).softmax(-1) @ value
        return (query + key).softmax(-1) * value


class Workbench:
    """A captured module with its template; compiles tables and compares what they give."""

    def __init__(self, module: nn.Module, example: torch.Tensor, axes: tuple | None, folder) -> None:
        self.graph, self.example = capture(module.eval(), (example[:2],), axes), example
        self.template, self.folder = folder / "template", folder
        self.template.mkdir()
        openvino.template(self.graph, self.template)

    def _new(self):
        folder = self.folder / str(len(list(self.folder.iterdir())))
        folder.mkdir()
        return folder

    def load(self, quantized: QuantizedModel):
        folder = self._new()
        openvino.compile(quantized, self.template, folder)
        return openvino.load(folder)

    def native(self, method: str, bits: str):
        folder = self._new()
        openvino.compile_native(method, bits, self.template, folder, [(self.example.numpy(),)])
        return openvino.load(folder)

    def quantize(self, method: str, bits: str, granularity: str = "token") -> QuantizedModel:
        return quantize(self.graph, method, bits, [(self.example.numpy(),)], granularity)

    def parity(self, quantized: QuantizedModel):
        executable = self.load(quantized)
        with torch.inference_mode():
            expected = simulate(quantized)(self.example)[0].numpy()
        return executable, error(executable(self.example.numpy())[0], expected)


def error(result: np.ndarray, expected: np.ndarray) -> float:
    return np.linalg.norm(result - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    torch.manual_seed(0)
    example = torch.randint(0, 500, (4, 7))
    return Workbench(Text(), example, ({0: "batch", 1: "length"},), tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    torch.manual_seed(0)
    return Workbench(Image(), torch.randn(4, 3, 8, 8), None, tmp_path_factory.mktemp("picture"))


def test_is_found_without_being_imported():
    found = target("openvino")
    assert "int4" in found.constant("EXECUTES")["weight_only"]
    assert found.missing() is None


@pytest.mark.parametrize("bench", ["text", "picture"])
@pytest.mark.parametrize("bits", WEIGHT_ONLY)
def test_weights_mean_what_the_tables_mean(request, bench, bits):
    bench = request.getfixturevalue(bench)
    assert bench.parity(bench.quantize("rtn", bits))[1] < 1e-5


@pytest.mark.parametrize("bits", ["fp32", "fp16"])
def test_floats_are_computed_in_single_precision(text, bits):
    executable, difference = text.parity(text.quantize("float", bits))
    assert difference < 1e-5
    assert executable.evidence == ("measured" if bits == "fp32" else "simulated")


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_packed_weights_are_read_by_the_kernels(text, bits):
    executable = text.load(text.quantize("rtn", bits))
    sizes = {name: value.numel() for name, value in text.graph.parameters.items() if value.ndim == 2}
    # 40 columns are no multiple of 32, and groups that an embedding reads as well are unpacked
    simulated = (sizes["wide.weight"] + sizes["embedding.weight"]) / sum(sizes.values())
    coverage = executable.coverage()
    assert coverage["operators_native"] == pytest.approx(1 - simulated, abs=1e-3)
    assert coverage["operators_simulated"] == pytest.approx(simulated, abs=1e-3)


@pytest.mark.parametrize(("bench", "transposed"), [("text", 0), ("picture", 32_768)])
def test_static_operators_run_on_integers(request, bench, transposed):
    bench = request.getfixturevalue(bench)
    executable, difference = bench.parity(bench.quantize("static", "int8"))
    assert difference < 2e-2
    # OpenVINO computes this transposed convolution in float
    nodes = bench.graph.graphs["forward"].nodes
    simulated = transposed / sum(bench.graph.macs("forward", node) for node in nodes)
    assert executable.coverage()["operators_native"] == pytest.approx(1 - simulated)
    assert executable.coverage()["operators_simulated"] == pytest.approx(simulated)


def test_inputs_are_rounded_in_groups_as_the_tables_say(text):
    quantized = text.quantize("dynamic", "w4a8")
    _, difference = text.parity(quantized)
    assert difference < 2e-3
    with torch.inference_mode():
        real = simulate(QuantizedModel(text.graph, quantized.scheme, quantized.weights))(text.example)[0].numpy()
        rounded = simulate(quantized)(text.example)[0].numpy()
    assert error(rounded, real) > 2 * difference


def test_eight_bit_weights_are_multiplied_with_inputs_rounded_in_groups(tmp_path):
    torch.manual_seed(0)
    dividing = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 32))  # in groups of 32 without a rest
    bench = Workbench(dividing, torch.randn(4, 5, 64), None, tmp_path)
    executable, difference = bench.parity(bench.quantize("dynamic", "int8", "group"))
    assert difference < 2e-2
    assert executable.evidence == "measured"


@pytest.mark.parametrize("granularity", ["token", "group"])
def test_what_no_kernel_rounds_is_simulated(text, granularity):
    """Tokens are not what the kernels round by, and groups of 32 do not divide the 40 inputs of one layer."""
    executable, difference = text.parity(text.quantize("dynamic", "int8", granularity))
    assert difference < 2e-2
    assert executable.evidence == "simulated"


@pytest.mark.parametrize(
    ("bench", "method", "bits", "largest", "native"),
    [
        ("text", "native", "int8", 0.05, 1),
        ("text", "native", "int4", 0.3, 1),
        ("text", "native_dynamic", "int8", 0.1, 1),
        ("text", "native_static", "int8", 0.2, 1),
        ("picture", "native_static", "int8", 0.1, 0.5),
    ],
)
def test_nncf_quantizes_to_native_kernels(request, bench, method, bits, largest, native, capfd):
    pytest.importorskip("nncf")
    bench = request.getfixturevalue(bench)
    executable = bench.native(method, bits)
    with torch.inference_mode():
        expected = bench.graph.module()(bench.example)[0].numpy()
    assert 0 < error(executable(bench.example.numpy())[0], expected) < largest
    assert executable.coverage()["operators_native"] > 0.9 * native
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("kind", "present"), [("operator", True), ("products", True), ("gate", False)])
def test_nncf_is_told_of_attention(kind, present, tmp_path):
    pytest.importorskip("nncf")
    runtime, native = map(importlib.import_module, ("openvino", "quant.backends._openvino_native"))
    bench = Workbench(Mixing(kind), torch.randn(4, 5, 32), None, tmp_path)
    assert native.has_attention(runtime.convert_model(bench.template / "model.onnx")) == present


def test_static_quantization_needs_calibration_data(text, tmp_path):
    pytest.importorskip("nncf")
    with pytest.raises(ValueError, match="pass at least one batch"):
        openvino.compile_native("native_static", "int8", text.template, tmp_path)


def test_the_number_of_inputs_is_checked(text):
    executable = text.load(text.quantize("float", "fp32"))
    with pytest.raises(ValueError, match="takes 1 inputs, not 2"):
        executable(text.example.numpy(), text.example.numpy())


def test_a_damaged_model_is_one_sentence(text, tmp_path):
    openvino.compile(text.quantize("rtn", "int8"), text.template, tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"holds no readable OpenVINO model .*: compile it again"):
        openvino.load(tmp_path)
