"""ONNX of standard operators alone, opset 21, for any runtime: weights are DequantizeLinear of their codes, in blocks.

Inputs of operators in integers go through QuantizeLinear and DequantizeLinear. A runtime fuses what it has kernels for,
and computes the rest as it stands.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from quant.exporting import Function, Layout
from quant.exporting.writers import openvino
from quant.exporting.writers.onnxruntime import TOO_LARGE, load, version

__all__ = ["codes", "load", "readers", "version", "write"]

ARTIFACT = "model.onnx"
BACKEND = "onnxruntime"
TEMPLATE = True


def write(quantized, built: Path, artifact: Path) -> None:
    """Splice the tables into the template.

    Raises:
        ValueError: standard ONNX cannot express a table, or the model is too large for one file.
    """
    from quant.backends import _onnx_portable as portable
    from quant.backends import _onnx_template as templates

    template = templates.read(built)
    portable.splice(quantized, template)
    templates.save(template.model, artifact.parent)
    if len(list(artifact.parent.glob(f"{ARTIFACT}*"))) > 1:
        raise ValueError(TOO_LARGE)


def codes(artifact: Path, layouts: Mapping[str, Layout]):
    """Return the codes of a model that ONNX's own checker accepts; the checker raises what it found otherwise."""
    import onnx

    from quant.exporting.onnx_codes import read

    onnx.checker.check_model(artifact, full_check=True)
    return read(artifact, layouts)


def readers(artifact: Path) -> dict[str, Callable[[], Function]]:
    """Return the two others that standard ONNX is tried in: its reference implementation, and OpenVINO."""
    return {"onnx_reference": partial(_reference, artifact), "openvino": partial(openvino.compiled, artifact)}


def _reference(artifact: Path) -> Function:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(artifact))
    return lambda *inputs: evaluator.run(None, dict(zip(evaluator.input_names, inputs, strict=True)))
