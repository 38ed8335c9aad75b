"""Core ML: Apple's runtime, measured on macOS; elsewhere the saved model is run by a reference evaluator.

The model is converted once; a case splices its tables into the saved program. In a float32 program scales are stored in
half precision and widened by ``constexpr_cast`` as the model is loaded; in a float16 program they need no such step.
"""

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version as package_version
from pathlib import Path

import numpy as np
import torch

from quant.backends._coreml_neural_engine import forecast
from quant.backends._coreml_package import NAMES, PACKAGE, Package, WeightFile, coremltools, input_name, quiet, shape_of
from quant.backends._coreml_splice import spliced
from quant.backends._coreml_template import write_template
from quant.backends.coreml_evaluator import Evaluator
from quant.graph import FloatGraph, QuantizedModel
from quant.reading import readable

__all__ = ["compile", "compile_native", "forecast", "load", "template", "version"]

TARGETS = {
    "coreml": {},
    "coreml_cpu": {"device": "cpu", "platform": "darwin"},
    "coreml_gpu": {"device": "gpu", "platform": "darwin"},
    "coreml_ane": {"device": "ane", "platform": "darwin", "precision": "float16"},
}
REQUIRES = {"coremltools": "pip install coremltools"}
EXECUTES = {
    "float": ["fp32", "fp16"],
    "weight_only": [
        "int8", "int6", "int5", "int4", "int3", "int2",
        "lut8", "lut6", "lut4", "lut3", "lut2",
        "mixed_3p5", "mixed_4", "mixed_4p5", "mixed_5", "mixed_6",
    ],
    "static": ["int8", "int8_sym"],
}  # fmt: skip
REFUSES = {
    "dynamic": "Core ML has no run-time activation quantization.",
    "weight_only": "Core ML reads no scaled look-up table before iOS 26, and formats of floats are such: use lut4.",
    "bf16": "Core ML has no bfloat16 type.",
}
TEMPLATE_PER_PRECISION = True
RUNS_ON = "darwin"
WIDTHS = [4, 8]
NATIVE = {
    "native": {
        "int8": "coremltools linear_quantize_weights, symmetric per output channel",
        "int4": "coremltools linear_quantize_weights, asymmetric blocks of 32",
    }
}

_COMPUTE_UNITS = {None: "ALL", "cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}
_NATIVE_SETTINGS = {
    "int8": {"mode": "linear_symmetric", "dtype": "int8", "granularity": "per_channel"},
    "int4": {"mode": "linear", "dtype": "int4", "granularity": "per_block", "block_size": 32},
}


def version() -> str:
    """Return the version of coremltools and, where Core ML runs, of the system it belongs to."""
    system = f", macOS {platform.mac_ver()[0]}" if sys.platform == "darwin" else ""
    return f"coremltools {package_version('coremltools')}{system}"


def template(graph: FloatGraph, folder: Path, precision: str) -> None:
    """Convert the float graph and write it with its map of names; ``precision`` is float32 or float16.

    Raises:
        ValueError: another precision, or a graph that coremltools cannot convert.
    """
    if precision not in ("float32", "float16"):
        raise ValueError(f"Core ML computes in float32 or float16, not in {precision}.")
    write_template(graph, folder, precision)


def compile(quantized: QuantizedModel, template: Path, folder: Path) -> None:
    """Splice the tables into the template and write the package into ``folder``.

    Raises:
        ValueError: the template is of other weights, or a table entry has no target in it.
    """
    package = Package(template)
    if package.names["weights_sha256"] != quantized.graph.weights_sha256:
        raise ValueError(f"{template} was converted from other weights: make the template of this model.")
    weights = WeightFile(folder)
    operations = spliced(package, quantized, weights)
    package.save(folder, {**package.names, "notes": _notes(quantized)}, operations)


def compile_native(
    method: str, bits: str, template: Path, folder: Path, calibration: Sequence[tuple[np.ndarray, ...]]
) -> None:
    """Write what coremltools' own weight quantizer makes of the template; it needs no calibration.

    Raises:
        ValueError: coremltools has no such quantizer.
    """
    if bits not in NATIVE.get(method, {}):
        raise ValueError(f"coremltools has no quantizer for {method} {bits} on this system: use native int8 or int4.")
    optimize = coremltools().optimize.coreml
    model = coremltools().models.MLModel(str(template / PACKAGE), skip_model_load=True)
    settings = optimize.OpLinearQuantizerConfig(**_NATIVE_SETTINGS[bits])
    with quiet():
        quantized = optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=settings))
    folder.mkdir(parents=True, exist_ok=True)
    quantized.save(str(folder / PACKAGE))
    (folder / NAMES).write_text((template / NAMES).read_text())


