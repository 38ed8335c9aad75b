import json
import re
from pathlib import Path

import pytest

from reports.__main__ import main
from reports.findings import Finding
from reports.judgement import Judgement
from reports.limits import parse_limit
from reports.markdown import LIMIT, WORST, comment
from reports.runs import Run


def a_run(*records, name="head.json"):
    machine = {"quant": {"cpu": "M1", "threads": 1, "versions": {"torch": "2.13"}}}
    return Run(Path(name), list(records), machine=machine)


def judged(run, count, verdict="regressed"):
    limit = parse_limit("size:1%")
    findings = [Finding(f"m-x{i}-int4-torch", limit, verdict, 1.0, 2.0, 100.0 - i) for i in range(count)]
    return Judgement(a_run(name="base.json"), run, findings)


def folded(text):
    """What is not to be seen until it is opened."""
    return re.findall(r"<details>.*?</details>", text, re.DOTALL)


def open_part(text):
    return re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)


def test_the_verdict_is_first_and_only_the_worst_stand_open(make_record):
    run = a_run(make_record())
    text = comment(run, judged(run, 30))
    assert text.startswith("### ❌ FAILED against base: 30 regressed.")
    shown = open_part(text)
    assert [f"m-x{i}-int4-torch" in shown for i in range(30)] == [True] * WORST + [False] * 20
    assert "<summary>More regressed (20)</summary>" in text
    assert "<summary>All of 1 case</summary>" in text


def test_what_passed_is_folded(make_record):
    run = a_run(make_record())
    text = comment(run, judged(run, 3, "pass"))
    assert text.startswith("### ✅ Passed against base")
    assert "m-x0-int4-torch" not in open_part(text)
    assert any("m-x0-int4-torch" in part for part in folded(text))


def test_a_heading_counts_what_was_not_judged_not_its_reasons(make_record):
    run = a_run(make_record())
    limit = parse_limit("speed:10%")
    findings = [Finding(f"m-x{i}-int4-torch", limit, "not judged", reason=f"reason {i % 2}") for i in range(11)]
    text = comment(run, Judgement(a_run(name="base.json"), run, findings))
    assert "11 not judged" in text
    assert "<summary>Not judged (11)</summary>" in text


def test_without_a_baseline_it_advises_and_shows_the_largest_losses(make_record):
    records = [
        make_record(f"minilm-x{index}-int4-torch", **{"accuracy.ci95": [-0.3, -0.01 * index], "accuracy.p_value": 0.01})
        for index in range(15)
    ]
    text = comment(a_run(*records))
    assert text.startswith("### minilm: ")
    shown = open_part(text).partition("Largest losses")[2]
    assert [f"-x{index}-" in shown for index in range(15)] == [False] * 5 + [True] * 10


def test_nothing_was_lost(make_record):
    assert "Largest losses" not in comment(a_run(make_record()))


@pytest.mark.parametrize("count", [1, 250, 1000])
def test_it_fits_in_a_comment(make_record, count):
    records = [make_record(f"minilm-a_method_of_a_long_name_{i}-int4-onnxruntime") for i in range(count)]
    run = a_run(*records)
    for text in (comment(run), comment(run, judged(run, count)), comment(run, judged(run, count, "pass"))):
        assert len(text) <= LIMIT
        assert text.count("<details>") == text.count("</details>")
        assert ("too long for a comment" in text) == (count == 1000)


def test_texts_of_a_run_are_not_markup(make_record):
    run = a_run(make_record())
    limit = parse_limit("size:1%")
    finding = Finding("m-</details><b>*x*|`-int4-torch", limit, "regressed", 1.0, 2.0, 100.0, reason="a\n# b")
    text = comment(run, Judgement(a_run(name="base.json"), run, [finding]))
    assert "- m-&lt;/details>&lt;b>\\*x\\*\\|\\`-int4-torch" in text
    assert not re.search(r"^# b", text, re.MULTILINE)


@pytest.fixture
def save(tmp_path):
    def save(name, *records):
        path = tmp_path / name
        path.write_text(json.dumps({"benchmarks": [{"extra_info": {"quant": record}} for record in records]}))
        return str(path)

    return save


def test_the_command_judges_under_the_limits_given(save, make_record, capsys):
    base = save("base.json", make_record())
    head = save("head.json", make_record(**{"size.bytes": 18_160_000, "size.ratio": 0.2}))
    assert main(["markdown", head, "--baseline", base, "--fail", "size:50%"]) == 0
    assert capsys.readouterr().out.startswith("### ✅ Passed against base: 1 of 1 check")
    assert main(["markdown", head, "--baseline", base, "--fail", "size:1%"]) == 0
    assert capsys.readouterr().out.startswith("### ❌ FAILED against base: 1 regressed")


def test_usual_limits_that_have_nothing_to_judge_are_no_problem(save, make_record, capsys):
    record = make_record(speed={"reason": "not timed"}, scores={"reason": "not kept"})
    base, head = save("base.json", record), save("head.json", record)
    assert main(["markdown", head, "--baseline", base]) == 0
    assert capsys.readouterr().out.startswith("### ✅ Passed against base: 1 of 1 check passed")
    assert main(["markdown", head, "--baseline", base, "--fail", "speed:10%"]) == 0
    assert capsys.readouterr().out.startswith("### ❌ FAILED against base: 1 problem")
