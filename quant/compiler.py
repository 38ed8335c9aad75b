"""From tables to a running artefact in one call."""

from pathlib import Path
from tempfile import TemporaryDirectory

from quant.backends import Executable, target
from quant.graph import QuantizedModel


def compile(quantized: QuantizedModel, backend: str, folder: Path | str, threads: int = 1) -> Executable:
    """Write ``quantized`` as an artefact of ``backend`` into ``folder`` and load it from there.

    Raises:
        ValueError: the backend is unknown, or has no kernels for these tables.
        ModuleNotFoundError: the runtime is not installed; the message holds the pip command.
    """
    build(quantized, backend, Path(folder))
    return target(backend).open(Path(folder), threads)


def build(quantized: QuantizedModel, backend: str, folder: Path) -> None:
    """Write ``quantized`` as an artefact of ``backend`` into ``folder``, and do not load it.

    Raises:
        ValueError: the backend is unknown, or cannot express these tables.
        ModuleNotFoundError: the runtime is not installed; the message holds the pip command.
    """
    with TemporaryDirectory() as template:
        build_template(quantized, backend, Path(template))
        folder.mkdir(parents=True, exist_ok=True)
        target(backend).load().compile(quantized, Path(template), folder)


def build_template(quantized: QuantizedModel, backend: str, folder: Path) -> None:
    """Write the template of the float model that tables for ``backend`` are spliced into, into an existing folder.

    Raises:
        ValueError: the backend is unknown, or lacks an operator of the model.
        ModuleNotFoundError: the runtime is not installed; the message holds the pip command.
    """
    chosen = target(backend)
    missing = chosen.missing()
    if missing:
        raise ModuleNotFoundError(f"{backend} is not installed: {missing}")
    chosen.load().template(quantized.graph, folder, quantized.scheme.float_dtype)
