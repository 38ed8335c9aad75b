"""LSTMs on every backend, against the meaning of their tables: parity, kernels, storage."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quant.backends import target
from quant.graph import ActivationQuantizer, QuantizedModel, simulate
from quant.methods import quantize
from quant.tracing import capture

BACKENDS = ("torch", "onnxruntime", "mlx", "coreml", "openvino")
VOCABULARY, WIDTH = 50, 32


class Classifier(nn.Module):
    """Two stacked layers, then both directions: ids int64 [n, t] -> float32 [n, 3]."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.stacked = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)
        self.both = nn.LSTM(WIDTH, WIDTH, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * WIDTH, 3)

    def forward(self, ids: Tensor) -> Tensor:
        outputs, (_, _) = self.stacked(self.embedding(ids))
        outputs, (hidden, _) = self.both(outputs)
        return self.head(outputs.mean(1) + torch.cat([hidden[0], hidden[1]], -1))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    module = Classifier().eval()
    for value in module.parameters():
        value.data *= 2  # far from the linear part of the gates
    return capture(module, (torch.randint(0, VOCABULARY, (2, 6)),), ({0: "batch", 1: "time"},))


@pytest.fixture(scope="module")
def data():
    return torch.randint(0, VOCABULARY, (5, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request, graph, with_template):
    """A runtime with its template of the graph, made once."""
    return with_template(request.param, graph)


def compiled(backend, quantized, folder):
    where, template = backend
    where.load().compile(quantized, template, folder)
    return where.load().load(folder, 1, None)


def distance(outputs: np.ndarray, quantized: QuantizedModel, data: Tensor) -> float:
    with torch.inference_mode():
        expected = simulate(quantized)(data)[0].numpy()
    return np.linalg.norm(outputs - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("method", "bits"),
    [("float", "fp32"), ("rtn", "int4"), ("gptq", "int8"), ("hqq", "int3"), ("palette", "lut4"), ("static", "int8")],
)
def test_every_backend_agrees_with_the_tables(backend, graph, data, tmp_path, method, bits):
    quantized = quantize(graph, method, bits, [(data,)])
    executable = compiled(backend, quantized, tmp_path)
    assert distance(executable(data.numpy())[0], quantized, data) <= 1e-5
    coverage = executable.coverage()
    expected = 0 if method == "float" else 1
    assert coverage["operators_native"] + coverage["operators_simulated"] == pytest.approx(expected)


def test_dynamic_int8_agrees_where_there_is_such_a_thing(backend, graph, data, tmp_path):
    where, _ = backend
    granularity = where.constant("DYNAMIC_GRANULARITY", "token")
    quantized = quantize(graph, "dynamic", "int8", dynamic_granularity=granularity)
    if "int8" not in where.constant("EXECUTES").get("dynamic", ()):
        with pytest.raises(ValueError, match="lstm_0"):
            compiled(backend, quantized, tmp_path)
        return
    executable = compiled(backend, quantized, tmp_path)
    # Values near the border of two codes may fall to either side.
    assert distance(executable(data.numpy())[0], quantized, data) <= 2e-3
    weight_only = QuantizedModel(graph, quantized.scheme, quantized.weights)
    assert distance(executable(data.numpy())[0], weight_only, data) > 3e-3


def test_onnx_runtime_multiplies_in_integers_inside_the_steps(graph, data, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    runtime = target("onnxruntime").load()
    (tmp_path / "template").mkdir()
    runtime.template(graph, tmp_path / "template")
    quantized = quantize(graph, "dynamic", "int8", dynamic_granularity="tensor")
    (tmp_path / "model").mkdir()
    runtime.compile(quantized, tmp_path / "template", tmp_path / "model")
    kinds = [node.op_type for node in onnx.load(tmp_path / "model" / "model.onnx").graph.node]
    assert kinds.count("DynamicQuantizeLSTM") == 3
    assert "LSTM" not in kinds
    executable = runtime.load(tmp_path / "model")
    assert executable.coverage()["operators_native"] == pytest.approx(1)
    assert executable.evidence == "measured"
    weights = sum(value.numel() for name, value in graph.parameters.items() if name in quantized.weights)
    assert executable.size_bytes < 4 * weights

    edge = ("forward", "lstm_1", "h")
    half = {name: quantizer for name, quantizer in quantized.activations.items() if name != edge}
    with pytest.raises(ValueError, match=r"quantizes 'lstm_1' at run time only with both of its inputs"):
        runtime.compile(replace(quantized, activations=half), tmp_path / "template", tmp_path / "half")


def test_four_bit_weights_take_a_fraction_of_the_space(backend, graph, tmp_path):
    sizes = []
    for method, bits in (("float", "fp32"), ("rtn", "int4")):
        (tmp_path / bits).mkdir()
        sizes.append(compiled(backend, quantize(graph, method, bits), tmp_path / bits).size_bytes)
    assert sizes[1] < 0.6 * sizes[0]  # graphs and maps of names are most of the rest of so small a model


def test_scaled_inputs_of_the_steps_follow_the_tables(backend, graph, data, tmp_path):
    """A quantizer that only scales, on either input: torch and mlx run it, the others say that they cannot."""
    where, _ = backend
    activations = {
        ("forward", "lstm_0", name): ActivationQuantizer("none", input_scale=torch.linspace(0.5, 2, WIDTH))
        for name in ("x", "h")
    }
    quantized = replace(quantize(graph, "rtn", "int8"), activations=activations)
    if where.name not in ("torch", "mlx"):
        with pytest.raises(ValueError, match="lstm_0"):
            compiled(backend, quantized, tmp_path)
        return
    executable = compiled(backend, quantized, tmp_path)
    assert distance(executable(data.numpy())[0], quantized, data) <= 1e-5


def test_core_ml_has_the_gates_in_its_own_order():
    recurrent = pytest.importorskip("quant.backends._coreml_recurrent", exc_type=ImportError)
    rows = torch.arange(8.0).reshape(8, 1)
    assert recurrent.reordered(rows).flatten().tolist() == [0, 1, 2, 3, 6, 7, 4, 5]
    assert torch.equal(recurrent.reordered(recurrent.reordered(rows)), rows)


def test_onnx_runtimes_own_quantizer_is_seen_to_multiply_in_integers(graph, data, tmp_path):
    pytest.importorskip("onnxruntime")
    runtime = target("onnxruntime").load()
    for folder in ("template", "model"):
        (tmp_path / folder).mkdir()
    runtime.template(graph, tmp_path / "template")
    runtime.compile_native("native_dynamic", "int8", tmp_path / "template", tmp_path / "model")
    executable = runtime.load(tmp_path / "model")
    assert executable.coverage()["operators_native"] == pytest.approx(1, abs=0.01)
    expected = graph.module()(data)[0].numpy()
    assert 0 < np.linalg.norm(executable(data.numpy())[0] - expected) < 0.1 * np.linalg.norm(expected)
