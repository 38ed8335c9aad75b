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
    chosen = target(backend)
    missing = chosen.missing()
    if missing:
        raise ModuleNotFoundError(f"{backend} is not installed: {missing}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    runtime = chosen.load()
    with TemporaryDirectory() as template:
        runtime.template(quantized.graph, Path(template), quantized.scheme.float_dtype)
        runtime.compile(quantized, Path(template), folder)
    return chosen.open(folder, threads)
