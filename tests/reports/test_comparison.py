from pathlib import Path

import numpy

from reports.__main__ import main
from reports.comparison import comparison
from reports.judgement import judge
from reports.runs import Run

NAME = "minilm-gptq-int4-onnxruntime"


def compared(before, after, **options):
    return comparison(judge(Run(Path("a"), before), Run(Path("b"), after), []), **options)


def test_a_run_beside_itself_has_no_change(with_scores):
    records = [with_scores([True] * 30), with_scores([True] * 30, "minilm-rtn-int4-mlx")]
    assert compared(records, records) == "2 cases without a change"
    shown = compared(records, records, all_cases=True)
    (row,) = [line for line in shown.splitlines() if line.startswith(NAME)]
    assert row.split()[3:5] == ["=", "="]


def test_losses_and_gains_are_told_with_their_margins(with_scores):
    right = numpy.ones(400, bool)
    worse = right.copy()
    worse[:40] = False
    before = [with_scores(right), with_scores(worse, "minilm-rtn-int4-mlx")]
    after = [
        with_scores(worse, error=numpy.full(400, 0.04)),
        with_scores(right, "minilm-rtn-int4-mlx", **{"size.bytes": 13_000_000, "size.ratio": 13 / 90.8}),
    ]
    lines = {line.split()[0]: line for line in compared(before, after).splitlines() if line.startswith("minilm")}
    assert "! -10.0 -3.4/+2.6" in lines[NAME]
    assert "! +100.0 ±0 %" in lines[NAME]
    assert "+ +10.0 -2.6/+3.4" in lines["minilm-rtn-int4-mlx"]
    assert lines["minilm-rtn-int4-mlx"].endswith("-10.3 %")


def test_a_slower_case_is_told_only_beyond_the_noise(with_scores):
    def at(ratio):
        return with_scores([True] * 9, ratio=ratio)

    assert compared([at(1.87)], [at(1.85)]) == "1 case without a change"
    assert "! -14.4" in compared([at(1.87)], [at(1.6)])


def test_without_labels_agreement_is_compared(with_scores):
    accuracy = {"reason": "no labels"}
    before, after = (with_scores(numpy.arange(200) >= wrong, accuracy=accuracy) for wrong in (0, 60))
    (row,) = [line for line in compared([before], [after]).splitlines() if line.startswith(NAME)]
    assert "agree 70.0" in row
    assert "! -30.0" in row


def test_what_is_in_one_run_alone_is_named(make_record):
    shown = compared([make_record("minilm-rtn-int4-mlx")], [make_record("minilm-mse-int4-mlx")])
    assert "only in the first: minilm-rtn-int4-mlx (there is no such case any more)" in shown
    assert "only in the second: minilm-mse-int4-mlx" in shown


def test_the_command_prints_markdown(save_run, make_record, capsys):
    smaller = make_record(**{"size.bytes": 13_000_000, "size.ratio": 13 / 90.8})
    one, two = save_run("one.json", make_record()), save_run("two.json", smaller)
    assert main(["compare", str(one), str(two), "--format", "markdown"]) == 0
    shown = capsys.readouterr().out
    assert "| minilm-gptq-int4-onnxruntime |" in shown
    assert "\n- Changes from the first run" in shown
    assert main(["compare", str(one), "none.json"]) == 4


def test_more_than_two_runs_stand_side_by_side(save_run, make_record, capsys):
    names = [
        str(save_run(f"{chip}.json", make_record(), machine_info={"quant": {"cpu": chip, "threads": 1}}))
        for chip in ("M1", "M2", "M3")
    ]
    assert main(["compare", *names]) == 0
    assert "C: M3, 1 thread" in capsys.readouterr().out
    assert main(["compare", *names[:2], "--chips"]) == 0
    assert "B: M2, 1 thread" in capsys.readouterr().out
