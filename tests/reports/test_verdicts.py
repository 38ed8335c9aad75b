"""How a judgement is told: the verdict first, the worst first, and nothing that shuts the gate is folded away."""

from pathlib import Path

import pytest

from reports.judgement import Finding, Judgement
from reports.limits import parse_limit
from reports.runs import Run
from reports.verdicts import finding_text, headline, verdict_markdown, verdict_text

BASE, HEAD = Run(Path("a/0003_main.json"), []), Run(Path("this run"), [])
ACCURACY, SIZE = parse_limit("accuracy:1pp"), parse_limit("size:1%")
REGRESSED = Finding("minilm-rtn-int4-torch", ACCURACY, "regressed", 0.946, 0.928, 1.8, (0.6, 3.1), 0.002, 500)
WORSE = Finding("minilm-rtn-int3-torch", ACCURACY, "regressed", 0.946, 0.846, 10.0, (8.0, 12.0), 1e-9, 500)
BIGGER = Finding("minilm-rtn-int4-mlx", SIZE, "regressed", 100.0, 105.0, 5.0)
OPEN = Finding("minilm-hqq-int4-torch", ACCURACY, "inconclusive", 0.94, 0.938, 0.2, (-1, 1.4), 0.8, 500, needed=2100)
PASSED = Finding("minilm-gptq-int4-torch", ACCURACY, "pass", 0.94, 0.942, -0.2, (-0.8, 0.4), 0.8, 500)
UNKNOWN = [
    Finding(f"minilm-{method}-int4-coreml", parse_limit("speed:10%"), "not judged", reason="it has no time")
    for method in ("awq", "gptq", "hqq", "rtn")
]


def judgement(*findings, **rest):
    return Judgement(BASE, HEAD, list(findings), **rest)


def test_a_finding_is_told_with_its_figures_in_the_limits_unit():
    assert finding_text(REGRESSED) == (
        "minilm-rtn-int4-torch accuracy:1pp: 0.946 -> 0.928, 1.8 pp worse (loss between 0.6 and 3.1 pp), p 0.002, "
        "500 samples"
    )
    assert finding_text(OPEN).endswith("500 samples, about 2100 would decide")
    assert finding_text(BIGGER) == "minilm-rtn-int4-mlx size:1%: 100 -> 105, 5 % worse"
    assert finding_text(PASSED) == (
        "minilm-gptq-int4-torch accuracy:1pp: 0.94 -> 0.942, 0.2 pp better (loss between -0.8 and 0.4 pp), 500 samples"
    )
    same = Finding("minilm-gptq-int4-torch", ACCURACY, "pass", 0.94, 0.94, -0.0, (-0.0, -0.0), 1.0, 500)
    assert "no change (loss between 0 and 0 pp)" in finding_text(same)
    assert finding_text(UNKNOWN[0]) == "minilm-awq-int4-coreml speed:10%: it has no time"


def test_a_shut_gate_says_so_first_and_names_the_worst_first():
    lines = verdict_text(judgement(REGRESSED, PASSED, BIGGER, WORSE, OPEN)).splitlines()
    assert lines[0] == "FAILED against 0003_main: 3 regressed, 1 inconclusive."
    assert lines[1] == "regressed:"
    assert [line.split()[0] for line in lines[2:5]] == [WORSE.case, BIGGER.case, REGRESSED.case]
    assert lines[5:] == ["inconclusive:", f"  {finding_text(OPEN)}", "passed: 1; -v lists them"]


def test_an_open_gate_counts_what_passed_and_lists_it_when_asked():
    told = judgement(PASSED, OPEN)
    assert headline(told) == "Passed against 0003_main: 1 of 2 checks passed, 1 inconclusive."
    assert headline(told, inconclusive_fails=True) == "FAILED against 0003_main: 1 inconclusive."
    assert f"passed:\n  {finding_text(PASSED)}" in verdict_text(told, verbose=True)
    assert finding_text(PASSED) not in verdict_text(told)


def test_lost_failed_and_problems_shut_the_gate_in_words():
    told = judgement(PASSED, lost={"x": "its data is gone"}, failed={"y": "NaN", "z": "NaN"}, problems=["it is late"])
    lines = verdict_text(told).splitlines()
    assert lines[0] == "FAILED against 0003_main: 1 problem, 1 lost, 2 newly failed."
    assert lines[1:8] == [
        "problems:",
        "  it is late",
        "lost:",
        "  x: its data is gone",
        "newly failed:",
        "  y: NaN",
        "  z: NaN",
    ]


def test_reasons_shared_by_many_cases_are_told_once():
    told = judgement(PASSED, *UNKNOWN, elsewhere={f"c{number}": "threads: 1, was 2" for number in range(9)})
    lines = verdict_text(told).splitlines()
    assert lines[0] == "Passed against 0003_main: 1 of 5 checks passed, 4 not judged."
    first = ", ".join(f"minilm-{method}-int4-coreml speed:10%" for method in ("awq", "gptq", "hqq"))
    assert [line for line in lines if "it has no time" in line] == [f"  {first} and 1 more: it has no time"]
    assert "  c0, c1, c2 and 6 more: threads: 1, was 2" in lines


def test_markdown_folds_everything_but_what_shuts_the_gate():
    text = verdict_markdown(judgement(REGRESSED, PASSED, OPEN, lost={"x": "gone"}, notes=["a note"]))
    open_part, _, _ = text.partition("<details>")
    assert text.startswith("**FAILED against 0003_main: 1 regressed, 1 inconclusive, 1 lost.**\n\n")
    assert f"- {finding_text(REGRESSED)}" in open_part
    assert "- x: gone" in open_part
    for folded in (finding_text(PASSED), finding_text(OPEN), "a note"):
        assert folded in text
        assert folded not in open_part
    assert text.count("<details>") == text.count("</details>") == 3


def test_markdown_shows_what_is_open_where_that_shuts_the_gate():
    text = verdict_markdown(judgement(OPEN), inconclusive_fails=True)
    assert finding_text(OPEN) in text.partition("<details>")[0]


@pytest.mark.parametrize("verdict", ["regressed", "inconclusive", "not judged", "pass"])
def test_no_finding_is_left_out(verdict):
    finding = Finding("minilm-rtn-int4-torch", ACCURACY, verdict, reason="because")
    for text in (verdict_text(judgement(finding), verbose=True), verdict_markdown(judgement(finding))):
        assert "minilm-rtn-int4-torch" in text
