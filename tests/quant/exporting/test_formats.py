"""Every format: what it writes passes its validation in a fresh process, and its codes are the tables' own."""

import json

import numpy as np
import pytest
import torch

import quant
from quant.exporting import formats
from quant.exporting.shipping import SAMPLE, VALIDATION

GENERAL = ("onnx", "onnxruntime", "openvino", "coreml", "mlx", "pt2", "pt2e")
LANGUAGE = ("gguf", "mlx_lm")
CASES = [
    *((format, "rtn", bits) for format in GENERAL for bits in ("int8", "int4")),
    *((format, "static", "int8") for format in GENERAL),
    *((format, "palette", "lut4") for format in ("onnx", "coreml", "mlx", "pt2")),
    *((format, "rtn", bits) for format in ("mlx", "pt2") for bits in ("int3", "nvfp4", "nf4", "e4m3")),
    ("onnxruntime", "rtn", "nf4"),
    ("onnx", "rtn", "int3"),
    ("openvino", "rtn", "nf4"),
    ("mlx", "dynamic", "int8"),
    ("pt2", "float", "fp32"),
]


def needs(format):
    missing = formats()[format].missing()
    if missing:
        pytest.skip(missing)


def validation_of(path):
    return json.loads((path.parent / VALIDATION).read_text())


@pytest.mark.parametrize(("format", "method", "bits"), CASES)
def test_an_export_computes_what_its_tables_mean_and_holds_their_codes(tables, images, tmp_path, format, method, bits):
    needs(format)
    quantized = tables(method, bits)
    path = quant.export(quantized, format, tmp_path, [images.numpy()])
    found = validation_of(path)
    assert found["verdict"] == "pass"
    assert found["parity"]["samples"] == len(images)
    weights = len(quantized.weights)
    assert found["codes"] == {"weights": weights, "identical": weights, "different": []}
    if format == "onnx" and bits in ("int8", "int4"):
        assert_it_means_the_same_to_all(found["readers"], len(images))


def assert_it_means_the_same_to_all(readers, samples):
    """Standard ONNX is read by its own reference implementation and by OpenVINO too."""
    assert readers["onnx_reference"]["agreement"] == 1
    assert readers["onnx_reference"]["samples"] == samples
    if formats()["openvino"].missing():
        assert readers["openvino"] == {"reason": "not installed: No module named 'openvino'"}
    else:
        assert readers["openvino"]["agreement"] == 1


def test_litert_computes_in_integers_and_keeps_their_codes(tables, images, tmp_path):
    needs("litert")
    quantized = tables("static", "int8")
    found = validation_of(quant.export(quantized, "litert", tmp_path, [images.numpy()]))
    assert found["verdict"] == "pass"
    assert found["codes"]["identical"] == len(quantized.weights)
    assert found["bytes"] < 0.6 * 4 * quantized.graph.parameter_count


@pytest.mark.parametrize("bits", ["int8", "int8_sym", "int6", "int4", "int4_sym", "int3"])
def test_litert_holds_all_codes_of_weights_alone_four_bits_each_where_they_suffice(tables, images, tmp_path, bits):
    needs("litert")
    quantized = tables("rtn", bits)
    found = validation_of(quant.export(quantized, "litert", tmp_path, [images.numpy()]))
    assert found["verdict"] == "pass"
    assert found["codes"]["identical"] == len(quantized.weights)
    stored = sum(weight.codes.numel() for weight in quantized.weights.values()) / (2 if bits[3] in "34" else 1)
    assert stored < found["bytes"] < 1.6 * stored + 10_000


@pytest.mark.parametrize("bits", ["int8_sym", "int4_sym", "int4"])
@pytest.mark.parametrize("format", LANGUAGE)
def test_language_models_keep_their_codes(llama_graph, tmp_path, format, bits):
    needs(format)
    quantized = quant.quantize(llama_graph, "rtn", bits)
    found = validation_of(quant.export(quantized, format, tmp_path))
    assert found["verdict"] == "pass"
    assert found["codes"]["identical"] == len(quantized.weights) == 15
    assert found["bytes"] < 4 * llama_graph.parameter_count * {"8": 0.32, "4": 0.2}[bits[3]]


@pytest.mark.parametrize("format", LANGUAGE)
def test_language_models_may_stay_float(llama_graph, tmp_path, format):
    needs(format)
    quantized = quant.quantize(llama_graph, "float", "fp32")
    assert validation_of(quant.export(quantized, format, tmp_path))["parity"]["error"] < 1e-5


@pytest.mark.parametrize("format", LANGUAGE)
def test_formats_of_language_models_refuse_other_models(tables, tmp_path, format):
    needs(format)
    with pytest.raises(ValueError, match="Llama-like decoders only"):
        quant.export(tables("rtn", "int4"), format, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "bits"), [("gguf", "int8"), ("gguf", "int4_g64"), ("gguf", "nf4"), ("mlx_lm", "int4_g24")]
)
def test_tables_that_a_format_cannot_hold_are_refused_by_name(llama_graph, tmp_path, format, bits):
    needs(format)
    with pytest.raises(ValueError, match=r"'(embedding|layers)"):
        quant.export(quant.quantize(llama_graph, "rtn", bits), format, tmp_path)


@pytest.mark.parametrize("format", ["gguf", "litert", "mlx_lm", "pt2e"])
def test_activations_quantized_at_run_time_are_refused(llama_graph, tmp_path, format):
    needs(format)
    with pytest.raises(ValueError, match="activations"):
        quant.export(quant.quantize(llama_graph, "dynamic", "int8"), format, tmp_path)


def test_the_sample_beside_an_export_is_the_first_with_what_the_tables_make_of_it(tables, images, tmp_path):
    quantized = tables("rtn", "int4")
    quant.export(quantized, "pt2", tmp_path, [images.numpy()])
    sample = np.load(tmp_path / SAMPLE)
    np.testing.assert_array_equal(sample["input_0"], images[:1])
    with torch.inference_mode():
        np.testing.assert_array_equal(sample["expected"], quant.simulate(quantized)(images[:1])[0])
