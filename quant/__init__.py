"""Quantize a float model once, as tables of codes and scales, and run the same integers on every runtime.

    graph = quant.capture(module, (example,), ({0: "batch"},))
    quantized = quant.quantize(graph, method="rtn", bits="int4")
    executable = quant.compile(quantized, backend="onnxruntime", folder="build")
    outputs = executable(example.numpy())

Importing this package imports nothing heavy: torch comes with the first of the names below that is used.
"""

import importlib

_HOMES = {
    "ActivationQuantizer": "quant.graph",
    "FloatGraph": "quant.graph",
    "QuantizedModel": "quant.graph",
    "QuantizedTensor": "quant.tensor",
    "Recipe": "quant.recipe",
    "Scheme": "quant.scheme",
    "Validation": "quant.recipe",
    "capture": "quant.tracing",
    "compile": "quant.compiler",
    "export": "quant.exporting",
    "load": "quant.storage",
    "parse": "quant.scheme",
    "qat": "quant.training",
    "quantize": "quant.methods",
    "replay": "quant.replaying",
    "save": "quant.storage",
    "simulate": "quant.graph",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'quant' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
