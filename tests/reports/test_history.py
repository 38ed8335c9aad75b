import json
from pathlib import Path

import pytest

from reports.__main__ import main
from reports.history import changes_by_save, histories, saved_runs, sparkline


@pytest.fixture
def save(tmp_path):
    """``save(3, records, cpu="M1")``: the third save of a day, on that chip."""

    def save(index, *records, cpu="M1", threads=1, versions=None, dirty=False, name="main"):
        folder = tmp_path / "saves" / cpu
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{index:04}_{name}.json"
        document = {
            "benchmarks": [{"extra_info": {"quant": record}} for record in records],
            "machine_info": {"quant": {"cpu": cpu, "threads": threads, "versions": versions or {"torch": "2.13"}}},
            "commit_info": {"id": f"{index:07}deadbeef", "dirty": dirty},
            "datetime": f"2026-11-{index + 1:02}T00:00:00",
        }
        path.write_text(json.dumps(document))
        return str(path)

    return save


def at_speed(make_record, ratio, case="minilm-gptq-int4-onnxruntime"):
    return make_record(case, **{"speed.ratio": ratio, "speed.ci95": [ratio - 0.1, ratio + 0.1]})


SLOW, FAST = [1.50, 1.52, 1.49, 1.51, 1.50], [2.01, 2.00, 2.02]


def test_a_step_is_named_by_its_save_and_what_changed_with_it(make_record, save, tmp_path, capsys):
    for index, ratio in enumerate(SLOW + FAST):
        versions = {"torch": "2.13", "onnxruntime": "1.32" if ratio > 1.9 else "1.31"}
        save(index, at_speed(make_record, ratio), versions=versions)
    assert main(["history", str(tmp_path / "saves")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "M1, 1 thread"
    assert lines[1].split() == ["minilm-gptq-int4-onnxruntime", "▁▁▁▁▁███", "2.02×"]
    assert (
        lines[2].strip()
        == "0005_main (0000005): 1.50× → 2.01×, better; with it versions: onnxruntime 1.32, was onnxruntime 1.31"
    )
    assert lines[-3] == "0005_main (0000005): speed better in 1 case"
    assert lines[-1].startswith("1 of 1 series have the 4 saves that a change needs; 1% of series")


def test_time_and_not_the_name_of_the_file_is_the_order(make_record, save):
    paths = [save(index, at_speed(make_record, ratio)) for index, ratio in enumerate(SLOW + FAST)]
    runs, left_out = saved_runs(reversed(paths))
    assert left_out == []
    assert histories(runs, "speed")[0].values == SLOW + FAST


def test_chips_and_threads_are_kept_apart(make_record, save):
    places = [("M1", 1), ("M2", 1), ("M1", 4)]
    paths = [
        save(10 * place + index, at_speed(make_record, 1.0 + place), cpu=cpu, threads=threads)
        for index in range(3)
        for place, (cpu, threads) in enumerate(places)
    ]
    series = histories(saved_runs(paths)[0], "speed")
    assert [(one.machine, one.values) for one in series] == [
        ("M1, 1 thread", [1.0] * 3),
        ("M1, 4 threads", [3.0] * 3),
        ("M2, 1 thread", [2.0] * 3),
    ]
    assert not any(one.changes for one in series)


def test_other_data_begin_another_series_of_what_is_measured_on_them(make_record, save):
    changes = [{"scores.dataset_sha256": letter * 64} for letter in "ccccdddd"]
    paths = [save(index, make_record(**change)) for index, change in enumerate(changes)]
    runs = saved_runs(paths)[0]
    assert [len(one.values) for one in histories(runs, "accuracy")] == [4, 4]
    assert [len(one.values) for one in histories(runs, "size")] == [8]


def test_better_follows_the_metric(make_record, save):
    figures = [("lower", 20.0), ("lower", 20.0), ("lower", 22.0), ("lower", 22.0)]
    paths = []
    for index, (better, value) in enumerate(figures):
        accuracy = {"metric": "perplexity", "better": better, "value": value, "baseline": 20.0, "delta": value - 20}
        changes = {f"accuracy.{name}": figure for name, figure in accuracy.items()} | {"accuracy.ci95": [-1, 3]}
        paths.append(save(index, make_record(**changes)))
    (series,) = histories(saved_runs(paths)[0], "perplexity")
    assert [(change.index, change.better) for change in series.changes] == [(2, False)]


def test_cases_are_chosen_by_a_pattern(make_record, save, capsys):
    path = save(0, at_speed(make_record, 1.5), at_speed(make_record, 1.2, "digits-rtn-int4-torch"))
    assert main(["history", str(path), "--case", "digits-*"]) == 0
    shown = capsys.readouterr().out
    assert "digits-rtn-int4-torch" in shown
    assert "minilm" not in shown
    assert main(["history", str(path), "--case", "nothing"]) == 4
    assert capsys.readouterr().err == "No case matching 'nothing' has a figure 'speed' in these runs.\n"


def test_a_folder_may_hold_other_files_and_says_so(make_record, save, tmp_path, capsys):
    good = Path(save(0, at_speed(make_record, 1.5)))
    (good.parent / "0001_other.json").write_text('{"benchmarks": []}')
    (good.parent / "0002_main.partial.json").write_text("{")
    assert main(["history", str(tmp_path / "saves")]) == 0
    shown = capsys.readouterr()
    assert "minilm-gptq" in shown.out
    assert "0001_other.json holds no quantization record" in shown.err
    assert "partial" not in shown.err
    assert main(["history", str(good.parent / "0001_other.json")]) == 4


def test_nothing_saved_is_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["history"]) == 4
    assert capsys.readouterr().err == "No saved run in .benchmarks; save one with --benchmark-save=NAME.\n"
    assert main(["history", str(tmp_path)]) == 4
    assert "No saved run in" in capsys.readouterr().err
    assert main(["history", "absent"]) == 4
    assert capsys.readouterr().err.count("\n") == 1


def test_a_local_change_marks_its_save(make_record, save):
    paths = [save(index, at_speed(make_record, ratio), dirty=True) for index, ratio in enumerate(SLOW + FAST)]
    (series,) = histories(saved_runs(paths)[0], "speed")
    assert series.changes[0].save == "0005_main (0000005+)"


def test_saves_are_listed_by_what_they_changed_the_latest_first(make_record, save):
    sizes, paths = [10, 10, 20, 20, 20, 20], []
    for index, (size, ratio) in enumerate(zip(sizes, [2, 2, 2, 2, 1, 1], strict=True)):
        changes = {"size.bytes": size, "size.ratio": None, "size.reason": "not compared"}
        changes |= {"speed.ratio": ratio, "speed.ci95": [ratio - 0.1, ratio + 0.1]}
        cases = ("minilm-rtn-int4-mlx", "minilm-rtn-int4-torch")
        paths.append(save(index, *(make_record(case, **changes) for case in cases)))
    runs = saved_runs(paths)[0]
    assert changes_by_save([*histories(runs, "size"), *histories(runs, "speed")]) == [
        "0004_main (0000004): speed worse in 2 cases",
        "0002_main (0000002): size worse in 2 cases",
    ]


def test_a_sparkline_spans_its_values():
    assert sparkline([1, 2, 3, 8]) == "▁▂▃█"
    assert sparkline([2, 2]) == "▄▄"
    assert sparkline([0]) == "▄"
