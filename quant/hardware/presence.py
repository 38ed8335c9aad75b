"""Whether what a target needs beside its packages is here, told from files alone: nothing is imported or started."""

import functools
import importlib.util
import os
import shutil
import sys
from pathlib import Path

_NVIDIA = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""What the driver makes on Linux, and what it is reached by from a Linux on Windows."""
_COMPILERS = ("g++", "clang++", "c++")


@functools.cache
def lacking(need: str) -> str | None:
    """Return what a target that needs "cuda" or a "compiler" lacks, as the end of a sentence about it, or None."""
    return {"cuda": _cuda, "compiler": _compiler}[need]()


@functools.cache
def holds(package: str, pattern: str) -> bool:
    """Return whether an installed package has a file that matches ``pattern``, as builds for some devices alone do."""
    specification = importlib.util.find_spec(package)
    folders = specification.submodule_search_locations if specification else None
    return any(True for folder in folders or () for _ in Path(folder).glob(pattern))


def _cuda() -> str | None:
    if sys.platform != "darwin" and (shutil.which("nvidia-smi") or any(path.exists() for path in _NVIDIA)):
        return None
    return "needs an NVIDIA GPU and its driver, which are not here"


def _compiler() -> str | None:
    found = any(shutil.which(name) for name in (os.environ.get("CXX", ""), *_COMPILERS))
    return None if found else f"needs a C++ compiler, such as {_COMPILERS[0]}, and none is here"
