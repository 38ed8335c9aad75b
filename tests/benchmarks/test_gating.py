"""The gate at the end of a run: what shuts it, what is said, and what never opens it by accident."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

USAGE_ERROR, FAILED = pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.TESTS_FAILED
RIGHT = [index % 20 != 0 for index in range(400)]
WRONG = [index % 5 != 0 for index in range(400)]
UNSURE = [index % 20 != 0 and index != 1 for index in range(400)]


@pytest.fixture
def gate(base, records, with_scores):
    """``gate("accuracy:1pp", minilm=...)`` runs against ``main`` with other outcomes of one case, and this limit."""

    def run(*limits, right=None, options=(), **arguments):
        changed = dict(records)
        if right is not None:
            changed["minilm-rtn-int4-torch"] = {**with_scores(right, case="minilm-rtn-int4-torch"), "seconds": 0.1}
        options = [*(f"--metric-compare-fail={limit}" for limit in limits), "--benchmark-compare=main", *options]
        return base.run(list(changed.values()), *options, **arguments)

    return run


def section(result):
    lines = result.stdout.lines
    start = next(index for index, line in enumerate(lines) if line.strip("- ") == "comparison")
    assert not any("Traceback" in line or "INTERNALERROR" in line for line in lines)
    end = next((index for index, line in enumerate(lines) if line.startswith("Next: ")), len(lines))
    return [line for line in lines[start + 1 : end] if line and not line.startswith("=")]


def test_equal_runs_pass(gate):
    result = gate("accuracy:1pp", "error:5%", "size:0%")
    assert result.ret == 0
    assert section(result) == ["Passed against 0001_main: 12 of 12 checks passed.", "passed: 12; -v lists them"]


def test_a_regression_is_exit_status_1_and_the_verdict_comes_first(gate):
    result = gate("accuracy:1pp", right=WRONG)
    assert result.ret == FAILED
    result.assert_outcomes(passed=4)
    verdict, heading, worst, passed = section(result)
    assert verdict == "FAILED against 0001_main: 1 regressed."
    assert heading == "regressed:"
    assert worst.startswith("  minilm-rtn-int4-torch accuracy:1pp: 0.95 -> 0.8, 15 pp worse (loss between ")
    assert passed == "passed: 3; -v lists them"


def test_verbose_lists_what_passed(gate):
    lines = section(gate("size:1%", options=["-v"]))
    assert lines[1] == "passed:"
    assert [line.split()[:2] for line in lines[2:]] == [
        [case, "size:1%:"]
        for case in (
            "digits-gptq-int4-torch",
            "digits-rtn-int4-torch",
            "minilm-gptq-int4-torch",
            "minilm-rtn-int4-torch",
        )
    ]


def test_what_cannot_be_decided_says_what_would_and_fails_only_when_asked(gate):
    result = gate("accuracy:0.3pp", right=UNSURE)
    assert result.ret == 0
    lines = section(result)
    assert lines[0] == "Passed against 0001_main: 3 of 4 checks passed, 1 inconclusive."
    assert lines[1] == "inconclusive:"
    assert "400 samples, about " in lines[2]
    assert "would decide" in lines[2]

    strict = gate("accuracy:0.3pp", right=UNSURE, options=["--fail-inconclusive"])
    assert strict.ret == FAILED
    assert section(strict)[0] == "FAILED against 0001_main: 1 inconclusive."


def test_a_limit_may_name_the_cases_it_is_for(gate):
    assert gate("digits-*:accuracy:1pp", right=WRONG).ret == 0
    assert gate("digits-*:accuracy:1pp", "*-rtn-*:accuracy:1pp", right=WRONG).ret == FAILED


def test_without_a_limit_a_loss_is_shown_and_fails_nothing(gate):
    result = gate(right=WRONG)
    assert result.ret == 0
    lines = section(result)
    assert lines[0] == "Against 0001_main; no limit was given, so nothing is judged."
    (row,) = [line for line in lines if line.startswith("minilm-rtn-int4-torch")]
    assert "! -15.0" in row
    assert "3 cases without a change" in lines


def test_every_finding_is_a_property_in_the_junit_file(gate, base):
    gate("accuracy:1pp", right=WRONG, options=["--junitxml=junit.xml"], fates={"digits-rtn-int4-torch": "skip"})
    properties = ElementTree.parse(base.folder / "junit.xml").getroot().iter("property")
    verdicts = {element.get("name"): element.get("value").split(":")[0] for element in properties}
    assert verdicts == {
        "quant:digits-gptq-int4-torch:accuracy:1pp": "pass",
        "quant:minilm-gptq-int4-torch:accuracy:1pp": "pass",
        "quant:minilm-rtn-int4-torch:accuracy:1pp": "regressed",
        "quant:digits-rtn-int4-torch": "lost",
    }


@pytest.mark.parametrize(
    "options",
    [
        ["--metric-compare-fail=accuracy:1pp"],
        ["--benchmark-compare-fail=min:5%"],
        ["--fail-inconclusive"],
    ],
)
def test_a_limit_without_a_baseline_is_a_usage_error(fake_suite, records, options):
    result = fake_suite.run(list(records.values()), *options)
    assert result.ret == USAGE_ERROR
    assert "needs a baseline: add --benchmark-compare=NAME" in fake_suite.sentence(result)


def test_inconclusive_without_a_limit_is_a_usage_error(base, records):
    result = base.run(list(records.values()), "--benchmark-compare=main", "--fail-inconclusive")
    assert result.ret == USAGE_ERROR
    assert "--fail-inconclusive needs a limit" in base.sentence(result)


def test_a_limit_that_is_none_is_a_usage_error(fake_suite, records):
    result = fake_suite.run(list(records.values()), "--metric-compare-fail=accuracy", "--benchmark-compare=main")
    assert result.ret == USAGE_ERROR
    assert any("'accuracy' is not METRIC:LIMIT" in line for line in result.stderr.lines)
    assert not any("invalid" in line for line in result.stderr.lines)


def test_a_selection_compares_what_it_ran(gate):
    result = gate("accuracy:1pp", options=["-k", "digits"])
    assert result.ret == 0
    assert section(result)[0] == "Passed against 0001_main: 2 of 2 checks passed."


@pytest.mark.parametrize(
    ("fate", "heading", "reason"),
    [("skip", "lost:", "its data is gone"), ("fail", "newly failed:", "ValueError: it gives NaN")],
)
def test_a_newly_skipped_or_failed_case_shuts_the_gate(gate, fate, heading, reason):
    result = gate("accuracy:1pp", fates={"digits-rtn-int4-torch": fate})
    assert result.ret == FAILED
    lines = section(result)
    assert lines[0] == f"FAILED against 0001_main: 1 {heading[:-1]}."
    assert lines[1:3] == [heading, f"  digits-rtn-int4-torch: {reason}"]


def test_a_case_that_is_gone_from_the_suite_is_lost(base, records):
    kept = list(records.values())[:3]
    result = base.run(kept, "--benchmark-compare=main", "--metric-compare-fail=accuracy:1pp")
    assert result.ret == FAILED
    assert "  minilm-rtn-int4-torch: there is no such case any more" in section(result)


@pytest.mark.parametrize(
    ("limits", "arguments", "reason"),
    [
        (["speed:10%"], {"options": ["--benchmark-disable"]}, "speed:10% judged nothing: timing is disabled"),
        (["time:10%"], {"options": ["--benchmark-disable"]}, "time:10% judged nothing: timing is disabled"),
        (["accuracy:1pp"], {"options": ["-k", "nothing"]}, "have no case in common"),
        (["acuracy:1%"], {}, "there is no metric acuracy"),
        (["mobilenet*:accuracy:1pp"], {}, "no case of both runs matches 'mobilenet*'"),
    ],
    ids=["untimed speed", "untimed time", "nothing in common", "no such metric", "no such case"],
)
def test_a_limit_under_which_nothing_was_judged_shuts_the_gate(gate, limits, arguments, reason):
    result = gate(*limits, **arguments)
    assert result.ret == FAILED
    lines = section(result)
    assert lines[0].startswith("FAILED against 0001_main: 1 problem")
    assert reason in lines[2]


def test_a_run_in_which_every_case_is_skipped_shuts_the_gate(gate, records):
    result = gate("accuracy:1pp", fates=dict.fromkeys(records, "skip"))
    assert result.ret == FAILED
    assert section(result)[0] == "FAILED against 0001_main: 1 problem, 4 lost."


def test_a_figure_that_is_missing_now_shuts_the_gate(base, records):
    lost = {"metric": "accuracy", "value": None, "reason": "an output is NaN"}
    changed = {name: {**record, "accuracy": {**record["accuracy"], **lost}} for name, record in records.items()}
    for record in changed.values():
        record["accuracy"] |= {"delta": None, "ci95": None, "p_value": None, "flips": None}
    mixed = [*list(records.values())[:3], list(changed.values())[3]]
    result = base.run(mixed, "--benchmark-compare=main", "--metric-compare-fail=accuracy:1pp")
    assert result.ret == FAILED
    assert any("an output is NaN" in line for line in section(result))


def test_a_run_cut_short_is_not_judged_and_keeps_its_exit_status(gate):
    fates = {"minilm-gptq-int4-torch": "interrupt"}
    result = gate("accuracy:1pp", options=["--benchmark-save=main"], fates=fates, process=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert section(result)[0] == "Not judged: the run was interrupted."


def test_every_compare_fail_applies_and_none_ends_in_a_traceback(gate):
    fates = {"minilm-gptq-int4-torch": "slow"}
    checks = ["--benchmark-compare-fail=min:500%", "--benchmark-compare-fail", "max:100000%", "mean:100000.5"]
    result = gate(options=checks, fates=fates)
    assert result.ret == FAILED
    result.assert_outcomes(passed=4)
    lines = section(result)
    assert lines[0] == "FAILED against 0001_main: 1 regressed."
    assert lines[2].startswith("  minilm-gptq-int4-torch min:500%: 0.001")
    assert lines[3] == "passed: 11; -v lists them"


def test_compare_fail_is_read_from_the_environment_too(gate, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "--benchmark-compare-fail=min:500%")
    fates = {"minilm-gptq-int4-torch": "slow"}
    assert gate(options=["--benchmark-compare-fail=max:100000%"], fates=fates).ret == FAILED


def test_times_of_another_machine_are_not_judged_and_it_says_why(gate, base):
    (path,) = base.storage.rglob("0001_main.json")
    document = json.loads(path.read_text())
    document["machine_info"]["quant"] |= {"cpu": "Another Chip", "isa": ["sve"]}
    path.write_text(json.dumps(document))
    result = gate("accuracy:1pp", options=["--benchmark-compare-fail=min:5%"], fates={"digits-rtn-int4-torch": "slow"})
    assert result.ret == FAILED
    lines = section(result)
    assert lines[0] == "FAILED against 0001_main: 1 problem, 4 not judged."
    assert lines[2].startswith("  min:5% judged nothing: the baseline ran elsewhere (cpu: ")
    assert any(line.startswith("ran elsewhere") for line in lines)


def test_time_that_was_not_measured_is_not_judged(gate):
    result = gate("size:1%", options=["--benchmark-compare-fail=min:5%", "--benchmark-disable"])
    assert result.ret == FAILED
    assert section(result)[2] == "  min:5% judged nothing: no case has a time in both runs"
