"""ONNX Runtime on an NVIDIA GPU: the artefacts of ``onnxruntime``, whose block-wise kernels exist for CUDA too.

Untested: options and names are those of ONNX Runtime's documentation; no machine with such a GPU has run this.
"""

from pathlib import Path

from quant.backends import _onnx_template as templates
from quant.backends._onnx_session import CPU, Provider
from quant.backends.onnxruntime import Executable, compile, compile_native, template, version

__all__ = ["compile", "compile_native", "load", "template", "version"]

TARGETS = {
    "onnxruntime_cuda": {
        "device": "cuda",
        "needs": "cuda",
        "build": ("onnxruntime", "capi/*onnxruntime_providers_cuda*", "pip install onnxruntime-gpu"),
    }
}
REQUIRES = {
    "onnxruntime": "pip install onnxruntime-gpu onnx onnx-ir onnxscript",
    "onnx": "pip install onnxruntime-gpu onnx onnx-ir onnxscript",
    "onnx_ir": "pip install onnxruntime-gpu onnx onnx-ir onnxscript",
    "onnxscript": "pip install onnxruntime-gpu onnx onnx-ir onnxscript",
}
EXECUTES = {
    "float": ["fp32", "fp16"],
    "weight_only": [
        "int8", "int6", "int5", "int4", "int3", "nf4",
        "mixed_3p5", "mixed_4", "mixed_4p5", "mixed_5", "mixed_6",
    ],
}  # fmt: skip
REFUSES = {
    "weight_only": "ONNX Runtime has no kernel for these weights on CUDA.",
    "static": "ONNX Runtime has no integer kernels for activations on CUDA, and would compute on the CPU.",
    "dynamic": "ONNX Runtime has no integer kernels for activations on CUDA, and would compute on the CPU.",
}
WIDTHS = [4, 8]
NATIVE = {"native": {"int8": "MatMulNBitsQuantizer", "int4": "MatMulNBitsQuantizer"}}

# TensorFloat-32 would round what float computes with to 10 bits, and the error of a case is measured against float.
PROVIDERS: tuple[Provider, ...] = (("CUDAExecutionProvider", {"use_tf32": "0"}), *CPU)


def load(folder: Path, threads: int = 1, device: str | None = None) -> Executable:
    """Load an artefact into an inference session on the GPU; what has no kernel there runs on ``threads`` threads.

    Raises:
        ValueError: the GPU cannot be used.
    """
    return Executable(Path(folder) / templates.MODEL, threads, providers=PROVIDERS)
