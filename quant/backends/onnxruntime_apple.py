"""ONNX Runtime on Apple's GPU and Neural Engine, through Core ML: float models, which it converts as it loads them.

Untested: options and names are those of ONNX Runtime's documentation; no Mac has run this.
"""

from pathlib import Path

from quant.backends import _onnx_template as templates
from quant.backends._onnx_session import CPU, Provider
from quant.backends.onnxruntime import Executable, compile, compile_native, template, version

__all__ = ["compile", "compile_native", "load", "template", "version"]

TARGETS = {"onnxruntime_apple": {"platform": "darwin"}}
REQUIRES = {
    "onnxruntime": "pip install onnxruntime onnx onnx-ir onnxscript",
    "onnx": "pip install onnxruntime onnx onnx-ir onnxscript",
    "onnx_ir": "pip install onnxruntime onnx onnx-ir onnxscript",
    "onnxscript": "pip install onnxruntime onnx onnx-ir onnxscript",
}
EXECUTES = {"float": ["fp32", "fp16"]}
REFUSES = {
    "weight_only": "ONNX Runtime's Core ML provider takes no quantized weights: use mlx or a coreml target.",
    "static": "ONNX Runtime's Core ML provider takes no quantized operators: use a coreml target.",
    "dynamic": "ONNX Runtime's Core ML provider takes no quantized operators: use mlx.",
}
NATIVE = {}

PROVIDERS: tuple[Provider, ...] = (
    ("CoreMLExecutionProvider", {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"}),
    *CPU,
)


def load(folder: Path, threads: int = 1, device: str | None = None) -> Executable:
    """Load an artefact into an inference session over Core ML; what it refuses runs on ``threads`` threads.

    Raises:
        ValueError: Core ML cannot be used.
    """
    return Executable(Path(folder) / templates.MODEL, threads, providers=PROVIDERS)
