"""Standard ONNX: every table in it, held to what the tables mean by ONNX's own evaluator and by a runtime."""

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
from onnx.reference import ReferenceEvaluator
from onnxruntime import GraphOptimizationLevel, InferenceSession

from quant.backends import _onnx_portable, _onnx_template
from quant.backends._onnx_session import open_session
from quant.graph import ActivationQuantizer, QuantizedModel, simulate
from quant.methods import quantize
from quant.scheme import NumberFormat, parse
from quant.tensor import quantize as quantize_tensor
from quant.tracing import capture

WEIGHT_ONLY = [
    *(("rtn", word) for word in ("int8", "int6", "int4", "int3", "int4_sym", "int4_g8", "int8_tensor", "int4_channel")),
    *(("rtn", word) for word in ("nf4", "e4m3", "mxfp4", "nvfp4")),
    ("palette", "lut6"),
    ("palette_grouped", "lut4"),
]
STEP = 1 / 127
"""Values near the border of two codes may fall to either side."""


class Text(nn.Module):
    """Tied embedding and head, a layer used twice, groups that do not divide, a dead channel."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 64)
        self.hidden = nn.Linear(64, 80)
        self.norm = nn.LayerNorm(80)
        self.back = nn.Linear(40, 64, bias=False)
        with torch.no_grad():
            self.hidden.weight[3] = 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        first, second = F.gelu(self.norm(self.hidden(x))).unflatten(-1, (2, 40)).unbind(-2)
        return F.linear(x + self.back(first) + self.back(second), self.embedding.weight)


class Image(nn.Module):
    """Plain, depthwise and transposed convolutions, a dead channel, a residual sum, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = nn.Linear(6, 5)
        with torch.no_grad():
            self.stem.weight[2] = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.hardtanh(self.stem(image), 0, 6)
        x = F.relu(self.up(x + self.depthwise(x)))
        return self.head(x.mean((2, 3)))


def tokens(count: int = 3, length: int = 5) -> torch.Tensor:
    return torch.randint(0, 50, (count, length), generator=torch.Generator().manual_seed(count))


def image(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(count))


class Workbench:
    """A captured module with its template; splices tables and runs what comes of them."""

    def __init__(self, module: nn.Module, example: torch.Tensor, axes: tuple | None, folder) -> None:
        self.graph, self.folder, self.example = capture(module.eval(), (example[:2],), axes), folder, example
        _onnx_template.write(self.graph, folder)

    def quantize(self, method: str, bits: str, granularity: str = "token") -> QuantizedModel:
        return quantize(self.graph, method, bits, [(self.example.numpy(),)], granularity)

    def export(self, quantized: QuantizedModel, folder) -> onnx.ModelProto:
        template = _onnx_template.read(self.folder)
        _onnx_portable.splice(quantized, template)
        _onnx_template.save(template.model, folder)
        model = onnx.load(folder / _onnx_template.MODEL)
        onnx.checker.check_model(model, full_check=True)
        assert {entry.domain for entry in model.opset_import} == {""}
        assert not {node.domain for node in model.graph.node} - {""}
        return model

    def distances(self, quantized: QuantizedModel, folder) -> tuple[float, float]:
        """Return how far from the tables' meaning ONNX's evaluator and ONNX Runtime are."""
        self.export(quantized, folder)
        reference, session = ReferenceEvaluator(str(folder / _onnx_template.MODEL)), unoptimized(folder)
        feeds = {reference.input_names[0]: self.example.numpy()}
        return tuple(self.distance(quantized, run(None, feeds)[0]) for run in (reference.run, session.run))

    def distance(self, quantized: QuantizedModel, result: np.ndarray) -> float:
        with torch.inference_mode():
            expected = simulate(quantized)(self.example)[0].numpy()
        return np.linalg.norm(result - expected) / np.linalg.norm(expected)


def unoptimized(folder) -> InferenceSession:
    return open_session(folder / _onnx_template.MODEL, graph_optimization_level=GraphOptimizationLevel.ORT_DISABLE_ALL)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    torch.manual_seed(0)
    return Workbench(Text(), tokens(), ({0: "batch", 1: "length"},), tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    torch.manual_seed(0)
    return Workbench(Image(), image(), None, tmp_path_factory.mktemp("picture"))


@pytest.mark.parametrize("bench", ["text", "picture"])
@pytest.mark.parametrize(("method", "bits"), [("float", "fp32"), ("float", "fp16"), *WEIGHT_ONLY])
def test_weights_mean_what_the_tables_mean(request, bench, method, bits, tmp_path):
    bench = request.getfixturevalue(bench)
    assert max(bench.distances(bench.quantize(method, bits), tmp_path)) < 1e-5


@pytest.mark.parametrize("bits", ["int8", "int4", "nf4"])
def test_weights_of_grouped_transposed_convolutions_mean_what_the_tables_mean(bits, tmp_path):
    """By the runtime alone: ONNX's evaluator refuses such convolutions."""
    torch.manual_seed(0)
    bench = Workbench(nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), torch.randn(2, 6, 5, 5), None, tmp_path)
    quantized = bench.quantize("rtn", bits)
    bench.export(quantized, tmp_path)
    session = unoptimized(tmp_path)
    result = session.run(None, {session.get_inputs()[0].name: bench.example.numpy()})[0]
    assert bench.distance(quantized, result) < 1e-5


