from pathlib import Path

from reports.machines import RUNTIME, differences, environment_of, instructions
from reports.runs import Run

THERE = {"cpu": "M2", "threads": 1, "isa": ["i8mm"], "versions": {"torch": "2.8", "mlx": "0.3"}}


def test_equal_environments_have_no_differences():
    assert differences(THERE, dict(THERE)) == []


def test_differences_name_both_sides():
    assert differences({**THERE, "threads": 2}, THERE) == ["threads: 2, was 1"]
    assert differences({"isa": ["avx2", "vnni"]}, {}) == ["isa: avx2 vnni, was None"]
    assert differences({}, {"gone": 1}) == ["gone: None, was 1"]


def test_of_versions_only_those_that_differ_are_named():
    here = {**THERE, "versions": {"torch": "2.9", "mlx": "0.3"}}
    assert differences(here, THERE) == ["versions: torch 2.9, was torch 2.8"]
    without = {**THERE, "versions": {"mlx": "0.3"}}
    assert differences(without, THERE) == ["versions: none, was torch 2.8"]


def test_ratios_do_not_depend_on_the_name_of_the_processor():
    here = {**THERE, "cpu": "M3"}
    assert differences(here, THERE) == ["cpu: M3, was M2"]
    assert differences(here, THERE, RUNTIME) == []


def test_a_cap_on_instructions_and_settings_decide_ratios_too(make_record):
    capped = {**THERE, "isa_caps": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}
    assert differences(capped, THERE, RUNTIME) == ["isa_caps: ONEDNN_MAX_CPU_ISA AVX2, was None"]
    assert instructions(capped) == "i8mm ONEDNN_MAX_CPU_ISA=AVX2"
    assert instructions({}) == ""
    run = Run(Path("run.json"), [], machine={"quant": THERE})
    tuned = environment_of(run, make_record(settings={"case": {"threads": 2}, "float": {}}))
    (difference,) = differences(tuned, environment_of(run, make_record()), RUNTIME)
    assert difference.startswith("settings: ")
    assert "'threads': 2" in difference


def test_a_case_of_a_merged_run_keeps_its_own_machine(make_record):
    run = Run(Path("run.json"), [], machine={"quant": {"cpu": "M1"}})
    assert environment_of(run, make_record()) == {"cpu": "M1"}
    assert environment_of(run, make_record(environment=THERE)) == THERE
    assert environment_of(Run(Path("run.json"), []), make_record()) == {}
