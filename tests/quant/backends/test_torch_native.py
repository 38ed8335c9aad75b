"""torchao's own quantizers as artefacts of the torch backend."""

import numpy as np
import pytest
import torch
from torch import nn

import quant
from quant.backends import torch as backend

pytest.importorskip("torchao")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.first, self.second = nn.Embedding(40, 64), nn.Linear(64, 96), nn.Linear(96, 64)
        self.head = nn.Linear(64, 40, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        return self.head(self.second(torch.relu(self.first(self.words(tokens)))))


TOKENS = torch.arange(18).reshape(2, 9)


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return Tied().eval()


@pytest.fixture(scope="module")
def template(module, tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    backend.template(quant.capture(module, (TOKENS,), ({0: "batch", 1: "sequence"},)), folder)
    return folder


def torchao_itself(module, method, bits):
    from torchao import quantization

    configuration = {
        ("native", "int8"): lambda: quantization.Int8WeightOnlyConfig(set_inductor_config=False),
        ("native", "int4"): lambda: quantization.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=quantization.PerGroup(32)
        ),
        ("native_dynamic", "int8"): lambda: quantization.Int8DynamicActivationInt8WeightConfig(
            set_inductor_config=False
        ),
    }[method, bits]()
    copy = Tied().eval()
    copy.load_state_dict(module.state_dict())
    quantization.quantize_(copy, configuration, lambda layer, name: name in ("first", "second"))
    with torch.inference_mode():
        return copy(TOKENS).numpy()


@pytest.mark.parametrize(
    ("method", "bits", "evidence"),
    [("native", "int8", "simulated"), ("native", "int4", "simulated"), ("native_dynamic", "int8", "measured")],
)
def test_the_artefact_computes_what_torchao_computes(module, template, tmp_path, method, bits, evidence):
    backend.compile_native(method, bits, template, tmp_path / "artefact")
    executable = backend.load(tmp_path / "artefact", threads=1)
    (got,) = executable(TOKENS.numpy())
    assert got.dtype == np.float32
    assert np.array_equal(got, torchao_itself(module, method, bits))
    with torch.inference_mode():
        assert not np.array_equal(got, module(TOKENS).numpy())
    assert executable.evidence == evidence


def test_coverage_and_notes(template, tmp_path):
    backend.compile_native("native", "int4", template, tmp_path / "artefact")
    coverage = backend.load(tmp_path / "artefact", threads=1).coverage()
    layers, head = 2 * 64 * 96, 64 * 40
    assert coverage["operators_simulated"] == pytest.approx(layers / (layers + head))
    assert coverage["operators_native"] == 0
    assert "torchao keeps int4 codes in a byte each on a CPU." in coverage["notes"]


def test_what_torchao_does_not_offer_is_refused(template, tmp_path):
    with pytest.raises(ValueError, match="no quantizer here for native int3"):
        backend.compile_native("native", "int3", template, tmp_path / "artefact")


def test_a_model_without_linear_layers_is_refused(tmp_path):
    graph = quant.capture(nn.Conv1d(2, 3, 3).eval(), (torch.randn(2, 2, 8),))
    backend.template(graph, tmp_path / "template")
    with pytest.raises(ValueError, match="linear layers only"):
        backend.compile_native("native", "int8", tmp_path / "template", tmp_path / "artefact")


def test_a_missing_file_gives_one_sentence(template, tmp_path):
    backend.compile_native("native", "int8", template, tmp_path / "artefact")
    (tmp_path / "artefact" / "torchao.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no readable torchao tensors"):
        backend.load(tmp_path / "artefact", threads=1)
