import json
import subprocess
import sys

import pytest

from reports.__main__ import main


@pytest.fixture
def save(tmp_path):
    def save(*records, name="run.json"):
        benchmarks = [{"fullname": str(index), "extra_info": {"quant": r}} for index, r in enumerate(records)]
        path = tmp_path / name
        path.write_text(json.dumps({"benchmarks": benchmarks, "quant": {"schema": 1}}))
        return str(path)

    return save


def test_good_runs_are_counted(save, make_record, capsys):
    one = save(make_record(), make_record("minilm-rtn-int4-mlx"))
    two = save(make_record(), name="other.json")
    assert main(["validate", one, two]) == 0
    assert capsys.readouterr().out == "3 records valid\n"
    assert main(["validate", two]) == 0
    assert capsys.readouterr().out == "1 record valid\n"


def test_every_problem_of_every_run_is_a_line(save, make_record, capsys):
    bad = save(make_record(**{"accuracy.n": -1, "evidence": "native"}), {"schema": 1})
    assert main(["validate", bad, "missing.json", save(make_record(), name="good.json")]) == 4
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert (
        f"{bad}: inference:minilm-gptq-int4-onnxruntime: accuracy.n is -1, not a whole number of at least 0." in lines
    )
    assert f"{bad}: unnamed record: kind is missing." in lines
    assert sum(line.startswith("missing.json does not exist") for line in lines) == 1


def test_an_empty_run_and_a_case_recorded_twice_are_not_valid(save, make_record, capsys):
    assert main(["validate", save()]) == 4
    assert "holds no record" in capsys.readouterr().err
    assert main(["validate", save(make_record(), make_record())]) == 4
    assert "was recorded more than once" in capsys.readouterr().err
    assert main(["validate", save(make_record(), make_record(kind="quantize"))]) == 0


def test_the_table_ends_with_advice(save, make_record, capsys):
    path = save(make_record())
    assert main(["table", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("minilm-gptq-int4-onnxruntime")
    assert lines[-1].startswith("minilm: ")
    assert main(["table", path, "--format", "markdown", "-v"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("| case")
    assert "bits/weight" in shown


def test_a_table_of_bad_records_is_refused_in_one_sentence(save, make_record, capsys):
    path = save(make_record(**{"accuracy.n": -1, "kind": "x"}))
    assert main(["table", path]) == 4
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert f"(1 more: python -m reports validate {path})" in shown.err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "\nStopped.\n"),
        (NotADirectoryError(20, "Not a directory", "a/b"), 4, "a/b cannot be used: Not a directory.\n"),
    ],
)
def test_no_command_ends_in_a_traceback(monkeypatch, capsys, error, status, said):
    def ended(options):
        raise error

    monkeypatch.setattr("reports.commands.table.run", ended)
    assert main(["table", "run.json"]) == status
    assert capsys.readouterr().err == said


def test_help_teaches_by_an_example(pytestconfig):
    command = [sys.executable, "-m", "reports", "--help"]
    shown = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True)
    assert "pytest benchmarks -k int4 --benchmark-json=run.json" in shown.stdout
    assert "python -m reports validate run.json" in shown.stdout


def test_no_command_says_which_there_are(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_ends_a_command_quietly(save, make_record):
    command = [sys.executable, "-m", "reports", "table", save(make_record())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 1
    assert said == ""
