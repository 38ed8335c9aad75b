"""The environment of a run: what must agree before the times of two runs may be compared."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable, MutableMapping

from benchmarks.matrix import Case
from quant import hardware
from quant.hardware import pages, saturation

PACKAGES = ("torch", "numpy", "onnxruntime", "onnx", "mlx", "coremltools", "torchao")
_VARYING = ("hz_actual", "hz_actual_friendly", "hz_advertised", "hz_advertised_friendly", "flags")


def pin_threads(threads: int, variables: MutableMapping[str, str] = os.environ) -> None:
    """Set the thread counts that numerical libraries read when they are first imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        variables[name] = str(threads)


def describe(threads: int) -> dict[str, object]:
    """Return threads, affinity, instruction sets with what caps them, pages and libraries, in plain JSON types."""
    processor, caps = hardware.processor(), saturation.caps()
    return {
        "cpu": processor.name,
        "isa": list(processor.features),
        **({"isa_caps": caps} if caps else {}),
        **({"huge_pages": True} if pages.in_use() else {}),
        "threads": threads,
        "affinity": processor.allowed,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def saturation_warning(cases: Iterable[Case]) -> str | None:
    """Return what is to be known of this machine where some of the ``cases`` multiply codes that saturate on it."""
    sentence = saturation.warning(hardware.processor())
    return sentence if sentence and any(map(_may_saturate, cases)) else None


def _may_saturate(case: Case) -> bool:
    both = case.method_entry.family in ("static", "dynamic") and case.scheme.linear.bits == 8
    return both and bool(case.target.constant("INTEGER_KERNELS"))


def drop_varying(machine_info: dict) -> None:
    """Remove what differs between two runs on one machine, such as the clock frequency of the moment."""
    for name in _VARYING:
        machine_info.get("cpu", {}).pop(name, None)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
