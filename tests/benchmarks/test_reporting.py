"""Reports at the end of a run, and the commands that are named there."""

import csv
import shlex

import pytest

from reports.__main__ import main

EVERY_KIND = ("--report=html:report.html", "--report", "markdown:out/report.md", "--report=csv:report.csv")


def commands(result):
    """What is offered at the end, as purpose and command."""
    lines = result.stdout.lines
    start = next(index for index, line in enumerate(lines) if line.startswith("Next: "))
    offered = [line[6:].partition("  ") for line in lines[start:] if line.startswith(("Next: ", "      "))]
    return {purpose.strip(): command.strip() for purpose, _, command in offered}


def test_every_kind_of_report_is_written_from_the_run_just_made(fake_suite, records):
    result = fake_suite.run(list(records.values()), *EVERY_KIND)
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"Written to {name}." for name in ("report.html", "out/report.md", "report.csv")])
    page = (fake_suite.folder / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert all(name in page for name in records)
    assert "Verdict</h2>" not in page
    assert (fake_suite.folder / "out" / "report.md").read_text().startswith("### digits: ")
    rows = list(csv.DictReader((fake_suite.folder / "report.csv").open()))
    assert sorted(row["name"] for row in rows) == sorted(records)


def test_with_a_baseline_the_reports_begin_with_the_verdict(base, records):
    result = base.run(list(records.values()), *EVERY_KIND, "--benchmark-compare=main")
    assert result.ret == 0
    assert "Verdict</h2>" in (base.folder / "report.html").read_text()
    markdown = (base.folder / "out" / "report.md").read_text()
    assert markdown.startswith("### ✅ Passed against 0001\\_main")
    assert "0 of 0" not in markdown


def test_reports_are_written_where_the_gate_fails(base, records, with_scores):
    name = "minilm-rtn-int4-torch"
    records[name] = {**with_scores([index % 4 != 0 for index in range(400)], case=name), "seconds": 0.1}
    arguments = ("--benchmark-compare=main", "--metric-compare-fail=accuracy:1pp")
    result = base.run(list(records.values()), *EVERY_KIND, *arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    markdown = (base.folder / "out" / "report.md").read_text()
    assert markdown.startswith("### ❌ FAILED against 0001\\_main: 1 regressed")
    assert "Regressed" in (base.folder / "report.html").read_text()


def test_reports_are_written_of_what_an_interrupted_run_finished(fake_suite, records):
    fates = {"minilm-gptq-int4-torch": "interrupt"}
    result = fake_suite.run(list(records.values()), "--report=csv:report.csv", fates=fates, process=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    rows = list(csv.DictReader((fake_suite.folder / "report.csv").open()))
    assert [row["name"] for row in rows] == ["digits-gptq-int4-torch", "digits-rtn-int4-torch"]


def test_workers_leave_reports_to_the_process_that_reports(fake_suite, records):
    arguments = ("-n", "2", "--benchmark-disable", "--report=csv:report.csv")
    result = fake_suite.run(list(records.values()), *arguments, process=True)
    assert result.ret == 0
    assert result.stdout.str().count("Written to report.csv.") == 1
    rows = list(csv.DictReader((fake_suite.folder / "report.csv").open()))
    assert sorted(row["name"] for row in rows) == sorted(records)


@pytest.mark.parametrize("text", ["report.html", "pdf:report.pdf", "html:"])
def test_an_unknown_kind_is_a_sentence(fake_suite, records, text):
    result = fake_suite.run(list(records.values()), f"--report={text}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*'{text}' must be html:FILE, markdown:FILE, csv:FILE"])


def test_a_report_that_cannot_be_written_fails_the_run_and_loses_nothing(fake_suite, records):
    (fake_suite.folder / "taken").write_text("a file")
    arguments = ("--report=html:taken/report.html", "--report=csv:report.csv", "--benchmark-save=main")
    result = fake_suite.run(list(records.values()), *arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["ERROR: taken/report.html could not be written: *", "Written to report.csv."])
    assert fake_suite.names == ["0001_main.json"]


def test_without_a_record_there_is_no_report(fake_suite, records):
    fates = dict.fromkeys(records, "fail")
    result = fake_suite.run(list(records.values()), "--report=html:report.html", fates=fates)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["No report was written: no case came to a record."])
    assert not (fake_suite.folder / "report.html").exists()
    collected = fake_suite.run(list(records.values()), "--report=html:report.html", "--collect-only")
    assert "was written" not in collected.stdout.str()


def test_after_a_saved_run_the_commands_are_named_and_work(fake_suite, records, monkeypatch, capsys):
    offered = commands(fake_suite.run(list(records.values()), "--benchmark-save=main"))
    assert list(offered) == ["which to ship", "after a change", "a page of it"]
    assert offered["after a change"] == "pytest benchmarks --benchmark-compare=main"
    monkeypatch.chdir(fake_suite.folder)
    for purpose in ("which to ship", "a page of it"):
        program, _, module, *arguments = shlex.split(offered[purpose])
        assert (program, module) == ("python", "reports")
        assert main(arguments) in (0, 1)
    assert (fake_suite.folder / "report.html").exists()
    assert "minilm (transformer)" in capsys.readouterr().out


def test_with_a_baseline_the_comparison_is_named(base, records, monkeypatch, capsys):
    arguments = ("--benchmark-compare=main", "--benchmark-json=a run.json", "--report=html:report.html")
    offered = commands(base.run(list(records.values()), *arguments))
    assert list(offered) == ["which to ship", "what changed"]
    monkeypatch.chdir(base.folder)
    assert main(shlex.split(offered["what changed"])[3:]) == 0
    assert "4 cases without a change" in capsys.readouterr().out


def test_a_run_that_was_not_saved_is_told_how_to_keep_it(fake_suite, records):
    assert commands(fake_suite.run(list(records.values())))["keep the run"] == "--benchmark-save=NAME"


def test_a_run_cut_short_is_told_how_to_go_on(fake_suite, records):
    fates = {"minilm-gptq-int4-torch": "fail"}
    result = fake_suite.run(list(records.values()), "-x", "--benchmark-save=main", fates=fates)
    assert "the same command" in commands(result)["go on where it stopped"]
