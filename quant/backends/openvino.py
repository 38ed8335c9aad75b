"""OpenVINO on the CPU: tables as standard ONNX, run by its integer and weight-decompressing kernels.

Static W8A8 runs in integers wherever OpenVINO fuses the operator with what quantizes its inputs. Weights of linear
layers in 8 or 4 bits stay packed and are decompressed inside the kernel; other weights are dequantized when the model
is loaded, and simulated. Which of these it did is read from its execution graph.

OpenVINO may compute more coarsely than it is asked to: in bfloat16 where the processor can, and with the inputs of
linear layers with packed weights rounded to 8 bits. Here both are off, unless the tables round those inputs.
"""

import functools
import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import openvino

from quant.backends import _onnx_portable as portable
from quant.backends import _onnx_template as templates
from quant.backends import _openvino_graph as execution
from quant.backends import evidence_of
from quant.backends._onnx_session import quiet
from quant.backends._openvino_dynamic import leave_inputs_to_kernels
from quant.graph import FloatGraph, QuantizedModel
from quant.reading import readable
from quant.scheme import parse

TARGETS = {"openvino": {}}
REQUIRES = {
    "openvino": "pip install openvino",
    "onnxruntime": "pip install onnxruntime onnx onnx-ir onnxscript",
    "onnx": "pip install onnxruntime onnx onnx-ir onnxscript",
    "onnx_ir": "pip install onnxruntime onnx onnx-ir onnxscript",
    "onnxscript": "pip install onnxruntime onnx onnx-ir onnxscript",
}
EXECUTES = {
    "float": ["fp32", "fp16"],
    "weight_only": [
        "int8", "int6", "int5", "int4", "int3", "int2",
        "e4m3", "e5m2", "mxfp8", "mxfp4", "nvfp4", "nf4",
        "lut8", "lut6", "lut4", "lut3", "lut2",
        "mixed_3p5", "mixed_4", "mixed_4p5", "mixed_5", "mixed_6",
    ],
    "static": ["int8", "int8_sym", "int8_reduced"],
    "dynamic": ["int8", "int8_reduced", "w4a8"],
}  # fmt: skip
REFUSES = {
    "bf16": "OpenVINO chooses bfloat16 by the processor, for any model: an artefact has no say in it.",
    "dynamic": "OpenVINO's kernels round inputs at run time in groups of one size for all layers, as int8 does.",
    "dynamic_attention": "OpenVINO rounds at run time where a factor is a weight alone, and in attention none is.",
}
NATIVE = {
    "native": {
        "int8": "nncf.compress_weights, INT8_ASYM",
        "int4": "nncf.compress_weights, INT4_ASYM in groups of 32",
    },
    "native_static": {"int8": "nncf.quantize"},
    "native_dynamic": {"int8": "nncf.compress_weights, INT8_SYM, with inputs rounded in groups of 32"},
}
NATIVE_REQUIRES = {"nncf": "pip install nncf"}
DYNAMIC_GRANULARITY = "group"
WIDTHS = [4, 8]
_WORK = "work.json"
_NATIVE_MODEL = "model.xml"
_NATIVE_INPUT_GROUP = 32  # as OpenVINO has it unless told otherwise


def version() -> str:
    """Return the runtime's name and version."""
    return f"openvino {openvino.__version__}"


def template(graph: FloatGraph, folder: Path, precision: str = "float32") -> None:
    """Write the float model in ONNX and a checked map of names; ``precision`` is chosen when splicing."""
    templates.write(graph, folder)
    _write(execution.work_of(QuantizedModel(graph, parse("fp32", "float")), templates.read(folder)), folder)


def compile(quantized: QuantizedModel, template: Path, folder: Path) -> None:
    """Splice the tables into the template and write ``model.onnx`` into ``folder``.

    Raises:
        ValueError: a table entry has no target in the ONNX model, or the runtime cannot express it.
    """
    source = templates.read(template)
    spliced, input_group = leave_inputs_to_kernels(quantized)
    work = execution.work_of(spliced, source, input_group)
    portable.splice(spliced, source)
    templates.save(source.model, folder)
    _write(work, folder)