def load(folder: Path, threads: int, device: str | None) -> "Executable":
    """Load a package from disk: into Core ML on macOS, into the reference evaluator elsewhere.

    ``threads`` holds for the evaluator; Core ML has no such setting.

    Raises:
        ValueError: a device is asked for where Core ML does not run, or the folder holds no package.
    """
    if sys.platform != "darwin" and device is not None:
        raise ValueError(f"Core ML runs on the {device} on macOS only: leave out the device to evaluate the model.")
    if sys.platform == "darwin":
        return Predicted(folder, device)
    torch.set_num_threads(threads)
    return Evaluated(folder)


class Executable:
    """A package on disk, ready to run; subclasses say where."""

    evidence: str
    untimed_reason: str | None

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._package = Package(folder)
        with readable(f"{folder} holds no map of its names", "compile it again"):
            names = self._package.names
            self._inputs, self._outputs = tuple(names["inputs"]), tuple(names["outputs"])
            self._half = names["precision"] == "float16"

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Run one batch; outputs are float32.

        Raises:
            ValueError: not as many arrays as the model has inputs.
        """
        if len(inputs) != len(self._inputs):
            raise ValueError(
                f"the model takes {len(self._inputs)} inputs ({', '.join(self._inputs)}), not {len(inputs)}."
            )
        # Core ML has no 64-bit types.
        arrays = [np.asarray(x, np.int32 if np.asarray(x).dtype.kind in "iub" else np.float32) for x in inputs]
        outputs = self._run(dict(zip(self._inputs, arrays, strict=True)))
        return [np.asarray(outputs[name], np.float32) for name in self._outputs]

    def step(self, *inputs: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Run one batch; Core ML hands all outputs back as arrays."""
        first, *others = self(*inputs)
        return first, others

    def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise NotImplementedError

    @property
    def size_bytes(self) -> int:
        """Bytes of the package on disk."""
        return sum(path.stat().st_size for path in self._package.folder.rglob("*") if path.is_file())

    def coverage(self) -> dict[str, object]:
        """Return what is quantized in the saved program, in shares of multiply-accumulates and of parameters.

        An operator whose weight is compressed is native: Core ML decompresses it itself. So is one whose input is
        quantized as well; one whose input alone is quantized is computed in float, hence simulated.
        """
        macs = self._package.names["macs"]
        producers = {value.name: op.type for op in self._package.operations for value in op.outputs}
        native = simulated = 0
        for operation in self._package.operations:
            amount = macs.get(operation.outputs[0].name, 0) if operation.outputs else 0
            taken = {producers.get(input_name(operation, key) or "", "") for key in operation.inputs}
            if any(kind.startswith("constexpr_") and kind != "constexpr_cast" for kind in taken):
                native += amount
            elif "dequantize" in taken:
                simulated += amount
        total = sum(macs.values()) or 1
        return {
            "operators_native": native / total,
            "operators_simulated": simulated / total,
            "parameters_quantized": _compressed_elements(self._package) / self._package.names["parameters"],
            "notes": self._package.names.get("notes", []),
        }


class Evaluated(Executable):
    """A package that the reference evaluator runs."""

    evidence = "evaluated"
    untimed_reason = "Core ML runs on macOS only; its saved model was evaluated in torch."

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._evaluator = Evaluator(self._package.folder, self._half)

    def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in self._evaluator(inputs).items()}


class Predicted(Executable):
    """A package that Core ML runs."""

    evidence = "measured"
    untimed_reason = None

    def __init__(self, folder: Path, device: str | None) -> None:
        super().__init__(folder)
        units = coremltools().ComputeUnit[_COMPUTE_UNITS[device]]
        self._model = coremltools().models.MLModel(str(self._package.folder), compute_units=units)

    def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._model.predict(inputs)


def _compressed_elements(package: Package) -> int:
    """Return the elements of all weights that are stored as codes."""
    outer = {
        operation.outputs[0].name: operation.outputs[0].type
        for operation in package.operations
        if operation.type.startswith("constexpr_") and operation.type != "constexpr_cast"
    }
    # One compressed value may feed another: only the last of a chain is a weight.
    inner = {
        input_name(operation, key)
        for operation in package.operations
        if operation.outputs and operation.outputs[0].name in outer
        for key in operation.inputs
    }
    return sum(int(np.prod(shape_of(declared))) for name, declared in outer.items() if name not in inner)


def _notes(quantized: QuantizedModel) -> list[str]:
    integers = [weight for weight in quantized.weights.values() if weight.codebook is None]
    wider = {weight.format.bits for weight in integers if weight.format.bits not in (4, 8)}
    return [
        f"Core ML has no {bits}-bit weights: they are stored in {4 if bits < 4 else 8} bits." for bits in sorted(wider)
    ]
