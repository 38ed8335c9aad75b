"""A soak: part of the matrix over and over in one process, in a cache too small for it. It runs only by ``-m soak``.

Neither memory nor open files may grow from one round to the next, and the cache must keep its limit. The first round
fills what runtimes keep for themselves; growth counts from the second on.

  pytest benchmarks -m soak
"""

import gc
import warnings

import pytest

pytestmark = pytest.mark.soak

ROUNDS = 4
LIMIT = 25_000_000
"""Bytes of the cache: a few artefacts of the models below, and far from all."""
CASES = [
    *((model, method, "int4", backend) for model in ("digits", "reviews_lstm") for method in ("rtn", "gptq")
      for backend in ("torch", "onnxruntime", "mlx", "coreml")),
    *(("digits", "static", "int8", backend) for backend in ("torch", "onnxruntime", "mlx", "coreml")),
]  # fmt: skip
SAMPLES = 32
GROWTH_BYTES = 24_000_000
"""Of memory from the second round to the last: what allocators keep apart varies by some megabytes."""


def test_soak(tmp_path, capsys):
    import psutil

    from benchmarks.workshop import Settings, Workshop
    from fixtures.cache import Cache, CacheWarning

    process, found = psutil.Process(), []
    workshop = Workshop(Cache(tmp_path / "cache", LIMIT), Settings(evaluation_samples=SAMPLES))
    for number in range(ROUNDS):
        with warnings.catch_warnings():
            warnings.simplefilter("error", CacheWarning)
            _run_all(workshop)
        gc.collect()
        memory, files, cache = process.memory_info().rss, process.num_fds(), _bytes_in(tmp_path / "cache")
        found.append((memory, files, cache))
        with capsys.disabled():
            print(
                f"\nround {number + 1}: {memory / 1e6:.0f} MB, {files} open files, cache {cache / 1e6:.1f} MB", end=""
            )
    (memory, files, _), (last_memory, last_files, _) = found[1], found[-1]
    assert last_files <= files, f"{last_files - files} files more are open than after the second round"
    assert last_memory - memory <= GROWTH_BYTES, f"memory grew by {(last_memory - memory) / 1e6:.0f} MB"
    assert max(cache for _, _, cache in found) <= LIMIT, "the cache outgrew its limit"


def _run_all(workshop) -> None:
    from benchmarks.matrix import Case

    for axes in CASES:
        case = Case(*axes)
        if case.missing():
            continue
        workshop.begin_case()
        calibration = workshop.calibration(case.model)
        artifact = workshop.compile(case, workshop.quantize(case, calibration), calibration)
        samples = workshop.evaluation(case.model)
        assert len(workshop.outputs(artifact, samples)) == len(workshop.outputs(workshop.baseline(case), samples))


def _bytes_in(folder) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
