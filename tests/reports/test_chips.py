from pathlib import Path

from reports.chips import chip_table, machine
from reports.runs import Run


def run_on(cpu, *records, commit="aaaaaaaaaa", saved="2026-11-01", threads=1):
    described = {"quant": {"cpu": cpu, "threads": threads}} if cpu else {}
    return Run(Path(f"{cpu}.json"), list(records), {}, described, {"id": commit}, saved)


def test_one_commit_stands_on_every_chip_side_by_side(make_record):
    quick = make_record(**{"speed.p50": 0.004})
    drawn = chip_table([run_on("M1", make_record()), run_on("M3", quick, make_record("minilm-rtn-int4-mlx"))])
    lines = drawn.splitlines()
    cells = " ".join(lines[2].split())
    assert cells.startswith("minilm-gptq-int4-onnxruntime accuracy 94.0 (-0.6 ±1.2) 12.3 1.87× ±.04 ")
    assert cells.endswith(" accuracy 94.0 (-0.6 ±1.2) 4.00 1.87× ±.04")
    assert lines[3].split()[:4] == ["minilm-rtn-int4-mlx", "–", "–", "–"]
    assert lines[4:] == ["A: M1, 1 thread", "B: M3, 1 thread"]


def test_the_last_save_of_a_chip_counts(make_record):
    old, new = make_record(**{"speed.p50": 0.5}), make_record(**{"speed.p50": 0.25})
    drawn = chip_table([run_on("M1", new, saved="2026-11-02"), run_on("M1", old, saved="2026-11-01")])
    assert "250" in drawn
    assert "500" not in drawn


def test_other_commits_and_figures_that_lack_are_said(make_record):
    bare = make_record(accuracy={"reason": "no labels"}, speed={"reason": "not timed"})
    drawn = chip_table([run_on("M1", bare), run_on("M2", bare, commit="bbbbbbbbbb")], "github")
    assert "agree 97.0 |" in drawn
    assert "- These runs are of different commits (aaaaaaa, bbbbbbb)" in drawn


def test_a_case_of_a_merged_run_stands_on_its_own_chip(make_record):
    elsewhere = make_record("minilm-rtn-int4-mlx", environment={"cpu": "M2", "threads": 1})
    lines = chip_table([run_on("M1", make_record(), elsewhere)]).splitlines()
    assert lines[4:] == ["A: M1, 1 thread", "B: M2, 1 thread"]
    assert lines[3].split()[:4] == ["minilm-rtn-int4-mlx", "–", "–", "–"]


def test_a_machine_has_a_name_even_where_little_is_known(make_record):
    record = make_record()
    assert machine(run_on("M1", threads=4), record) == "M1, 4 threads"
    assert machine(run_on(None), record) == "an unnamed processor"
    assert machine(Run(Path("x"), [], {}, {"cpu": {"brand_raw": "Xeon"}}), record) == "Xeon"
