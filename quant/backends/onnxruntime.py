"""ONNX Runtime on the CPU: tables spliced into a float ONNX model, run by its block-wise and integer kernels.

Weight-only linear layers and embeddings run on MatMulNBits and GatherBlockQuantized, which keep activations float, and
layers of normal floats on MatMulBnb4. W4A8 is MatMulNBits at the accuracy level at which it quantizes its input too.
W8A8 runs on QLinearConv, QGemm and MatMulIntegerToFloat, which ONNX Runtime fuses from the standard
QuantizeLinear/DequantizeLinear form. Inputs quantized at run time go to MatMulIntegerToFloat and DynamicQuantizeLSTM;
the runtime's own operator for that is asymmetric per tensor, all else is arithmetic before the product. Weights without
a kernel, as of weight-only convolutions and other codebooks, are simulated.
"""

import functools
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from quant.backends import _onnx_coverage as coverage
from quant.backends import _onnx_template as templates
from quant.backends import evidence_of
from quant.backends._onnx_session import CPU, Provider, open_session, placement, quiet, session_options
from quant.backends._onnx_splice import splice
from quant.graph import FloatGraph, QuantizedModel
from quant.reading import readable

TARGETS = {"onnxruntime": {}}
REQUIRES = {
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
    "static": ["int8", "int8_reduced"],
    "dynamic": [
        "int8", "int8_reduced", "w4a8",
        "int8_token_sym", "int8_token_asym", "int8_tensor_sym", "int8_tensor_asym",
    ],
}  # fmt: skip
REFUSES = {
    "static_gptq": "ONNX Runtime's integer convolutions write integers alone, which sums then add.",
    "bf16": "ONNX Runtime has no bfloat16 kernels for the CPU.",
    "recurrent-int8_token_sym": "ONNX Runtime's LSTM kernel quantizes asymmetrically per tensor, as int8 does.",
    "recurrent-int8_token_asym": "ONNX Runtime's LSTM kernel quantizes asymmetrically per tensor, as int8 does.",
    "recurrent-int8_tensor_sym": "ONNX Runtime's LSTM kernel quantizes asymmetrically per tensor, as int8 does.",
}
NATIVE = {
    "native": {"int8": "MatMulNBitsQuantizer", "int4": "MatMulNBitsQuantizer"},
    "native_static": {"int8": "quantize_static"},
    "native_dynamic": {"int8": "quantize_dynamic"},
}
SETTINGS = {
    "optimization": ("all", "extended", "basic"),
    "arena": (True, False),
    "memory_pattern": (True, False),
    "spinning": (True, False),
}
NUMBERS = {"int4": ("int4_g64", "int4_g128", "int4_sym", "w4a8")}
INTEGER_KERNELS = True
DYNAMIC_GRANULARITY = "tensor"
WIDTHS = [2, 4, 8]


def version() -> str:
    """Return the runtime's name and version."""
    return f"onnxruntime {onnxruntime.__version__}"


def template(graph: FloatGraph, folder: Path, precision: str = "float32") -> None:
    """Write the float model in ONNX and a checked map of names; ``precision`` is chosen when splicing."""
    templates.write(graph, folder)


def compile(quantized: QuantizedModel, template: Path, folder: Path) -> None:
    """Splice the tables into the template and write ``model.onnx`` into ``folder``.

    Raises:
        ValueError: a table entry has no target in the ONNX model, or the runtime cannot express it.
    """
    source = templates.read(template)
    splice(quantized, source)
    source.model.metadata_props[coverage.KEY] = coverage.describe(quantized.graph, quantized)
    templates.save(source.model, folder)


def compile_native(
    method: str, bits: str, template: Path, folder: Path, calibration: Sequence[tuple[np.ndarray, ...]] = ()
) -> None:
    """Write the artefact that ONNX Runtime's own quantizer makes of the float model.

    Raises:
        ValueError: the quantizer found nothing to quantize, or needs calibration data and got none.
    """
    with quiet():  # importing the quantizers is loud, too
        native = importlib.import_module("quant.backends._onnx_native")
    native.quantize(method, bits, template, folder / templates.MODEL, calibration)


def load(folder: Path, threads: int = 1, device: str | None = None, **settings: object) -> "Executable":
    """Load an artefact into an inference session on ``threads`` threads; ``settings`` are some of ``SETTINGS``.

    Raises:
        ValueError: the folder holds no model, or a damaged one.
    """
    with readable(f"{folder} holds no readable ONNX model", "compile it again"):
        return Executable(Path(folder) / templates.MODEL, threads, settings)


class Executable:
    """An ONNX model in an inference session."""

    untimed_reason = None

    def __init__(
        self,
        path: Path,
        threads: int,
        settings: Mapping[str, object] | None = None,
        providers: Sequence[Provider] = CPU,
    ) -> None:
        self.path = path
        self._session = open_session(path, threads, session_options(**(settings or {})), providers)
        self._inputs = [(entry.name, _NUMPY_TYPES[entry.type]) for entry in self._session.get_inputs()]

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Run one batch; one array per input of ``forward``.

        Raises:
            ValueError: the number of inputs is not the model's.
        """
        return self._session.run(None, self._feeds(inputs))

    def step(self, *inputs: np.ndarray | onnxruntime.OrtValue) -> tuple[np.ndarray, list[onnxruntime.OrtValue]]:
        """Run one batch; the outputs but the first stay values of the session, which copies none of them.

        Raises:
            ValueError: the number of inputs is not the model's.
        """
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in self._feeds(inputs).items()
        }
        first, *others = self._session.run_with_ort_values(None, values)
        return first.numpy(), others

    def _feeds(self, inputs: Sequence[np.ndarray | onnxruntime.OrtValue]) -> dict[str, object]:
        if len(inputs) != len(self._inputs):
            raise ValueError(f"the model takes {len(self._inputs)} inputs, not {len(inputs)}.")
        return {
            name: value if isinstance(value, onnxruntime.OrtValue) else np.ascontiguousarray(value, dtype)
            for (name, dtype), value in zip(self._inputs, inputs, strict=True)
        }

    @property
    def size_bytes(self) -> int:
        """Bytes of the model's file, and of the weights beside it if they did not fit inside."""
        return sum(path.stat().st_size for path in self.path.parent.glob(f"{self.path.name}*"))

    @property
    def evidence(self) -> str:
        """ "simulated" if any operator that the tables quantize is computed in float."""
        return evidence_of(self.coverage())

    def coverage(self) -> dict[str, object]:
        """Return the shares of multiply-accumulates on native kernels and simulated, from the optimized graph."""
        return self._coverage

    @functools.cached_property
    def _coverage(self) -> dict[str, object]:
        found = coverage.measure(self.path)
        return {**found, "notes": [*found["notes"], *placement(self._session)]}


_NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
