"""LiteRT, the runtime of TensorFlow Lite's files: static methods in its integer kernels, other weights as their codes.

Its converter needs versions of libraries that others cannot live with, and so has an environment of its own; the file
takes one sample of the examples' shape at a time.
"""

import json
import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from quant.exporting import Layout, litert_file
from quant.exporting.litert_file import MODEL, TENSORS

ARTIFACT = "litert"
BACKEND = None
ENVIRONMENT = {"folder": ".litert", "packages": "'torch<2.14' litert-torch"}


def write(quantized, built: None, artifact: Path) -> None:
    """Have the converter write the folder.

    What it fuses into integer kernels is known only from what it made: weights it did not are held as their codes.

    Raises:
        ValueError: a table has no form that the converter keeps, or it cannot convert the model.
    """
    from quant.exporting.litert_weights import suits_integer_kernels

    weights = quantized.weights if quantized.activations else {}
    rounded = {name for name, weight in weights.items() if suits_integer_kernels(weight)}
    kept = _convert(quantized, rounded, artifact)
    if kept != set(quantized.weights) and rounded:
        shutil.rmtree(artifact)
        _convert(quantized, rounded & kept, artifact)


def load(artifact: Path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(artifact / MODEL), num_threads=1)
    interpreter.allocate_tensors()
    inputs = sorted(interpreter.get_input_details(), key=lambda entry: entry["name"])
    output = interpreter.get_output_details()[0]

    def function(*arrays: np.ndarray) -> list[np.ndarray]:
        for entry, array in zip(inputs, arrays, strict=True):
            interpreter.set_tensor(entry["index"], _stored(entry, array))
        interpreter.invoke()
        return [_real(output, interpreter.get_tensor(output["index"]))]

    return function


def version() -> str:
    from importlib.metadata import version

    return f"ai-edge-litert {version('ai-edge-litert')}"


def codes(artifact: Path, layouts: Mapping[str, Layout]) -> dict[str, np.ndarray]:
    tensors, found = litert_file.integers(litert_file.read(artifact / MODEL)), {}
    for name, (index, order) in json.loads((artifact / TENSORS).read_text()).items():
        layout = layouts[name]
        order = order or list(range(len(layout.shape)))
        codes = tensors[index].reshape([layout.shape[axis] for axis in order]).transpose(np.argsort(order))
        if not layout.signed:
            codes = (codes.astype(np.int16) + 2 ** (layout.bits - 1)).astype(np.uint8)
        found[name] = np.ascontiguousarray(codes)
    return found


def _convert(quantized, rounded: Collection[str], artifact: Path) -> set[str]:
    """Write the folder and return the weights whose codes are in it; those ``rounded`` are left to integer kernels."""
    import torch

    from quant.exporting import format_named
    from quant.exporting.checking import environment
    from quant.exporting.decomposed import quantizer
    from quant.exporting.litert_conversion import CODES, HELD, PROGRAM
    from quant.exporting.litert_weights import HeldWeight, RoundedWeight, centred, held
    from quant.exporting.stored_weights import exported

    def module(name: str, weight) -> torch.nn.Module:
        return RoundedWeight(weight) if name in rounded else HeldWeight(name, weight)

    with TemporaryDirectory() as place:
        folder, buffers, codes = Path(place), {}, {}
        for name, weight in quantized.weights.items():
            if name in rounded:
                codes[name] = centred(weight.codes, weight.format).numpy()
            else:
                buffers |= held(name, weight)
        torch.export.save(exported(quantized, module, quantizer), folder / PROGRAM)
        np.savez(folder / CODES, **codes)
        (folder / HELD).write_text(json.dumps(buffers))
        command = [str(format_named("litert").python), "-m", "quant.exporting.litert_conversion", place]
        done = subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            said = [line.strip() for line in done.stderr.splitlines() if "Error" in line]
            raise ValueError(f"LiteRT's converter cannot take this model: {said[-1] if said else done.stderr[-200:]}")
        artifact.mkdir()
        for part in (MODEL, TENSORS):
            shutil.move(folder / part, artifact / part)
    return set(json.loads((artifact / TENSORS).read_text()))


def _stored(entry: dict, array: np.ndarray) -> np.ndarray:
    """Return an input in the type that the model takes, in integers where it has a scale."""
    scale, zero_point = entry["quantization"]
    if scale and entry["dtype"] is np.int8:
        array = np.clip(np.rint(array / scale) + zero_point, -128, 127)
    return array.astype(entry["dtype"])


def _real(entry: dict, array: np.ndarray) -> np.ndarray:
    scale, zero_point = entry["quantization"]
    return (array.astype(np.float32) - zero_point) * np.float32(scale) if scale else array