@pytest.mark.parametrize("bench", ["text", "picture"])
def test_static_activations_mean_what_the_tables_mean(request, bench, tmp_path):
    bench = request.getfixturevalue(bench)
    assert max(bench.distances(bench.quantize("static", "int8"), tmp_path)) < STEP


@pytest.mark.parametrize(
    ("bits", "granularity"),
    [("int8", "tensor"), ("int8", "token"), ("int8", "group"), ("int8_token_asym", "token"), ("w4a8", "token")],
)
def test_activations_are_rounded_at_run_time_as_the_tables_say(text, bits, granularity, tmp_path):
    quantized = text.quantize("dynamic", bits, granularity)
    assert max(text.distances(quantized, tmp_path)) < STEP
    weight_only = replace(quantized, activations={})
    with torch.inference_mode():
        rounded, real = (simulate(model)(text.example)[0] for model in (quantized, weight_only))
    assert (rounded - real).norm() / real.norm() > 1e-3


@pytest.mark.parametrize("granularity", ["token", "tensor"])
def test_values_of_zero_are_rounded_to_zero(granularity, tmp_path):
    linear = nn.Linear(8, 4)
    bench = Workbench(linear, torch.zeros(3, 8), None, tmp_path)
    format = NumberFormat(8, True, granularity, scale_dtype="float32")
    quantizer = {("forward", "linear_0", 0): ActivationQuantizer("dynamic", format)}
    quantized = replace(bench.quantize("rtn", "int8"), activations=quantizer)
    assert max(bench.distances(quantized, tmp_path)) < 1e-6


@pytest.mark.parametrize("mode", ["static", "dynamic", "none"])
def test_input_scales_multiply_what_is_quantized(text, mode, tmp_path):
    quantized = text.quantize("dynamic" if mode == "dynamic" else "static", "int8")
    edge = next(edge for edge in quantized.activations if edge[1] == "linear_0")
    scaled = replace(quantized.activations[edge], mode=mode, input_scale=torch.linspace(0.5, 2, 64))
    quantized = replace(quantized, activations={**quantized.activations, edge: scaled})
    assert max(text.distances(quantized, tmp_path)) < STEP


def test_groups_are_blocks_where_they_divide_a_row(text, tmp_path):
    model = text.export(text.quantize("rtn", "int4"), tmp_path)
    blocks = {
        node.input[0].partition("/")[0]: attribute.i
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        for attribute in node.attribute
        if attribute.name == "block_size"
    }
    assert blocks == {"embedding.weight": 32, "hidden.weight": 32}  # 40 columns are no multiple of 32
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types["hidden.weight/codes_of_4_bits"] == onnx.TensorProto.UINT4


def test_static_operators_lie_between_quantizers(picture, tmp_path):
    model = picture.export(picture.quantize("static", "int8"), tmp_path)
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    operators = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(operators) == 3
    for node in operators:
        assert [made_by.get(name) for name in node.input] == ["DequantizeLinear"] * 3


def test_weights_are_stored_once_and_packed(text, tmp_path):
    quantized = text.quantize("rtn", "int4")
    text.export(quantized, tmp_path)
    tables = quantized.graph.parameter_count * quantized.bits_per_weight / 8
    assert (tmp_path / _onnx_template.MODEL).stat().st_size < 1.1 * tables + 12_000


def test_a_layer_whose_activations_differ_from_those_of_a_step_is_refused(tmp_path):
    module = nn.LSTM(8, 8, batch_first=True)
    bench = Workbench(module, torch.randn(3, 4, 8), None, tmp_path)
    with pytest.raises(ValueError, match="no LSTM that quantizes its hidden states"):
        bench.export(bench.quantize("dynamic", "int8"), tmp_path)


def test_recurrent_weights_mean_what_the_tables_mean(tmp_path):
    torch.manual_seed(0)
    bench = Workbench(nn.LSTM(8, 8, batch_first=True, bidirectional=True), torch.randn(3, 4, 8), None, tmp_path)
    assert max(bench.distances(bench.quantize("rtn", "int4"), tmp_path)) < 1e-5


def test_other_widths_of_activations_are_refused(text, tmp_path):
    quantized = text.quantize("static", "int8")
    narrow = {
        edge: replace(entry, format=replace(entry.format, bits=4)) for edge, entry in quantized.activations.items()
    }
    with pytest.raises(ValueError, match="ONNX has no static int4"):
        text.export(replace(quantized, activations=narrow), tmp_path)


def test_scales_along_several_axes_are_arithmetic(tmp_path):
    bench = Workbench(nn.Conv2d(4, 4, 3), torch.randn(2, 4, 6, 6), None, tmp_path)
    weight = quantize_tensor(bench.graph.parameters["weight"], NumberFormat(8, True, "group", 9), (1, 1, 3, 3))
    quantized = QuantizedModel(bench.graph, parse("int8"), {"weight": weight})
    assert max(bench.distances(quantized, tmp_path)) < 1e-5
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / _onnx_template.MODEL).graph.node)
    assert kinds["DequantizeLinear"] == 0
