import json

import pytest

from reports.requirements import parse_requirements
from reports.runs import Run, RunError
from reports.selection import best_of_each_model, runs_of_machine

HERE = {"cpu": "M4", "isa": ["i8mm"], "threads": 1, "system": "Darwin arm64", "versions": {"torch": "2.13"}}


@pytest.fixture
def case(with_scores):
    """``case("digits-rtn-int4-torch", milliseconds, speed)``: a case that loses nothing."""

    def make(name, milliseconds, speed=2.0, right=2000, wrong=0):
        answers = [True] * (right - wrong) + [False] * wrong
        changes = {
            "speed.p50": milliseconds / 1e3,
            "accuracy.ci95": [-wrong / right - 0.001, -wrong / right + 0.001],
            "evidence": "measured",
        }
        return with_scores(answers, case=name, ratio=speed, **changes)

    return make


def run(saved, *records, **quant):
    return Run(None, list(records), quant, {"quant": HERE}, {}, saved)


def test_the_best_backend_of_a_model_is_that_of_the_fastest_case_that_keeps_accuracy(case):
    records = [
        case("digits-rtn-int8-torch", 3.0),
        case("digits-rtn-int8-onnxruntime", 1.0),
        case("digits-rtn-int4-onnxruntime", 0.5, wrong=400),
        case("minilm-rtn-int8-torch", 2.0),
    ]
    found = best_of_each_model([run("2026-01-01", *records)], parse_requirements())
    assert {model: one.name for model, one in found.items()} == {
        "digits": "digits-rtn-int8-onnxruntime",
        "minilm": "minilm-rtn-int8-torch",
    }


def test_the_last_run_of_a_case_counts(case):
    older = run("2026-01-01", case("digits-rtn-int8-torch", 0.1), case("digits-rtn-int8-onnxruntime", 1.0))
    newer = run("2026-02-01", case("digits-rtn-int8-torch", 3.0))
    found = best_of_each_model([newer, older], parse_requirements())
    assert found["digits"].name == "digits-rtn-int8-onnxruntime"


def test_a_model_without_a_case_to_ship_has_no_best_backend(case):
    lossy = case("digits-rtn-int4-torch", 1.0, wrong=600)
    assert best_of_each_model([run("2026-01-01", lossy)], parse_requirements()) == {}
    assert best_of_each_model([], parse_requirements()) == {}


def test_only_complete_runs_of_this_machine_count(tmp_path, save_run, case):
    record = case("digits-rtn-int8-torch", 1.0)
    for name, environment, complete in (
        ("0001_main", HERE, True),
        ("0002_other", {**HERE, "cpu": "M1"}, True),
        ("0003_capped", {**HERE, "isa_caps": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}, True),
        ("0004_short", HERE, False),
        ("0005_updated", {**HERE, "versions": {"torch": "2.14"}}, True),
    ):
        quant = {"schema": 1, "complete": complete}
        save_run(f"{name}.json", record, machine_info={"quant": environment}, quant=quant)
    assert [found.path.stem for found in runs_of_machine(tmp_path, HERE)] == ["0001_main", "0005_updated"]
    (tmp_path / "0006_damaged.json").write_text(json.dumps({})[:1])
    with pytest.raises(RunError, match="0006_damaged"):
        runs_of_machine(tmp_path, HERE)
