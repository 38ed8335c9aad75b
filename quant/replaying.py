"""Recipes: how a quantized model was made, as a file from which it is made again, bit for bit.

    quantized = quant.replay(graph, "recipe.json", calibration)

A recipe holds the names of a method and a scheme, never tables, so it is a few lines that can be read and reviewed. It
names all else that decides codes and scales, too: the weights, the calibration data, the libraries and the instruction
set. Whoever wrote it may add what else is known, such as how much the model loses and why it was chosen.
"""

import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from quant import hardware
from quant.calibrate import Batch
from quant.channels import SEED
from quant.graph import FloatGraph, QuantizedModel
from quant.hardware import saturation
from quant.methods import method, quantize
from quant.scheme import Granularity
from quant.storage import save

FORMAT = 1
_NEEDED = ("format", "method", "bits", "settings", "dynamic_granularity", "weights_sha256", "tables_sha256")


class RecipeWarning(UserWarning):
    """A recipe was replayed elsewhere than where it was written."""


def environment() -> dict[str, str]:
    """Return what decides the last bits of a result beside the code: libraries and instruction set."""
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "isa": ", ".join([torch.backends.cpu.get_cpu_capability(), *_limits()]),
    }


def _limits() -> Iterator[str]:
    """Yield what makes sums of 8-bit products other ones than the instruction set of torch's kernels tells."""
    if saturation.saturates(hardware.processor()):
        yield "no VNNI"
    for name, value in saturation.caps().items():
        yield f"{name}={value}"


def recipe_of(
    quantized: QuantizedModel, calibration: Sequence[Batch] = (), dynamic_granularity: Granularity = "token"
) -> dict[str, object]:
    """Return the recipe, in plain JSON types, of what :func:`quant.quantize` made here with these arguments."""
    made = quantized.recipe
    return {
        "format": FORMAT,
        "method": made["method"],
        "bits": made["bits"],
        "settings": made["settings"],
        "dynamic_granularity": dynamic_granularity,
        "seed": SEED,
        "weights_sha256": quantized.graph.weights_sha256,
        "calibration_sha256": calibration_sha256(calibration) if calibration else None,
        "tables_sha256": tables_sha256(quantized),
        "environment": environment(),
    }


def replay(
    graph: FloatGraph,
    recipe: Mapping[str, object] | Path | str,
    calibration: Sequence[Batch] = (),
    progress: Callable[[str], None] | None = None,
) -> QuantizedModel:
    """Return the quantized model that ``recipe``, a file or what :func:`read_recipe` returned, describes.

    On the machine and libraries it was written with, the tables are the same bit for bit. Elsewhere they may differ in
    a few codes: a :class:`RecipeWarning` says what is different, and whether they do.

    Args:
        calibration: the batches the recipe was made with, where its method needs any.
        progress: as :func:`quant.quantize` takes it.

    Raises:
        ValueError: it is no recipe, is of other weights or calibration data, or gives other tables than it should.
    """
    name = "the recipe" if isinstance(recipe, Mapping) else str(recipe)
    recipe = recipe if isinstance(recipe, Mapping) else read_recipe(recipe)
    if recipe["weights_sha256"] != graph.weights_sha256:
        raise ValueError(f"{name} is of other weights than this model's: search again with these.")
    chosen = replace(method(recipe["method"]), settings=recipe["settings"])
    unknown = chosen.settings.keys() - inspect.signature(chosen.entry.load().quantize).parameters.keys()
    if unknown:
        raise ValueError(
            f"{name} has the setting {min(unknown)!r}, which {chosen.name} does not have in this version of the "
            "library: search again."
        )
    if recipe.get("calibration_sha256"):
        _check_calibration(name, recipe["calibration_sha256"], calibration)
    granularity = recipe["dynamic_granularity"]
    quantized = quantize(graph, chosen, recipe["bits"], calibration, granularity, progress)
    differing = _differences(recipe.get("environment", {}))
    equal = tables_sha256(quantized) == recipe["tables_sha256"]
    if differing:
        codes = "the tables are the same" if equal else "some codes differ, so what it says of its loss may not hold"
        warnings.warn(f"{name} was written elsewhere ({differing}); {codes}.", RecipeWarning, stacklevel=2)
    elif not equal:
        raise ValueError(f"{name} gives other tables than it did: {chosen.name} itself has changed, so search again.")
    return quantized


def read_recipe(path: Path | str) -> dict[str, object]:
    """Read the file of a recipe.

    Raises:
        ValueError: it is none.
    """
    try:
        recipe = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not JSON"
        raise ValueError(f"{path} is no readable recipe: {reason}.") from None
    missing = [name for name in _NEEDED if not isinstance(recipe, dict) or name not in recipe]
    if missing:
        raise ValueError(f"{path} is no recipe: it has no {missing[0]}.")
    named = ("method", "bits", "dynamic_granularity", "weights_sha256", "tables_sha256")
    wrong = [name for name in named if not isinstance(recipe[name], str)]
    wrong += [name for name in ("settings", "environment") if not isinstance(recipe.get(name, {}), dict)]
    if wrong:
        raise ValueError(f"{path} is no recipe: its {wrong[0]} is {recipe[wrong[0]]!r:.60}.")
    if recipe["format"] != FORMAT:
        raise ValueError(f"{path} has the format {recipe['format']}, which this version of the library cannot read.")
    return recipe


def calibration_sha256(batches: Sequence[Batch]) -> str:
    """Return the digest of batches of inputs, with their types, their shapes and how they are divided."""
    digest = hashlib.sha256()
    for batch in batches:
        for values in map(np.asarray, batch):
            digest.update(f"{values.dtype.str}{values.shape}".encode())
            digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def tables_sha256(quantized: QuantizedModel) -> str:
    """Return the digest of a quantized model as it is saved, in whatever order its tables were filled."""
    tables = ("weights", "floats", "activations")
    ordered = {name: dict(sorted(getattr(quantized, name).items(), key=lambda entry: str(entry[0]))) for name in tables}
    digest = hashlib.sha256()
    with TemporaryDirectory() as folder:
        save(replace(quantized, **ordered), folder)
        for file in sorted(Path(folder).iterdir()):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _check_calibration(name: str, expected: str, calibration: Sequence[Batch]) -> None:
    if not calibration:
        raise ValueError(f"{name} needs the calibration data it was made with: pass its batches.")
    if calibration_sha256(calibration) != expected:
        raise ValueError(f"{name} was made with other calibration data, or other batches of it: pass the same.")


def _differences(saved: Mapping[str, str]) -> str:
    """Return what differs between where a recipe was written and here: ``torch 2.12.0, here 2.13.0``."""
    here = environment()
    differing = [name for name in here if saved.get(name) != here[name]]
    return "; ".join(f"{name} {saved.get(name, 'unknown')}, here {here[name]}" for name in differing)
