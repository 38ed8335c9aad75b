import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from reports.record import (
    SECTIONS,
    case_id,
    full_name,
    pack_outcomes,
    plain,
    unpack_outcomes,
    validate,
)


def test_a_good_record_has_no_problem(make_record):
    assert validate(make_record()) == []


def test_further_keys_are_welcome(make_record):
    assert validate(make_record(**{"accuracy.top5": 0.99, "mine": {"energy": 1.5}})) == []


@pytest.mark.parametrize("section", [name for name in SECTIONS if name not in ("case", "scheme")])
def test_a_section_may_be_its_reason_alone_but_not_empty(make_record, section):
    assert validate(make_record(**{section: {"reason": "not measured here"}})) == []
    problems = validate(make_record(**{section: {}}))
    assert len(problems) == len(SECTIONS[section])
    assert all(problem.startswith(f"{section}.") and problem.endswith("is missing.") for problem in problems)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_missing_section_is_named(make_record, section):
    record = make_record()
    del record[section]
    assert [problem for problem in validate(record) if problem.startswith(f"{section} is missing")]


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("accuracy.delta", None, "accuracy.delta is null, but accuracy.reason does not say why."),
        ("accuracy.delta", "-0.6", "accuracy.delta is text, not a number."),
        ("accuracy.value", True, "accuracy.value is a boolean, not a number."),
        ("accuracy.n", 1.5, "accuracy.n is 1.5, not a whole number of at least 0."),
        ("accuracy.n", -1, "accuracy.n is -1, not a whole number of at least 0."),
        ("accuracy.ci95", [0.1, -0.1], "accuracy.ci95 is [0.1, -0.1], its low end above its high end."),
        ("accuracy.ci95", [0.1], "accuracy.ci95 is [0.1], not [low, high]."),
        ("accuracy.ci95", [None, 0.1], "accuracy.ci95 is [None, 0.1], not [low, high]."),
        ("accuracy.better", "up", "accuracy.better is 'up', not one of higher, lower."),
        ("accuracy.verdict", "ok", "accuracy.verdict is 'ok', not one of pass, regressed, inconclusive."),
        ("accuracy.flips", {"regressed": 1}, "accuracy.flips.fixed is missing."),
        ("accuracy.flips", 3, "accuracy.flips is a number, not an object."),
        ("accuracy.p_value", 1.5, "accuracy.p_value is 1.5, not between 0 and 1."),
        ("fidelity.agreement", 92.5, "fidelity.agreement is 92.5, not between 0 and 1."),
        ("fidelity.error", -0.1, "fidelity.error is -0.1, below 0."),
        ("coverage.operators_native", 97, "coverage.operators_native is 97, not between 0 and 1."),
        ("cost.cached", 0, "cost.cached is 0, not true or false."),
        ("evidence", "native", "evidence is 'native', not one of measured, evaluated, simulated."),
        ("evidence", None, "evidence is null, not one of measured, evaluated, simulated."),
        ("kind", "training", "kind is 'training', not one of inference, quantize, generate, peer."),
        ("schema", None, "schema is null, not 1."),
        ("schema", True, "schema is True, not 1."),
        ("schema", "1", "schema is '1', not 1."),
        ("case.method", "smooth-quant", "case.method is 'smooth-quant', but a hyphen only separates the axes"),
        ("case.method", None, "case.method is null, not text."),
        ("model.weights_sha256", "abc", "model.weights_sha256 is 'abc', not 64 hexadecimal digits."),
        ("speed.reason", "", "speed.reason is '', not text."),
        ("speed.refused", 1, "speed.refused is 1, not true or false."),
        ("speed.null", {"ratio": 1.0}, "speed.null.ci95 is missing."),
        ("speed.samples", "AAAA", "speed.samples is text, not an object."),
        ("memory.growth_bytes", -1, "memory.growth_bytes is -1, not a whole number of at least 0."),
        ("scheme", None, "scheme is null, not an object"),
        ("speed.ratio", float("nan"), "speed.ratio is nan; a missing figure is null with a reason."),
        ("speed.ci95", [1.0, float("inf")], "speed.ci95[1] is inf; a missing figure is null with a reason."),
        ("mine", {"deep": [float("nan")]}, "mine.deep[0] is nan; a missing figure is null with a reason."),
        ("mine", {"deep": numpy.float32(1)}, "mine.deep is a numpy.float32, not a plain JSON type"),
        ("speed.p50", numpy.float64(0.1), "speed.p50 is a numpy.float64, not a plain JSON type"),
        ("mine", {1: 2}, "mine has the key 1, not text."),
        ("mine", (1, 2), "mine is a builtins.tuple, not a plain JSON type"),
    ],
)
def test_each_problem_is_one_sentence_with_its_path(make_record, path, value, problem):
    record = make_record(**{path: value})
    problems = validate(record)
    assert len(problems) == 1, problems
    assert problems[0].startswith(problem)
    assert problems[0].endswith(".")


def test_every_problem_is_listed_at_once(make_record):
    record = make_record(**{"accuracy.n": -1, "fidelity.agreement": 2, "kind": "x"})
    assert len(validate(record)) == 3


def test_figures_that_deny_each_other_are_refused(make_record):
    assert "value - baseline" in validate(make_record(**{"accuracy.delta": 0.006}))[0]
    assert "value - baseline" in validate(make_record(**{"accuracy.delta": -0.6}))[0]
    assert "bytes / baseline_bytes" in validate(make_record(**{"size.ratio": 6.26}))[0]
    assert "speed.ratio is 1.87" in validate(make_record(**{"speed.refused": True}))[0]


