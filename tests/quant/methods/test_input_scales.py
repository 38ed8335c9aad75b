"""What holds for all methods that scale inputs: ugly inputs, and the agreement of the runtimes."""

import pytest
import torch
from torch import nn

import quant
from quant.backends import target
from quant.methods import awq, smoothquant
from quant.scheme import parse
from quant.storage import graph_from_json, graph_to_json


@pytest.fixture(scope="module")
def quantized_models(transformer_graph, transformer_inputs):
    batches = [(transformer_inputs,)]
    return {
        "smoothquant": smoothquant.quantize(transformer_graph, parse("int8", "static"), batches, left_float=0.15),
        "awq": awq.quantize(transformer_graph, parse("int4"), batches),
    }


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "mlx", "coreml"])
def test_backends_agree_with_simulate(quantized_models, transformer_graph, transformer_inputs, backend, tmp_path):
    if target(backend).missing():
        pytest.skip(f"{backend} is not installed")
    runtime, values = target(backend).load(), transformer_inputs[:2, :6]
    models = dict(quantized_models)
    if "int8" in target(backend).constant("EXECUTES").get("dynamic", ()):
        scheme = parse("int8", "dynamic", target(backend).constant("DYNAMIC_GRANULARITY", "token"))
        models["dynamic"] = smoothquant.quantize(transformer_graph, scheme, [(transformer_inputs,)])
    for name in ("template", *models):
        (tmp_path / name).mkdir()
    runtime.template(transformer_graph, tmp_path / "template", "float32")
    for method, quantized in models.items():
        assert any(quantizer.input_scale is not None for quantizer in quantized.activations.values())
        runtime.compile(quantized, tmp_path / "template", tmp_path / method)
        found = runtime.load(tmp_path / method, 1, target(backend).device)(values.numpy())[0]
        expected = quant.simulate(quantized)(values)[0].numpy()
        # A product that ends on the other side of a rounding boundary differs by a step of its activation.
        assert abs(found - expected).max() < 0.01 * abs(expected).max(), method


def test_a_saved_model_keeps_its_scales(quantized_models, transformer_graph, transformer_inputs, tmp_path):
    quant.save(quantized_models["awq"], tmp_path)
    again = quant.simulate(quant.load(tmp_path, transformer_graph))(transformer_inputs)[0]
    assert torch.equal(again, quant.simulate(quantized_models["awq"])(transformer_inputs)[0])


@pytest.mark.parametrize("kind", ["one sample", "constant", "zero", "dead channel", "equal weights", "zero weights"])
@pytest.mark.parametrize("method", ["smoothquant", "awq"])
def test_ugly_inputs_have_a_defined_result(kind, method):
    torch.manual_seed(0)
    values, module = torch.randn(64, 16), nn.Linear(16, 24, bias=kind != "zero weights")
    values[:, 5] *= 60
    if kind == "one sample":
        values = values[:1]
    elif kind in ("constant", "zero"):
        values = torch.full((8, 16), 3.0 if kind == "constant" else 0.0)
    elif kind == "dead channel":
        values[:, 3] = 0
    else:
        nn.init.constant_(module.weight, 0.5 if kind == "equal weights" else 0.0)
    graph = quant.capture(nn.Sequential(module).eval(), (torch.randn(2, 16),))
    bits = "int8" if method == "smoothquant" else "int4_g8"
    found = quant.simulate(quant.quantize(graph, method, bits, [(values,)]))(values)[0]
    expected = module(values).detach()
    assert (found - expected).norm() <= 0.1 * expected.norm()


@pytest.mark.parametrize("method", ["smoothquant", "awq"])
def test_bad_calibration_is_one_sentence(transformer_graph, method):
    bits = "int8" if method == "smoothquant" else "int4"
    with pytest.raises(ValueError, match="needs calibration data"):
        quant.quantize(transformer_graph, method, bits)
    with pytest.raises(ValueError, match=r"at the input of '.*\.weight'"):
        quant.quantize(transformer_graph, method, bits, [(torch.full((2, 6, 64), float("inf")),)])


@pytest.mark.parametrize("method", ["smoothquant", "awq"])
def test_a_layer_that_calibration_never_reaches_is_rounded(method):
    modules = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    forward, decode = (quant.capture(module.eval(), (torch.randn(2, 8),)) for module in modules)
    other = {f"other.{name}": value for name, value in decode.parameters.items()}
    renamed = graph_from_json({**graph_to_json(decode.graphs["forward"]), "nodes": _renamed(decode)})
    graph = quant.FloatGraph(
        {"forward": forward.graphs["forward"], "decode": renamed},
        {**forward.parameters, **other},
        {"forward": forward.examples["forward"], "decode": decode.examples["forward"]},
    )
    quantized = quant.quantize(graph, method, "int8", [(torch.randn(4, 8),)])
    assert {"other.0.weight", "other.1.weight", "0.weight"} == set(quantized.weights)
    error = quantized.weights["other.1.weight"].dequantize() - graph.parameters["other.1.weight"]
    assert error.abs().max() <= quantized.weights["other.1.weight"].scale.max()


def _renamed(graph):
    nodes = graph_to_json(graph.graphs["forward"])["nodes"]
    rename = lambda item: {"parameter": f"other.{item['parameter']}"} if "parameter" in item else item  # noqa: E731
    return [[name, operator, [rename(item) for item in arguments], {}] for name, operator, arguments, _ in nodes]
