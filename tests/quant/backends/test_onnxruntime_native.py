import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from quant.backends import onnxruntime
from quant.tracing import capture

GENERATOR = torch.Generator().manual_seed(0)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(200, 64)
        self.hidden = nn.Linear(64, 96)
        self.head = nn.Linear(96, 10)

    def forward(self, tokens):
        return self.head(F.relu(self.hidden(self.embedding(tokens)).mean(1)))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, image):
        return self.second(F.relu(self.first(image)))


def batches(count=3):
    return [(torch.randint(0, 200, (4, 9), generator=GENERATOR).numpy(),) for _ in range(count)]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    torch.manual_seed(0)
    graph, template = capture(Words().eval(), (torch.randint(0, 200, (2, 9)),)), tmp_path_factory.mktemp("words")
    onnxruntime.template(graph, template)
    return graph, template


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory):
    torch.manual_seed(0)
    graph, template = capture(Convolutions().eval(), (torch.randn(2, 3, 8, 8),)), tmp_path_factory.mktemp("images")
    onnxruntime.template(graph, template)
    return graph, template


@pytest.mark.parametrize(
    ("method", "bits", "largest_error", "largest_size"),
    [
        ("native", "int4", 0.3, 0.3),
        ("native", "int8", 0.05, 0.95),
        ("native_dynamic", "int8", 0.1, 0.5),
        ("native_static", "int8", 0.1, 0.5),
    ],
)
def test_quantizes_linear_layers_to_native_kernels(words, tmp_path, method, bits, largest_error, largest_size):
    graph, template = words
    onnxruntime.compile_native(method, bits, template, tmp_path, batches())
    executable, (tokens,) = onnxruntime.load(tmp_path), batches(1)[0]
    with torch.inference_mode():
        expected = graph.module()(torch.from_numpy(tokens))[0].numpy()
    difference = np.linalg.norm(executable(tokens)[0] - expected) / np.linalg.norm(expected)
    coverage = executable.coverage()
    assert 0 < difference < largest_error
    assert executable.size_bytes < largest_size * 4 * graph.parameter_count
    assert coverage["operators_native"] == 1
    assert bool(coverage["notes"]) == (method == "native")


def test_quantizes_convolutions_to_native_kernels(convolutions, tmp_path):
    _, template = convolutions
    calibration = [(torch.randn(4, 3, 8, 8, generator=GENERATOR).numpy(),)]
    for method in ("native_static", "native_dynamic"):
        folder = tmp_path / method
        folder.mkdir()
        onnxruntime.compile_native(method, "int8", template, folder, calibration)
        assert onnxruntime.load(folder).coverage()["operators_native"] == 1


def test_nothing_to_quantize_is_an_error(convolutions, tmp_path):
    with pytest.raises(ValueError, match="native int4 found nothing to quantize"):
        onnxruntime.compile_native("native", "int4", convolutions[1], tmp_path)


def test_static_quantization_needs_calibration_data(words, tmp_path):
    with pytest.raises(ValueError, match="pass at least one batch"):
        onnxruntime.compile_native("native_static", "int8", words[1], tmp_path)


def test_quantizers_are_silent_and_leave_logging_alone(words, tmp_path, capfd):
    before = (logging.root.level, logging.root.handlers[:], logging.root.manager.disable)
    for method in ("native", "native_dynamic", "native_static"):
        folder = tmp_path / method
        folder.mkdir()
        onnxruntime.compile_native(method, "int8", words[1], folder, batches())
    assert capfd.readouterr() == ("", "")
    assert (logging.root.level, logging.root.handlers[:], logging.root.manager.disable) == before
