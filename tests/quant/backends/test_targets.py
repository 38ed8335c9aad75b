"""Targets that this machine may not have: what is passed to the runtimes is checked against the runtimes' own names."""

import coremltools
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from quant.backends import coreml, onnxruntime_apple, onnxruntime_cuda, target, targets
from quant.backends._mlx_blas import mx
from quant.backends._onnx_session import open_session, placement

CUDA_OPTIONS = {"use_tf32"}
CORE_ML_OPTIONS = {"ModelFormat": {"MLProgram", "NeuralNetwork"}, "MLComputeUnits": {"ALL", "CPUOnly", "CPUAndGPU"}}


@pytest.mark.parametrize("name", [name for name, found in targets().items() if found.entry.name == "torch"])
def test_torch_knows_the_device(name):
    device = target(name).device
    assert device is None or torch.device(device).type == device


@pytest.mark.parametrize("name", [name for name, found in targets().items() if found.entry.name == "mlx"])
def test_mlx_knows_the_device(name):
    device = target(name).device
    assert device is None or isinstance(mx.Device(getattr(mx, device)), mx.Device)


@pytest.mark.parametrize("name", [name for name, found in targets().items() if found.entry.name == "coreml"])
def test_core_ml_knows_the_compute_units(name):
    assert coreml._COMPUTE_UNITS[target(name).device] in coremltools.ComputeUnit.__members__


@pytest.mark.parametrize("backend", [onnxruntime_cuda, onnxruntime_apple])
def test_onnx_runtime_knows_the_provider(backend):
    (name, options), *others = backend.PROVIDERS
    assert name in onnxruntime.get_all_providers()
    assert others == ["CPUExecutionProvider"]
    assert all(isinstance(value, str) for value in options.values())


def test_options_are_those_of_the_documentation():
    assert set(onnxruntime_cuda.PROVIDERS[0][1]) <= CUDA_OPTIONS
    for name, value in onnxruntime_apple.PROVIDERS[0][1].items():
        assert value in CORE_ML_OPTIONS[name]


def identity():
    node = helper.make_node("Relu", ["x"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([node], "identity", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="it can be used here")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_cannot_be_used_is_a_sentence_and_not_the_next_one():
    with pytest.raises(ValueError, match="cannot use its CUDAExecutionProvider here"):
        open_session(identity().SerializeToString(), providers=onnxruntime_cuda.PROVIDERS)


def test_one_provider_has_nothing_to_place():
    model = identity()
    onnx.checker.check_model(model)
    session = open_session(model.SerializeToString())
    assert placement(session) == []
    np.testing.assert_array_equal(session.run(None, {"x": np.float32([-1, 2])})[0], [0, 2])


@pytest.mark.parametrize("name", targets())
def test_settings_are_what_loading_takes(name):
    """The constants are read without importing the module; what they say must be true of it."""
    import inspect

    found = target(name)
    if found.missing():
        pytest.skip(f"not installed: {found.missing()}")
    taken = inspect.signature(found.load().load).parameters
    offered = {*found.constant("SETTINGS", {}), *found.settings}
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values())
    assert open_ended or offered <= set(taken)
    for setting, value in found.settings.items():
        assert value in found.constant("SETTINGS")[setting]
