"""Writing an artefact, checking it in a fresh process, and putting the verdict beside it."""

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from quant.exporting import Format, RejectedExport
from quant.exporting.checking import check
from quant.exporting.expected import Expected
from quant.exporting.verdict import verdict
from quant.generation import carried_over, one_token
from quant.graph import QuantizedModel

VALIDATION, SAMPLE = "validation.json", "sample.npz"
SCHEMA = 1

_REJECTED = ".rejected"


def ship(
    expected: Expected,
    format: Format,
    directory: Path,
    memory_limit: int | None = None,
    built: Path | None = None,
    made_from: str | None = None,
) -> Path:
    """Write the model in ``format`` into ``directory`` with its ``validation.json``, and return the artefact's path.

    Args:
        built: the folder in which the format's backend has compiled the tables already, or its template of the model.
        made_from: what :func:`standing` later finds the artefact by.

    Raises:
        ValueError: the format cannot hold the tables, or tells nothing of the memory that is limited.
        ModuleNotFoundError: something is not installed; the message holds the pip command.
        RejectedExport: the artefact failed its validation, and is left in place named ``*.rejected``.
    """
    missing = format.missing()
    if missing:
        raise ModuleNotFoundError(f"the format {format.name} needs what is not installed: {missing}")
    if memory_limit is not None and format.evidence != "measured":
        raise ValueError(
            f"the runtime of {format.name} does not run here, so its memory is unknown: leave the limit out."
        )
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    artifact = directory / format.artifact
    try:
        with TemporaryDirectory(dir=directory, prefix=".") as folder:
            written = Path(folder) / format.artifact
            _write(expected, format, written, built)
            found = check(expected, format, written)
            validation = _described(expected, format, written) | verdict(expected, found, memory_limit)
            validation["made_from"] = made_from
            for former in (artifact, rejected(artifact)):
                _remove(former)
            artifact = artifact if validation["verdict"] == "pass" else rejected(artifact)
            written.rename(artifact)
    except ValueError:
        if made:
            with suppress(OSError):
                directory.rmdir()  # it stays where it holds anything
        raise
    (directory / VALIDATION).write_text(json.dumps(validation, indent=2) + "\n", encoding="utf-8")
    _write_sample(expected, directory / SAMPLE)
    if validation["verdict"] != "pass":
        reasons = "; ".join(validation["reasons"])
        raise RejectedExport(f"{artifact} failed its validation: {reasons}.", artifact, validation)
    return artifact


def standing(directory: Path, made_from: str) -> dict[str, object] | None:
    """Return the validation of what was shipped into ``directory`` if it passed, was made from just that, and is whole.

    ``made_from`` is a digest of all that the artefact and its validation come from.
    """
    try:
        validation = json.loads((directory / VALIDATION).read_text(encoding="utf-8"))
        if validation["made_from"] != made_from or validation["verdict"] != "pass":
            return None
        described = {name: entry["sha256"] for name, entry in validation["files"].items()}
        written = files_of(directory / validation["artifact"])
        found = {path.relative_to(directory).as_posix(): _digest(path) for path in written}
        return validation if found == described and (directory / SAMPLE).is_file() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def rejected(artifact: Path) -> Path:
    """Return what an artefact is called that failed."""
    return artifact.with_name(artifact.name + _REJECTED)


def files_of(artifact: Path) -> list[Path]:
    """Return the files an artefact consists of."""
    return [artifact] if artifact.is_file() else sorted(path for path in artifact.rglob("*") if path.is_file())


def _write(expected: Expected, format: Format, written: Path, built: Path | None) -> None:
    quantized = expected.quantized
    if format.backend is None or built is not None:
        format.load().write(quantized, built, written)
        return
    from quant.compiler import build, build_template

    compiled = _of_steps(expected, format) if format.steps else quantized
    with TemporaryDirectory() as folder:
        (build_template if format.from_template else build)(compiled, format.backend, Path(folder))
        format.load().write(quantized, Path(folder), written)


def _of_steps(expected: Expected, format: Format) -> QuantizedModel:
    """Return the tables as those of a step of one token, whose caches hold what was read of a sample."""
    if expected.step is None:
        raise ValueError(f"the format {format.name} holds decoders that go on with texts, and no step of one is given.")
    return carried_over(expected.quantized, one_token(expected.step, expected.samples[0].shape[1]))


def _write_sample(expected: Expected, path: Path) -> None:
    """Write the first sample and what the tables make of it, for a first try of the artefact."""
    inputs = {f"input_{index}": values[:1] for index, values in enumerate(expected.samples)}
    np.savez(path, **inputs, expected=expected.outputs[:1])


def _described(expected: Expected, format: Format, written: Path) -> dict[str, object]:
    quantized, root = expected.quantized, written.parent
    files = {
        path.relative_to(root).as_posix(): {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in files_of(written)
    }
    return {
        "schema": SCHEMA,
        "format": format.name,
        "artifact": written.name,
        "model": {"weights_sha256": quantized.graph.weights_sha256, "parameters": quantized.graph.parameter_count},
        "scheme": quantized.scheme.as_dict(),
        "method": quantized.recipe.get("method"),
        "bytes": sum(entry["bytes"] for entry in files.values()),
        "files": files,
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
