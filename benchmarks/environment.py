"""The environment of a run: what must agree before the times of two runs may be compared."""

import importlib.metadata
import os
import platform
from collections.abc import MutableMapping

from quant import hardware

PACKAGES = ("torch", "numpy", "onnxruntime", "onnx", "mlx", "coremltools", "torchao")
_VARYING = ("hz_actual", "hz_actual_friendly", "hz_advertised", "hz_advertised_friendly", "flags")


def pin_threads(threads: int, variables: MutableMapping[str, str] = os.environ) -> None:
    """Set the thread counts that numerical libraries read when they are first imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        variables[name] = str(threads)


def describe(threads: int) -> dict[str, object]:
    """Return threads, affinity, instruction sets and library versions, in plain JSON types."""
    processor = hardware.processor()
    return {
        "cpu": processor.name,
        "isa": list(processor.features),
        "threads": threads,
        "affinity": processor.allowed,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def drop_varying(machine_info: dict) -> None:
    """Remove what differs between two runs on one machine, such as the clock frequency of the moment."""
    for name in _VARYING:
        machine_info.get("cpu", {}).pop(name, None)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
