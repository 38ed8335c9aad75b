import numpy as np
import pytest

import quant
from quant.backends import _onnx_coverage as coverage
from quant.backends import _onnx_saturation as saturation
from quant.hardware import processor
from quant.hardware.saturation import saturates


def test_kernels_do_what_the_instructions_say():
    assert saturation.saturates() is saturates(processor())
    assert not saturation.saturates(63)


@pytest.mark.parametrize(("bits", "noted"), [("int8", True), ("int8_reduced", False)])
def test_eight_bit_weights_are_noted_where_they_saturate(
    transformer_graph, transformer_inputs, tmp_path, monkeypatch, bits, noted
):
    monkeypatch.setattr(saturation, "saturates", lambda: True)
    quantized = quant.quantize(transformer_graph, "static_plain", bits, [(transformer_inputs.numpy(),)])
    executable = quant.compile(quantized, "onnxruntime", tmp_path)
    assert executable.evidence == "measured"
    assert (saturation.NOTE in executable.coverage()["notes"]) is noted
    (found,), (expected,) = executable(transformer_inputs.numpy()), quant.simulate(quantized)(transformer_inputs)
    assert np.linalg.norm(found - expected.numpy()) <= 0.05 * np.linalg.norm(found)


def test_weights_alone_are_not_noted(transformer_graph, tmp_path, monkeypatch):
    monkeypatch.setattr(saturation, "saturates", lambda: True)
    executable = quant.compile(quant.quantize(transformer_graph, "rtn", "int8"), "onnxruntime", tmp_path)
    assert saturation.NOTE not in executable.coverage()["notes"]
    assert coverage.INTEGER < coverage.NATIVE