def compile_native(
    method: str, bits: str, template: Path, folder: Path, calibration: Sequence[tuple[np.ndarray, ...]] = ()
) -> None:
    """Write the artefact that NNCF, OpenVINO's own quantizer, makes of the float model.

    Raises:
        ValueError: the quantizer found nothing to quantize, or needs calibration data and got none.
    """
    with quiet():  # importing it is loud, too
        native = importlib.import_module("quant.backends._openvino_native")
    model = native.quantize(method, bits, openvino.convert_model(template / templates.MODEL), calibration)
    work = execution.Work(**json.loads((template / _WORK).read_text()))
    quantized = execution.quantized_by_nncf(model, work)
    if not quantized:
        raise ValueError(f"NNCF's quantizer for {method} {bits} found nothing to quantize in this model.")
    openvino.save_model(model, folder / _NATIVE_MODEL, compress_to_fp16=False)
    input_group = _NATIVE_INPUT_GROUP if method == "native_dynamic" else 0
    _write(replace(work, quantized=quantized, input_group=input_group), folder)


def load(folder: Path, threads: int = 1, device: str | None = None) -> "Executable":
    """Load an artefact and compile it for ``threads`` threads.

    Raises:
        ValueError: the folder holds no model, or a damaged one.
    """
    with readable(f"{folder} holds no readable OpenVINO model", "compile it again"):
        return Executable(Path(folder), threads)


class Executable:
    """A compiled model with one inference request."""

    untimed_reason = None

    def __init__(self, folder: Path, threads: int) -> None:
        self._work = execution.Work(**json.loads((folder / _WORK).read_text()))
        native = folder / _NATIVE_MODEL
        self.path = native if native.exists() else folder / templates.MODEL
        self._model = _core().compile_model(self.path, "CPU", _settings(threads, self._work.input_group))
        self._request = self._model.create_infer_request()
        self._types = [value.element_type.to_dtype() for value in self._model.inputs]

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Run one batch; one array per input of ``forward``.

        Raises:
            ValueError: the number of inputs is not the model's.
        """
        if len(inputs) != len(self._types):
            raise ValueError(f"the model takes {len(self._types)} inputs, not {len(inputs)}.")
        arrays = [np.ascontiguousarray(array, dtype) for array, dtype in zip(inputs, self._types, strict=True)]
        results = self._request.infer(arrays, share_inputs=True)
        return [results[output] for output in self._model.outputs]

    def step(self, *inputs: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Run one batch; the outputs but the first are arrays, which the next step reads where they lie.

        Raises:
            ValueError: the number of inputs is not the model's.
        """
        first, *others = self(*inputs)
        return first, others

    @property
    def size_bytes(self) -> int:
        """Bytes of the model's file, and of the weights beside it."""
        return sum(path.stat().st_size for path in self.path.parent.glob(f"{self.path.stem}.*"))

    @property
    def evidence(self) -> str:
        """ "simulated" if any operator that the tables quantize is computed in float."""
        return evidence_of(self.coverage())

    def coverage(self) -> dict[str, object]:
        """Return the shares of multiply-accumulates on native kernels and simulated, from the execution graph."""
        return self._coverage

    @functools.cached_property
    def _coverage(self) -> dict[str, object]:
        return execution.measure(self._model, self._work)


@functools.cache
def _core() -> openvino.Core:
    return openvino.Core()


def _settings(threads: int, input_group: int) -> dict[str, object]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": input_group,
        "ENABLE_CPU_PINNING": False,  # whoever calls has chosen the processors
    }


def _write(work: execution.Work, folder: Path) -> None:
    (folder / _WORK).write_text(json.dumps(asdict(work)))
