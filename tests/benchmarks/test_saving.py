"""What is saved of a run, and which save a comparison finds."""

import json

import pytest

from reports.record import validate
from reports.runs import read_run

USAGE_ERROR = pytest.ExitCode.USAGE_ERROR


def test_a_complete_run_says_so_and_names_its_cases(base, records):
    quant = base.saved("main")["quant"]
    assert quant["planned"] == list(records)
    assert (quant["skipped"], quant["failed"], quant["complete"]) == ({}, {}, True)
    assert quant["settings"]["threads"] == 1


def test_skipped_and_failed_cases_are_named_with_their_reason_and_are_not_saved(fake_suite, records):
    skipped, failed, late, passed = records
    fates = {skipped: "skip", failed: "fail", late: "fail late"}
    result = fake_suite.run(list(records.values()), "--benchmark-save=main", "--benchmark-json=run.json", fates=fates)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    for run in (fake_suite.saved("main"), json.loads((fake_suite.folder / "run.json").read_text())):
        assert [bench["name"] for bench in run["benchmarks"]] == [passed]
        assert run["quant"]["planned"] == list(records)
        assert run["quant"]["skipped"] == {skipped: "its data is gone"}
        assert run["quant"]["failed"] == {
            failed: "ValueError: it gives NaN",
            late: "AssertionError: the tidying failed",
        }
        assert run["quant"]["complete"] is True


def test_a_run_is_saved_in_a_folder_that_is_made(fake_suite, records):
    result = fake_suite.run(list(records.values()), "--benchmark-json=new/run.json")
    assert result.ret == 0
    assert len(json.loads((fake_suite.folder / "new" / "run.json").read_text())["benchmarks"]) == len(records)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--benchmark-json=records.json/run.json"], "records.json is not a folder"),
        (["--benchmark-json=."], ". is a folder: name the file to write"),
        (["--benchmark-save=main", "--benchmark-storage=records.json"], "records.json is not a folder"),
        (["--cache-dir=records.json"], "records.json is not a folder"),
    ],
)
def test_what_could_not_be_saved_is_refused_before_anything_runs(fake_suite, records, arguments, why):
    result = fake_suite.run(list(records.values()), *arguments)
    assert result.ret == USAGE_ERROR
    assert why in fake_suite.sentence(result)


def test_deselected_cases_are_named(fake_suite, records):
    fake_suite.run(list(records.values()), "--benchmark-save=main", "-k", "digits")
    quant = fake_suite.saved("main")["quant"]
    assert quant["planned"] == [name for name in records if name.startswith("digits")]
    assert quant["deselected"] == [name for name in records if name.startswith("minilm")]


@pytest.mark.parametrize("name", ["=main", ""])
def test_a_name_or_nothing_means_the_newest_complete_save(base, records, name):
    (older,) = base.storage.rglob("0001_main.json")
    older.with_name("0002_main.json").write_text(older.read_text())
    older.with_name("0003_main.partial.json").write_text(older.read_text())
    result = base.run(list(records.values()), f"--benchmark-compare{name}")
    assert result.ret == 0
    result.stderr.fnmatch_lines(["Comparing against benchmarks from: *0002_main.json"])
    result.stdout.fnmatch_lines(["Against 0002_main; no limit was given*", "4 cases without a change"])


def test_a_save_of_the_same_chip_is_preferred(base, records):
    (older,) = base.storage.rglob("0001_main.json")
    document = json.loads(older.read_text())
    document["machine_info"]["quant"]["cpu"] = "Another Chip"
    older.with_name("0002_main.json").write_text(json.dumps(document))
    result = base.run(list(records.values()), "--benchmark-compare=main", "--collect-only")
    result.stderr.fnmatch_lines(["Comparing against benchmarks from: *0001_main.json"])


def test_no_such_save_is_a_sentence_that_lists_those_there_are(base, records):
    result = base.run(list(records.values()), "--benchmark-compare=mian")
    assert result.ret == USAGE_ERROR
    assert "called 'mian'" in base.sentence(result)
    assert "there are 0001_main" in base.sentence(result)


def test_without_any_save_the_sentence_says_how_to_make_one(fake_suite, records):
    result = fake_suite.run(list(records.values()), "--benchmark-compare=main")
    assert result.ret == USAGE_ERROR
    assert "--benchmark-save=NAME" in fake_suite.sentence(result)


def test_a_folder_taken_for_a_name_is_explained(base, records):
    result = base.run(list(records.values()), "--benchmark-compare", ".")
    assert result.ret == USAGE_ERROR
    assert "write --benchmark-compare=NAME" in base.sentence(result)


