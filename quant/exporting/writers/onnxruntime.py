"""ONNX as ONNX Runtime runs it fastest: its own block-wise kernels, and Q/DQ in the form it fuses."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from quant.exporting import Layout

ARTIFACT = "model.onnx"
BACKEND = "onnxruntime"
TOO_LARGE = "this model is larger than the 2 GB that one ONNX file holds: use fewer bits."


def write(quantized, built: Path, artifact: Path) -> None:
    """Copy the backend's model.

    Raises:
        ValueError: it is too large for one file.
    """
    if len(list(built.glob("model.onnx*"))) > 1:
        raise ValueError(TOO_LARGE)
    shutil.copyfile(built / "model.onnx", artifact)


def load(artifact: Path):
    from quant.backends._onnx_session import open_session

    session = open_session(artifact)
    names = [entry.name for entry in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def version() -> str:
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def codes(artifact: Path, layouts: Mapping[str, Layout]):
    from quant.exporting.onnx_codes import read

    return read(artifact, layouts)
