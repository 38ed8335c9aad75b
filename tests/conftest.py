import copy
import hashlib
import json

import numpy
import pytest
from hypothesis import settings

from reports.paired import Contributions
from reports.record import pack_outcomes
from reports.scores import pack_scores

# The same examples in every run: what fails here fails everywhere.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")

GOOD = {
    "schema": 1,
    "kind": "inference",
    "case": {"model": "minilm", "method": "gptq", "bits": "int4", "backend": "onnxruntime"},
    "model": {"family": "transformer", "parameters": 22_700_000, "weights_sha256": "a" * 64},
    "scheme": {"weights": {"bits": 4, "granularity": "group"}, "activations": None},
    "evidence": "measured",
    "artifact": {"path": "minilm.onnx", "sha256": "b" * 64},
    "accuracy": {
        "metric": "accuracy",
        "better": "higher",
        "n": 500,
        "baseline": 0.946,
        "value": 0.94,
        "delta": -0.006,
        "ci95": [-0.018, 0.006],
        "p_value": 0.55,
        "flips": {"regressed": 7, "fixed": 4},
        "verdict": "inconclusive",
    },
    "fidelity": {"error": 0.14, "sqnr_db": 17.1, "cosine": 0.99, "agreement": 0.97, "kl": 0.02},
    "parity": {"error": 1.2e-6},
    "size": {"bytes": 14_500_000, "baseline_bytes": 90_800_000, "ratio": 14.5 / 90.8, "bits_per_weight": 5.1},
    "coverage": {"parameters_quantized": 0.99, "operators_native": 0.97, "operators_simulated": 0.0},
    "cost": {"seconds": 3.1, "peak_bytes": 400_000_000, "cached": False},
    "speed": {
        "protocol": "interleaved, 40 pairs",
        "rounds": 40,
        "refused": False,
        "ratio": 1.87,
        "ci95": [1.83, 1.91],
        "p50": 0.0123,
        "p90": 0.0131,
        "p99": None,
        "baseline_p50": 0.0230,
        "null": {"ratio": 1.002, "ci95": [0.996, 1.008]},
        "load": {"others": 0.1, "free": 1, "stolen": 0.0},
        "samples": {"rounds": 40, "baseline": pack_outcomes([0.0230] * 40), "variant": pack_outcomes([0.0123] * 40)},
        "reason": "p99 needs 200 rounds",
    },
    "memory": {
        "peak_bytes": 300_000_000,
        "growth_bytes": 60_000_000,
        "baseline_peak_bytes": 420_000_000,
        "baseline_growth_bytes": 180_000_000,
        "ratio": 60 / 180,
    },
    "scores": {"dataset_sha256": "c" * 64, "packed": "A" * 84},
}


@pytest.fixture
def make_record():
    """``make_record("minilm-gptq-int4-onnxruntime", **{"accuracy.value": 0.9})``: a good record with these changes."""

    def make(case="minilm-gptq-int4-onnxruntime", **changes):
        record = copy.deepcopy(GOOD)
        record["case"] = dict(zip(("model", "method", "bits", "backend"), case.split("-"), strict=True))
        for path, value in changes.items():
            *parents, key = path.split(".")
            holder = record
            for parent in parents:
                holder = holder[parent]
            holder[key] = value
        return record

    return make


@pytest.fixture
def with_scores(make_record):
    """``with_scores(right, case=..., error=...)``: a record whose scores and figures are of these samples."""

    def make(right, case="minilm-gptq-int4-onnxruntime", error=None, ratio=None, **changes):
        right = numpy.asarray(right)
        n = len(right)
        error = numpy.full(n, 0.01) if error is None else numpy.asarray(error, float)
        clusters = numpy.asarray(changes.pop("clusters", numpy.arange(n)))
        digests = numpy.asarray(changes.pop("digests", numpy.arange(n)), numpy.uint32)
        parts = {
            "accuracy": Contributions(right),
            "baseline": Contributions(numpy.ones(n, bool)),
            "agreement": Contributions(right),
            "error": Contributions(error, numpy.ones(n), "root_mean"),
            "cosine": Contributions(1 - error),
        }
        scores = {
            "dataset_sha256": "d" * 64,
            "samples": pack_outcomes(digests),
            "outputs_sha256": hashlib.sha256(right.tobytes() + error.tobytes()).hexdigest(),
            **pack_scores(parts, clusters),
        }
        value = float(right.mean())
        figures = {
            "accuracy.n": n,
            "accuracy.baseline": 1.0,
            "accuracy.value": value,
            "accuracy.delta": value - 1,
            "fidelity.agreement": value,
            "fidelity.error": float(numpy.sqrt(error.mean())),
        }
        speed = {} if ratio is None else speed_of(ratio)
        return make_record(case, scores=scores, **{**figures, **speed, **changes})

    return make


def speed_of(ratio, rounds=60):
    """What a record holds of rounds that scatter by two percent around this ratio."""
    variant = 0.01 * numpy.random.default_rng(0).normal(1, 0.02, rounds)
    baseline = ratio * variant * numpy.random.default_rng(1).normal(1, 0.02, rounds)
    samples = {"rounds": rounds, "baseline": pack_outcomes(baseline), "variant": pack_outcomes(variant)}
    found = float(numpy.median(baseline / variant))
    return {"speed.ratio": found, "speed.ci95": [found * 0.99, found * 1.01], "speed.samples": samples}


@pytest.fixture
def save_run(tmp_path):
    """``save_run("run.json", *records)``: the path of a file that holds them, as pytest-benchmark would write it."""

    def save(name, *records, **document):
        benchmarks = [{"fullname": str(index), "extra_info": {"quant": r}} for index, r in enumerate(records)]
        path = tmp_path / name
        path.write_text(json.dumps({"benchmarks": benchmarks, "quant": {"schema": 1}, **document}))
        return path

    return save