def test_a_newer_schema_has_its_own_sentence(make_record):
    problems = validate(make_record(schema=2, kind="unheard of"))
    assert problems == ["schema is 2, written by a newer version; this one reads 1: update quant-benchmarks."]


@pytest.mark.parametrize("record", [None, [], "x", 3])
def test_what_is_no_object_is_no_record(record):
    assert len(validate(record)) == 1
    assert "not an object" in validate(record)[0]


def test_an_empty_object_lists_everything_missing():
    problems = validate({})
    assert {problem.split()[0] for problem in problems} == {"schema", "kind", "evidence", *SECTIONS}


def test_a_cosine_a_rounding_above_one_is_good(make_record):
    assert validate(make_record(**{"fidelity.cosine": 1.0000001})) == []


def test_plain_converts_what_a_benchmark_holds():
    value = {
        1: numpy.float32(0.5),
        "nan": float("nan"),
        "infinite": numpy.float64("inf"),
        "shape": (2, numpy.int64(3)),
        "array": numpy.array([[True, False]]),
        "path": Path("a/b"),
        "set": {"b", "a"},
        "flag": numpy.bool_(True),
        "none": None,
        "half": numpy.array([1.0, numpy.nan], numpy.float16),
    }
    converted = plain(value)
    assert converted == {
        "1": 0.5,
        "nan": None,
        "infinite": None,
        "shape": [2, 3],
        "array": [[True, False]],
        "path": "a/b",
        "set": ["a", "b"],
        "flag": True,
        "none": None,
        "half": [1.0, None],
    }
    assert type(converted["flag"]) is bool
    assert type(converted["1"]) is float
    assert json.loads(json.dumps(converted, allow_nan=False)) == converted


@pytest.mark.parametrize("value", [object(), b"bytes", 1j, numpy.complex64(1j)])
def test_plain_refuses_what_has_no_plain_form(value):
    with pytest.raises(TypeError, match="A record cannot hold a"):
        plain({"x": value})


def test_ids(make_record):
    record = make_record("minilm-gptq-int4-onnxruntime")
    assert case_id(record) == "minilm-gptq-int4-onnxruntime"
    assert full_name(record) == "inference:minilm-gptq-int4-onnxruntime"


@given(st_numpy.arrays(bool, st.integers(0, 70)))
def test_packed_outcomes_come_back(outcomes):
    text = pack_outcomes(outcomes)
    back = unpack_outcomes(text, len(outcomes))
    assert back.dtype == bool
    numpy.testing.assert_array_equal(back, outcomes)
    assert len(text) <= 4 * (len(outcomes) // 24 + 1)


@given(st_numpy.arrays(numpy.float32, st.integers(0, 20)))
def test_packed_numbers_come_back_bit_for_bit(values):
    back = unpack_outcomes(pack_outcomes(values), len(values))
    assert back.dtype == numpy.float32
    numpy.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("dtype", ["int32", "uint32", "float32"])
def test_zeros_and_ones_that_are_numbers_stay_numbers(dtype):
    unpacked = unpack_outcomes(pack_outcomes(numpy.array([0, 1, 1], dtype)), 3)
    assert unpacked.dtype == dtype
    assert unpacked.tolist() == [0, 1, 1]


def test_damaged_outcomes_are_refused():
    text = pack_outcomes(numpy.ones(20, bool))
    with pytest.raises(ValueError, match="hold 3 bytes where 30 samples need 4"):
        unpack_outcomes(text, 30)
    with pytest.raises(ValueError, match="not base64"):
        unpack_outcomes("!" + text, 20)
    with pytest.raises(ValueError, match="not base64"):
        unpack_outcomes("é", 1)
    with pytest.raises(ValueError, match=r"one dimension, not shape \(2, 2\)"):
        pack_outcomes(numpy.ones((2, 2), bool))


def test_importing_the_record_imports_nothing_heavy(pytestconfig):
    code = "import sys, reports.record; print([m for m in ('numpy', 'scipy', 'torch', 'tabulate') if m in sys.modules])"
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_scores_that_do_not_fit_the_samples_are_a_problem(make_record):
    (problem,) = validate(make_record(**{"scores.n": 20}))
    assert problem == "scores.packed: Packed outcomes hold 63 bytes where 20 samples need 3."
    (problem,) = validate(make_record(**{"scores.kl": "float32:!"}))
    assert problem.startswith("scores.kl: Packed outcomes are not base64 text")


def test_fidelity_may_be_of_fewer_samples_than_the_metric(make_record):
    kept = pack_outcomes(numpy.array([0.5, 0.25]))
    fewer = {"scores.n_fidelity": 2, "scores.cosine": kept, "scores.squared_error": kept, "scores.squared_norm": kept}
    assert validate(make_record(**fewer)) == []
    (problem,) = validate(
        make_record(**{**fewer, "scores.n_fidelity": 3, "scores.squared_error": None, "scores.squared_norm": None})
    )
    assert problem.startswith("scores.cosine: Packed outcomes hold 8 bytes where 3 samples need")
    (problem,) = validate(make_record(**{"scores.n_fidelity": -1}))
    assert problem.startswith("scores.n_fidelity is -1")
