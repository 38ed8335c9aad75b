"""OpenVINO's intermediate representation: ``model.xml`` and its weights in ``model.bin``, made from standard ONNX."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quant.exporting import Layout

ARTIFACT = "openvino"
BACKEND = "onnxruntime"
TEMPLATE = True
REQUIRES = {"openvino": "pip install openvino"}

_MODEL = "model.xml"
_SETTINGS = {
    "INFERENCE_NUM_THREADS": 1,
    # OpenVINO may compute more coarsely than it is asked to: in bfloat16, and with inputs rounded to 8 bits.
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}


def write(quantized, built: Path, artifact: Path) -> None:
    import openvino

    from quant.exporting.writers import onnx

    artifact.mkdir()
    source = artifact / onnx.ARTIFACT
    onnx.write(quantized, built, source)
    # Compressing would round what stays float to half precision.
    openvino.save_model(openvino.Core().read_model(source), artifact / _MODEL, compress_to_fp16=False)
    source.unlink()


def load(artifact: Path):
    return compiled(artifact / _MODEL)


def compiled(file: Path):
    """Load what OpenVINO reads, its own representation or ONNX."""
    import openvino

    model = openvino.Core().compile_model(file, "CPU", _SETTINGS)
    return lambda *inputs: [np.array(value) for value in model(list(inputs)).values()]


def version() -> str:
    from importlib.metadata import version

    return f"openvino {version('openvino')}"


def codes(artifact: Path, layouts: Mapping[str, Layout]) -> dict[str, np.ndarray]:
    import openvino

    from quant.exporting.onnx_codes import undo

    constants = {
        node.get_friendly_name(): node
        for node in openvino.Core().read_model(artifact / _MODEL).get_ops()
        if node.get_type_name() == "Constant"
    }
    return undo(layouts, constants.keys(), lambda name: _array(constants[name]))


def _array(constant) -> np.ndarray:
    """Return the integers of a constant, one to an element."""
    data, shape = constant.data, tuple(constant.shape)
    if constant.get_element_type().get_type_name() not in ("u4", "i4"):
        return data
    packed = data.reshape(-1).view(np.uint8)
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(-1)[: np.prod(shape, dtype=int)].reshape(shape)
    signed = constant.get_element_type().get_type_name() == "i4"
    return ((codes ^ 8).astype(np.int8) - 8) if signed else codes
