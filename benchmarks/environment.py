"""The environment of a run: what must agree before the times of two runs may be compared."""

import importlib.metadata
import os
import platform
from collections.abc import MutableMapping

PACKAGES = ("torch", "numpy", "onnxruntime", "onnx", "mlx", "coremltools", "torchao")
ISA = ("avx2", "avx512f", "avx512vnni", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "avx512_bf16", "avx512_fp16")
ARM_ISA = ("asimddp", "i8mm", "bf16", "sme")
_VARYING = ("hz_actual", "hz_actual_friendly", "hz_advertised", "hz_advertised_friendly", "flags")


def pin_threads(threads: int, variables: MutableMapping[str, str] = os.environ) -> None:
    """Set the thread counts that numerical libraries read when they are first imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        variables[name] = str(threads)


def describe(machine_info: dict, threads: int) -> dict[str, object]:
    """Return threads, affinity, instruction sets and library versions, in plain JSON types."""
    flags = machine_info.get("cpu", {}).get("flags", ())
    return {
        "cpu": _chip(machine_info.get("cpu", {})),
        "isa": sorted({flag.replace("_", "") for flag in (*ISA, *ARM_ISA) if flag in flags}),
        "threads": threads,
        "affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def cpu_name() -> str:
    """Return the chip's name, as :func:`describe` does."""
    import cpuinfo

    return _chip(cpuinfo.get_cpu_info() or {})


def drop_varying(machine_info: dict) -> None:
    """Remove what differs between two runs on one machine, such as the clock frequency of the moment."""
    for name in _VARYING:
        machine_info.get("cpu", {}).pop(name, None)


def _chip(cpu: dict) -> str:
    return cpu.get("brand_raw", platform.processor())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
