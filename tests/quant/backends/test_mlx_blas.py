"""The borrowed BLAS is right, is refused when it is not, and says which it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

blas = pytest.importorskip("quant.backends._mlx_blas")

linux_wheel = pytest.mark.skipif(blas._bundled_blas() is None, reason="this MLX bundles no reference BLAS")
FRESH = """
import json, os, sys
{before}
from quant.backends import _mlx_blas as blas
import numpy as np
a, b = (np.random.default_rng(seed).standard_normal((300, 200), dtype=np.float32) for seed in (0, 1))
error, threads = 0, []
for count in (1, 2):
    settable = blas.set_threads(count)
    product = np.array(blas.mx.array(a) @ blas.mx.array(b).T)
    exact = a.astype(np.float64) @ b.T.astype(np.float64)
    error = max(error, float(np.linalg.norm(product - exact) / np.linalg.norm(exact)))
    large = blas.mx.ones((1500, 1500))
    blas.mx.eval(large @ large)
    threads.append(len(os.listdir("/proc/self/task")))
print(json.dumps({{"note": blas.NOTE, "error": error, "settable": settable, "threads": threads}}))
"""


def fresh(before=""):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "",
        "PYTHONPATH": str(Path(blas.__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", FRESH.format(before=before)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


@linux_wheel
@pytest.mark.parametrize("before", ["", "import torch; torch.ones(9, 9) @ torch.ones(9, 9)"])
def test_products_are_right_whichever_blas_they_run_on(before):
    found = fresh(before)
    assert found["note"].startswith("float32 products run on")
    assert found["error"] < 1e-6


@linux_wheel
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_threads_are_those_asked_for():
    found = fresh()
    if not found["settable"]:
        pytest.skip("the BLAS has no setting of threads")
    one, two = found["threads"]
    assert two == one + 1


@linux_wheel
def test_an_mlx_imported_before_is_left_alone_and_named():
    found = fresh("import mlx.core")
    assert "mlx.core was imported before" in found["note"]
    assert found["error"] < 1e-6


@pytest.fixture
def before_mlx(monkeypatch):
    """Pretend that MLX is not imported yet; nothing is loaded globally by what these tests expect."""
    monkeypatch.delitem(sys.modules, "mlx.core")
    return monkeypatch


def test_without_a_bundled_blas_there_is_nothing_to_say():
    assert blas.products_run_on(blas._torch_library(), None) is None


@linux_wheel
def test_a_torch_without_a_library_is_named(before_mlx):
    assert "this torch has no CPU library" in blas.products_run_on(None, blas._bundled_blas())


@linux_wheel
def test_a_library_without_sgemm_is_named(before_mlx):
    library = blas._torch_library().with_name("libc10.so")
    assert "offers no sgemm" in blas.products_run_on(library, blas._bundled_blas())


@linux_wheel
@pytest.mark.parametrize(
    ("error", "seconds", "reason"),
    [(1e-2, 1e-3, "wrong by"), (float("nan"), 1e-3, "wrong by"), (1e-7, 1e9, "not faster")],
)
def test_a_wrong_or_slow_sgemm_is_refused(before_mlx, error, seconds, reason):
    loaded = []
    before_mlx.setattr(blas, "_measure", lambda library: (error, seconds))
    before_mlx.setattr(blas, "_measure_bundled", lambda path: 1e-2)
    before_mlx.setattr(blas.ctypes, "CDLL", lambda path, mode=0: loaded.append(mode) or FakeLibrary())
    note = blas.products_run_on(blas._torch_library(), blas._bundled_blas())
    assert reason in note
    assert blas.ctypes.RTLD_GLOBAL not in loaded


class FakeLibrary:
    sgemm_ = None
