"""``mlx.core``, imported so that matrix products on a Linux CPU do not run on a reference BLAS.

The Linux wheel of MLX bundles Netlib's reference BLAS, some twenty times slower than any tuned one. Symbols of a
library that is loaded globally *before* MLX take precedence over the bundled ones, and torch always brings a tuned
``sgemm_`` of the same interface. It is used only after it was found right and faster; otherwise MLX stays as it came.
Either way :data:`NOTE` says which it is.
"""

import _ctypes
import ctypes
import functools
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

_SIZE = 256
_TOLERANCE = 1e-5


def products_run_on(torch_library: Path | None, bundled: Path | None) -> str | None:
    """Put the BLAS of ``torch_library`` before the ``bundled`` one, where that helps; return a sentence for records.

    None where MLX bundles no reference BLAS. Has no effect on a process that has imported ``mlx.core`` already.
    """
    if bundled is None:
        return None
    reference = f"float32 products run on the reference BLAS of the mlx wheel, because {{}} ({bundled.name})."
    if "mlx.core" in sys.modules:
        return reference.format("mlx.core was imported before this backend")
    if torch_library is None:
        return reference.format("this torch has no CPU library of its own")
    candidate = ctypes.CDLL(str(torch_library))
    if not hasattr(candidate, "sgemm_"):
        return reference.format("torch's library offers no sgemm")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    error, seconds = _measure(candidate)
    torch.set_num_threads(threads)
    if not error < _TOLERANCE:
        return reference.format(f"torch's sgemm is wrong by {error:.1g}")
    if seconds >= _measure_bundled(bundled):
        return reference.format("torch's sgemm is not faster")
    ctypes.CDLL(str(torch_library), mode=ctypes.RTLD_GLOBAL)
    if _address(ctypes.CDLL(None)) != _address(candidate):
        return "float32 products run on a BLAS that this process had loaded globally before."
    return f"float32 products run on the sgemm of torch {torch.__version__}, put before the mlx wheel's reference BLAS."


def set_threads(threads: int) -> bool:
    """Set the number of threads of the BLAS that MLX's products run on, and return whether it offers that.

    ``torch.set_num_threads`` will not do: it holds for the thread that calls it, and MLX computes in one of its own.
    All other operators of MLX use one thread on a CPU.
    """
    setter = _thread_setter()
    if setter is not None:
        setter(ctypes.c_int(threads))
    return setter is not None


@functools.cache
def _thread_setter() -> Callable[[ctypes.c_int], object] | None:
    library = ctypes.CDLL(None)
    names = ("mkl_serv_set_num_threads", "openblas_set_num_threads")
    return next((getattr(library, name) for name in names if hasattr(library, name)), None)


def _measure(library: ctypes.CDLL) -> tuple[float, float]:
    """Return the relative error of a product of ``library`` against float64, and its best seconds of three."""
    generator = np.random.default_rng(0)
    a, b = (np.asfortranarray(generator.standard_normal((_SIZE, _SIZE), dtype=np.float32)) for _ in range(2))
    product = np.zeros((_SIZE, _SIZE), np.float32, order="F")
    size, one, zero = ctypes.byref(ctypes.c_int(_SIZE)), ctypes.c_float(1), ctypes.c_float(0)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (a, b, product)]

    def multiply() -> float:
        started = time.perf_counter()
        library.sgemm_(
            *(b"N", b"N", size, size, size, ctypes.byref(one), pointers[0], size, pointers[1], size),
            *(ctypes.byref(zero), pointers[2], size),
        )
        return time.perf_counter() - started

    multiply()
    seconds = min(multiply() for _ in range(3))
    expected = a.astype(np.float64) @ b.astype(np.float64)
    return float(np.linalg.norm(product - expected) / np.linalg.norm(expected)), seconds


def _measure_bundled(path: Path) -> float:
    """Return the seconds of the bundled library, and unload it: loaded, it would have bound its own symbols for MLX."""
    library = ctypes.CDLL(str(path))
    try:
        return _measure(library)[1]
    finally:
        _ctypes.dlclose(library._handle)


def _address(library: ctypes.CDLL) -> int | None:
    return ctypes.cast(library.sgemm_, ctypes.c_void_p).value if hasattr(library, "sgemm_") else None


def _torch_library() -> Path | None:
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    return path if path.exists() else None


def _bundled_blas() -> Path | None:
    specification = importlib.util.find_spec("mlx")
    if sys.platform != "linux" or specification is None or not specification.submodule_search_locations:
        return None
    packages = Path(next(iter(specification.submodule_search_locations))).parent
    return next(iter(sorted(packages.glob("mlx*.libs/libblas*"))), None)


NOTE = products_run_on(_torch_library(), _bundled_blas())
mx = importlib.import_module("mlx.core")
