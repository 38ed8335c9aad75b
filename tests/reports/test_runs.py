import json
import os
import subprocess
import sys

import pytest

from reports.record import case_id, validate
from reports.runs import RunError, read_run


def save(path, records, **document):
    benchmarks = [{"fullname": "x", "stats": {}, "extra_info": {"quant": record}} for record in records]
    path.write_text(json.dumps({"benchmarks": benchmarks, "machine_info": {"node": "n"}, **document}))
    return path


def test_read_run_gives_the_records_and_what_surrounds_them(tmp_path, make_record):
    run = read_run(save(tmp_path / "run.json", [make_record()], quant={"schema": 1, "planned": ["a"]}))
    assert [case_id(record) for record in run.records] == ["minilm-gptq-int4-onnxruntime"]
    assert run.quant["planned"] == ["a"]
    assert run.machine == {"node": "n"}
    assert run.commit == {}


def test_read_run_leaves_out_benchmarks_that_are_not_ours(tmp_path, make_record):
    path = save(tmp_path / "run.json", [make_record()])
    document = json.loads(path.read_text())
    document["benchmarks"] += [{"fullname": "theirs"}, {"fullname": "theirs", "extra_info": {"a": 1}}]
    path.write_text(json.dumps(document))
    assert len(read_run(str(path)).records) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not complete JSON"),
        ('{"benchmarks": [{"name": "x", "ex', "is not complete JSON (line 1)"),
        ("[" * 100_000, "is not complete JSON"),
        ("\x00\x01", "is not complete JSON"),
        ("[1, 2]", "is not a pytest-benchmark file"),
        ('{"results": []}', "is not a pytest-benchmark file"),
        ('{"benchmarks": [3]}', "is not a pytest-benchmark file"),
        ('{"benchmarks": []}', "holds no quantization record"),
        ('{"benchmarks": [{"name": "x", "extra_info": {}}]}', "holds no quantization record"),
        ('{"benchmarks": [{"name": "x", "extra_info": {"quant": 7}}]}', "holds a number where a record should be"),
        ('{"benchmarks": [{"extra_info": {"quant": {"schema": 9}}}]}', "schema is 9, written by a newer version"),
        ('{"benchmarks": [], "quant": {"schema": 2}}', "schema is 2, written by a newer version"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, content, message):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(RunError) as caught:
        read_run(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_binary_and_folder_are_one_sentence(tmp_path):
    with pytest.raises(RunError, match="does not exist; save a run with"):
        read_run(tmp_path / "none.json")
    with pytest.raises(RunError, match="cannot be read as text"):
        read_run(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="cannot be read as text: not UTF-8"):
        read_run(tmp_path / "binary.json")


def test_nan_that_pytest_benchmark_wrote_is_read_and_reported(tmp_path, make_record):
    path = save(tmp_path / "run.json", [make_record(**{"speed.ratio": float("nan")})])
    assert "NaN" in path.read_text()
    (record,) = read_run(path).records
    assert validate(record) == ["speed.ratio is nan; a missing figure is null with a reason."]


def test_a_run_saved_by_pytest_benchmark_is_read(tmp_path, make_record):
    (tmp_path / "test_case.py").write_text(
        f"""
def test_case(benchmark):
    benchmark.extra_info["quant"] = {make_record()!r}
    benchmark(lambda: None)
"""
    )
    arguments = ["-q", "-c", "/dev/null", "--benchmark-json=run.json", "--benchmark-max-time=0.01", "test_case.py"]
    # pytest-benchmark takes a process that inherits this variable for an xdist worker, and disables itself.
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    command = [sys.executable, "-m", "pytest", *arguments]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    (record,) = read_run(tmp_path / "run.json").records
    assert validate(record) == []
