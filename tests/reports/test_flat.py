import csv
import io
import json

import pytest

from reports.__main__ import main
from reports.flat import flat


@pytest.fixture
def save(tmp_path):
    def save(name, *records):
        path = tmp_path / name
        machine = {"quant": {"cpu": f"chip of {name}", "threads": 2}}
        benchmarks = [{"extra_info": {"quant": record}} for record in records]
        path.write_text(json.dumps({"benchmarks": benchmarks, "machine_info": machine, "commit_info": {"id": "abc"}}))
        return str(path)

    return save


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_every_figure_of_every_run_is_a_column(save, make_record, capsys):
    one = save("one.json", make_record(), make_record("minilm-rtn-int4-mlx"))
    two = save("two.json", make_record(**{"accuracy.value": 0.123456789, "accuracy.baseline": 0.129456789}))
    assert main(["table", one, two, "--format", "csv"]) == 0
    rows = read_csv(capsys.readouterr().out)
    assert [(row["run"], row["cpu"], row["name"]) for row in rows] == [
        (one, "chip of one.json", "minilm-gptq-int4-onnxruntime"),
        (one, "chip of one.json", "minilm-rtn-int4-mlx"),
        (two, "chip of two.json", "minilm-gptq-int4-onnxruntime"),
    ]
    assert float(rows[2]["accuracy.value"]) == 0.123456789
    assert (rows[0]["accuracy.ci95.low"], rows[0]["accuracy.ci95.high"]) == ("-0.018", "0.006")
    assert rows[0]["speed.p99"] == ""
    assert not any("packed" in name for name in rows[0])


def test_columns_of_a_section_stay_together_whichever_record_brings_them(save, make_record, capsys):
    plain = make_record("minilm-rtn-int4-mlx", size={"reason": "gone"})
    run = save("run.json", plain, make_record(**{"accuracy.extra": 1, "own": {"note": "x"}}))
    assert main(["table", run, "--format", "csv"]) == 0
    names = capsys.readouterr().out.splitlines()[0].split(",")
    sections = [name.partition(".")[0] for name in names]
    assert list(dict.fromkeys(sections)) == [s for i, s in enumerate(sections) if i == 0 or sections[i - 1] != s]
    assert names[-1] == "own.note"


def test_hostile_text_survives_a_round_trip(save, make_record, capsys):
    reason = 'a "quoted", \n<b>text</b>; =1+1'
    run = save("run.json", make_record(memory={"reason": reason}))
    assert main(["table", run, "--format", "csv"]) == 0
    (row,) = read_csv(capsys.readouterr().out)
    assert row["memory.reason"] == reason


def test_lists_become_columns_or_text(make_record):
    record = make_record(**{"coverage.notes": ["one", "two"], "coverage.left_float": [], "layers": [{"name": "a"}]})
    found = flat(record)
    assert found["coverage.notes"] == "one; two"
    assert found["coverage.left_float"] == ""
    assert "layers" not in found


def test_single_samples_and_rounds_are_left_out(make_record):
    found = flat(make_record(**{"speed.samples": {"rounds": 2, "baseline": "packed", "variant": "packed"}}))
    assert not any("packed" in name or value == "packed" for name, value in found.items())
    assert found["speed.ratio"] == 1.87


def test_several_runs_are_tables_under_their_names(save, make_record, capsys):
    one, two = save("one.json", make_record()), save("two.json", make_record("minilm-rtn-int4-mlx"))
    assert main(["table", one, two]) == 0
    text = capsys.readouterr().out
    assert text.index(one) < text.index("minilm-gptq-int4") < text.index(two) < text.index("minilm-rtn-int4-mlx")
    assert main(["table", one, two, "--format", "markdown"]) == 0
    assert f"**{two}**" in capsys.readouterr().out


def test_a_document_holds_no_csv(save, make_record, capsys, tmp_path):
    document = tmp_path / "README.md"
    document.write_text("<!-- begin table -->\n<!-- end table -->\n")
    assert main(["table", save("run.json", make_record()), "--format", "csv", "--into", str(document)]) == 4
    assert "cannot hold CSV" in capsys.readouterr().err