def test_a_baseline_that_cannot_be_read_is_a_sentence_and_is_left_alone(base, records):
    (path,) = base.storage.rglob("0001_main.json")
    damaged = path.read_text()[:5000]
    path.write_text(damaged)
    result = base.run(list(records.values()), "--benchmark-compare=main", "--benchmark-save=main")
    assert result.ret == USAGE_ERROR
    assert "0001_main.json is not complete JSON" in base.sentence(result)
    assert path.read_text() == damaged
    assert base.names == ["0001_main.json"]


def test_runs_on_a_server_cannot_be_compared(fake_suite, records, monkeypatch):
    monkeypatch.setattr("pytest_benchmark.session.load_storage", lambda *args, **kwargs: None)
    option = "--benchmark-storage=elasticsearch+http://localhost"
    result = fake_suite.run(list(records.values()), option, "--benchmark-compare=main")
    assert result.ret == USAGE_ERROR
    assert "--benchmark-storage=DIR" in fake_suite.sentence(result)


@pytest.mark.parametrize(
    ("fates", "arguments", "status"),
    [
        ({"minilm-gptq-int4-torch": "interrupt"}, [], pytest.ExitCode.INTERRUPTED),
        ({"minilm-gptq-int4-torch": "fail"}, ["-x"], pytest.ExitCode.TESTS_FAILED),
        ({"minilm-gptq-int4-torch": "fail"}, ["--maxfail=1", "--benchmark-disable"], pytest.ExitCode.TESTS_FAILED),
    ],
    ids=["Ctrl-C", "-x", "untimed"],
)
def test_a_run_cut_short_is_saved_in_part_and_never_compared_with(base, records, fates, arguments, status):
    arguments = ["--benchmark-save=main", "--benchmark-json=run.json", *arguments]
    result = base.run(list(records.values()), *arguments, fates=fates, process=True)
    assert result.ret == status
    assert base.names == ["0001_main.json", "0002_main.partial.json"]
    assert not (base.folder / "run.json").exists()
    for run in (base.saved("main.partial"), json.loads((base.folder / "run.json.partial").read_text())):
        assert run["quant"]["complete"] is False
        assert run["quant"]["planned"] == list(records)
        assert [bench["name"] for bench in run["benchmarks"]] == ["digits-gptq-int4-torch", "digits-rtn-int4-torch"]
    result.stdout.fnmatch_lines(["digits-rtn-int4-torch *accuracy 95.0*", "Saved in part as *, which serves no *"])


def test_a_partial_file_is_no_baseline(base, records):
    (path,) = base.storage.rglob("0001_main.json")
    document = json.loads(path.read_text())
    document["quant"]["complete"] = False
    (base.folder / "run.json.partial").write_text(json.dumps(document))
    result = base.run(list(records.values()), "--benchmark-compare=run.json.partial")
    assert result.ret == USAGE_ERROR
    assert "run.json.partial is a run that was cut short" in base.sentence(result)


def test_the_last_case_failing_under_maxfail_cuts_nothing_short(fake_suite, records):
    fates = {"minilm-rtn-int4-torch": "fail"}
    fake_suite.run(list(records.values()), "-x", "--benchmark-save=main", fates=fates)
    assert fake_suite.names == ["0001_main.json"]


def test_a_run_without_times_is_saved_and_serves_as_a_baseline(fake_suite, records):
    result = fake_suite.run(list(records.values()), "--benchmark-disable", "--benchmark-save=main")
    result.stdout.fnmatch_lines(["Saved as *0001_main.json*"])
    (path,) = fake_suite.storage.rglob("0001_main.json")
    found = read_run(path)
    assert [validate(record) for record in found.records] == [[]] * 4
    assert {bench["fullname"] for bench in fake_suite.saved("main")["benchmarks"]} == {
        f"inference:{n}" for n in records
    }

    timed = fake_suite.run(list(records.values()), "--benchmark-compare=main", "--metric-compare-fail=size:0%")
    assert timed.ret == 0
    timed.stdout.fnmatch_lines(["*benchmark 'digits': 2 tests*", "Passed against 0001_main: 4 of 4 checks passed."])
    assert "0001_main)" not in timed.stdout.str()


def test_nothing_to_save_is_said(fake_suite, records):
    fates = dict.fromkeys(records, "fail")
    result = fake_suite.run(list(records.values()), "--benchmark-disable", "--benchmark-save=main", fates=fates)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["Nothing was saved: no case came to a record."])
    assert fake_suite.names == []
