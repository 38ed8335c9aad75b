"""Cases spread over workers and shards: the same records as in one process, wherever and in whatever order they run."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest

from benchmarks.distribution import deal
from benchmarks.matrix import Case, matrix
from benchmarks.scheduling import WORTH_SPLITTING, CaseScheduling, units_by_model
from reports.runs import read_run

CASES = matrix()[0]
USAGE_ERROR, FAILED = pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.TESTS_FAILED

ANOTHER_CHIP = """
import pytest

@pytest.hookimpl(trylast=True)
def pytest_benchmark_update_machine_info(config, machine_info):
    if HERE.parent.name == "elsewhere":
        machine_info["quant"]["cpu"] = "Another Chip"
"""
NUMPY_FIGURE = """

def pytest_quant_record(config, record):
    import numpy

    record["mine"] = {"figure": numpy.float32(1) if record["case"]["method"] == "rtn" else 1.0}
"""


def node_ids(*names):
    return [f"benchmarks/test_inference.py::test_inference[{name}]" for name in names]


def tables(case):
    return case.model, case.method, case.bits


class Worker:
    """Stands for one of xdist's workers: remembers what it was sent."""

    def __init__(self, name):
        self.gateway = SimpleNamespace(id=name)
        self.sent, self.shutting_down = [], False

    def send_runtest_some(self, positions):
        assert not self.shutting_down
        self.sent += positions

    def shutdown(self):
        self.shutting_down = True


def scheduling(collection, workers=2, seconds=None):
    config = SimpleNamespace(getvalue=lambda name: ["popen"] * workers, option=SimpleNamespace())
    scheduler = CaseScheduling(config, None, seconds or {})
    nodes = [Worker(f"gw{number}") for number in range(workers)]
    for node in nodes:
        scheduler.add_node(node)
    for node in nodes:
        scheduler.add_node_collection(node, list(collection))
    assert scheduler.collection_is_completed
    scheduler.schedule()
    return scheduler, nodes


def run(scheduler, nodes, crash_at=None):
    """Let the workers take turns, each beginning a test only when it knows the next; return what each ran."""
    ran = {node: [] for node in nodes}
    waiting = dict.fromkeys(nodes, 0)
    while any(waiting[node] < len(node.sent) for node in nodes):
        before = dict(waiting)
        for node in nodes:
            ready = len(node.sent) - waiting[node] >= (1 if node.shutting_down else 2)
            if ready and waiting[node] < len(node.sent):
                position = node.sent[waiting[node]]
                waiting[node] += 1
                ran[node].append(position)
                scheduler.mark_test_complete(node, position)
        assert waiting != before, "the workers wait for ever"
    assert scheduler.tests_finished
    assert not scheduler.has_pending
    return ran


def test_every_case_runs_once_and_tables_stay_together():
    ids = [case.id for case in CASES]
    scheduler, nodes = scheduling(node_ids(*ids), 3)
    ran = run(scheduler, nodes)
    assert sorted(position for positions in ran.values() for position in positions) == list(range(len(ids)))
    workers = {}
    for node, positions in ran.items():
        for position in positions:
            workers.setdefault(tables(CASES[position]), set()).add(node)
    assert {len(nodes) for nodes in workers.values()} == {1}


def test_small_models_are_not_split_and_large_ones_are():
    small = [f"digits-rtn-int{bits}-torch" for bits in range(2, 8)]
    large = [f"minilm-{method}-int{bits}-torch" for method in ("gptq", "rtn") for bits in range(2, 8)]
    seconds = {name: WORTH_SPLITTING if name in large else 0.1 for name in small + large}
    scheduler, nodes = scheduling(node_ids(*small, *large), 2, seconds)
    ran = run(scheduler, nodes)
    models = {node: Counter("minilm" if position >= 6 else "digits" for position in ran[node]) for node in nodes}
    (first, second) = (models[node] for node in nodes)
    assert first == {"minilm": first["minilm"]}  # the most expensive model begins at once
    assert second["digits"] == 6
    assert second["minilm"] >= 1


def test_a_helper_works_from_the_far_end():
    ids = [f"minilm-rtn-int{bits}-{backend}" for bits in (2, 3, 4, 5) for backend in ("mlx", "torch")]
    _, (first, second) = scheduling(node_ids(*ids), 2, dict.fromkeys(ids, WORTH_SPLITTING))
    assert first.sent[:2] == [0, 1]
    assert second.sent[:2] == [7, 6]


def test_a_worker_without_work_is_let_go():
    scheduler, nodes = scheduling(node_ids("digits-rtn-int4-torch"), 3)
    assert [node.shutting_down for node in nodes] == [True, True, True]
    assert sum(len(node.sent) for node in nodes) == 1
    run(scheduler, nodes)


def test_what_a_crashed_worker_did_not_begin_is_handed_out_again():
    ids = [f"digits-rtn-int4-{backend}" for backend in ("a", "b", "c", "d", "e")]
    scheduler, (first, second) = scheduling(node_ids(*ids), 2)
    scheduler.mark_test_complete(first, first.sent[0])
    assert scheduler.remove_node(first) == node_ids(ids[1])[0]
    replacement = Worker("gw2")
    scheduler.add_node(replacement)
    scheduler.add_node_collection(replacement, node_ids(*ids))
    scheduler.schedule()
    ran = run(scheduler, [second, replacement])
    assert sorted(position for positions in ran.values() for position in positions) == [2, 3, 4]


def test_other_tests_stay_with_their_file():
    ids = ["a.py::test[1]", "a.py::test[2]", "b.py::test", *node_ids("digits-rtn-int4-torch")]
    assert {model: [unit.positions for unit in units] for model, units in units_by_model(ids, {}).items()} == {
        "a.py": [[0, 1]],
        "b.py": [[2]],
        "digits": [[3]],
    }


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shards_are_a_partition_that_spreads_each_model_and_keeps_tables_together(count):
    shares = deal(CASES, count)
    assert set(shares) == set(range(count))
    together = {}
    for case, share in zip(CASES, shares, strict=True):
        together.setdefault(tables(case), set()).add(share)
    assert {len(shares) for shares in together.values()} == {1}
    largest = max(Counter(map(tables, CASES)).values())
    for model in {case.model for case in CASES}:
        own = Counter(share for case, share in zip(CASES, shares, strict=True) if case.model == model)
        assert max(own.values()) - min(own.get(share, 0) for share in range(count)) <= largest
    assert deal(CASES, count) == shares


def test_shards_of_20_000_cases_are_dealt_in_no_time():
    cases = [Case(f"m{i % 40}", f"a{i % 50}", f"int{i % 10}", f"b{i}") for i in range(20_000)]
    assert len(deal(cases, 8)) == 20_000


def test_shards_run_what_they_are_dealt_and_merge_into_the_whole(fake_suite, records):
    for number in (1, 2):
        result = fake_suite.run(
            list(records.values()), f"--shard={number}/2", f"--benchmark-json={number}.json", "--benchmark-disable"
        )
        result.assert_outcomes(passed=2, deselected=2)
    runs = [read_run(fake_suite.folder / f"{number}.json") for number in (1, 2)]
    assert [run.quant["shard"] for run in runs] == [{"number": 1, "of": 2}, {"number": 2, "of": 2}]
    assert sorted(runs[0].quant["planned"]) == sorted(runs[1].quant["deselected"])
    assert {name.split("-")[0] for name in runs[0].quant["planned"]} == {"digits", "minilm"}

    from reports.__main__ import main

    files = [str(fake_suite.folder / f"{number}.json") for number in (1, 2)]
    whole = fake_suite.folder / "whole.json"
    assert main(["merge", *files, "-o", str(whole)]) == 0
    assert sorted(read_run(whole).quant["planned"]) == sorted(records)
    result = fake_suite.run(list(records.values()), f"--benchmark-compare={whole}", "--metric-compare-fail=size:0%")
    assert result.ret == 0


def test_a_shard_alone_against_the_whole_loses_nothing(base, records):
    options = ["--benchmark-compare=main", "--metric-compare-fail=size:0%", "--shard=1/2"]
    result = base.run(list(records.values()), *options)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["Passed against 0001_main: 2 of 2 checks passed."])


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_a_usage_error(fake_suite, records, text):
    result = fake_suite.run(list(records.values()), f"--shard={text}")
    assert result.ret == USAGE_ERROR
    assert any("must be I/N, such as 2/8" in line for line in result.stderr.lines)


def without_times(run):
    times = {"speed", "seconds", "cost", "environment"}
    return {
        json.dumps({key: value for key, value in record.items() if key not in times}, sort_keys=True)
        for record in run.records
    }


def test_workers_records_are_those_of_one_process_and_serve_as_a_baseline(base, records):
    result = base.run(list(records.values()), "-n", 2, "--benchmark-save=main", process=True)
    assert result.ret == 0
    assert base.names == ["0001_main.json", "0002_main.json"]
    serial, parallel = (read_run(next(base.storage.rglob(f"000{number}_main.json"))) for number in (1, 2))
    assert without_times(parallel) == without_times(serial)
    assert parallel.quant["planned"] == serial.quant["planned"]
    assert parallel.quant["complete"] is True
    assert not any("environment" in record for record in parallel.records)
    result.stdout.fnmatch_lines(["No times were measured: they need one process, *"])
    result = base.run(list(records.values()), "--benchmark-compare=0002", "--metric-compare-fail=accuracy:1pp")
    assert result.ret == 0


def test_workers_are_judged_as_one_run(base, records, with_scores):
    wrong = with_scores([index % 5 != 0 for index in range(400)], case="minilm-rtn-int4-torch")
    changed = {**records, "minilm-rtn-int4-torch": {**wrong, "seconds": 0.1}}
    options = ["-n", 2, "--benchmark-compare=main", "--metric-compare-fail=accuracy:1pp", "--benchmark-disable"]
    fates = {"digits-rtn-int4-torch": "skip", "digits-gptq-int4-torch": "fail"}
    result = base.run(list(changed.values()), *options, fates=fates, process=True)
    assert result.ret == FAILED
    result.stdout.fnmatch_lines(
        [
            "FAILED against 0001_main: 1 regressed, 1 lost, 1 newly failed.",
            "  minilm-rtn-int4-torch accuracy:1pp: 0.95 -> 0.8*",
            "  digits-rtn-int4-torch: its data is gone",
            "  digits-gptq-int4-torch: ValueError: it gives NaN",
        ]
    )
    assert "Traceback" not in result.stdout.str()


def test_a_limit_on_time_is_not_green_under_workers(base, records):
    options = [
        "-n",
        2,
        "--benchmark-compare=main",
        "--metric-compare-fail=speed:10%",
        "--benchmark-compare-fail=min:5%",
    ]
    result = base.run(list(records.values()), *options, process=True)
    assert result.ret == FAILED
    result.stdout.fnmatch_lines(
        ["  speed:10% judged nothing: timing is disabled in this run*", "  min:5% judged nothing:*"]
    )


def test_a_figure_that_no_worker_can_send_fails_its_case_and_not_the_worker(fake_suite, records):
    with (fake_suite.folder / "conftest.py").open("a") as file:
        file.write(NUMPY_FIGURE)
    result = fake_suite.run(list(records.values()), "-n", 2, "--benchmark-save=main", process=True)
    assert result.ret == FAILED
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["*mine.figure is a numpy.float32, not a plain JSON type*"])
    failed = fake_suite.saved("main")["quant"]["failed"]
    assert sorted(failed) == sorted(name for name in records if "-rtn-" in name)
    assert all("not a plain JSON type" in how for how in failed.values())


def test_a_worker_that_crashes_leaves_a_partial_run_and_no_green(base, records):
    options = ["-n", 2, "--benchmark-save=main", "--benchmark-compare=main", "--metric-compare-fail=size:1%"]
    result = base.run(list(records.values()), *options, fates={"minilm-gptq-int4-torch": "crash"}, process=True)
    assert result.ret == FAILED
    assert base.names == ["0001_main.json", "0002_main.partial.json"]
    quant = base.saved("main.partial")["quant"]
    assert "crashed while running" in quant["failed"]["minilm-gptq-int4-torch"]
    assert quant["complete"] is False
    assert sorted(quant["planned"]) == sorted(records)
    result.stdout.fnmatch_lines(["Saved in part as *: worker gw* crashed."])


def test_workers_in_other_folders_send_the_same_records(base, records, tmp_path):
    """What ssh gateways do, without a second host."""
    folders = [tmp_path / name for name in ("there", "elsewhere")]
    for folder in folders:
        folder.mkdir()
    with (base.folder / "conftest.py").open("a") as file:
        file.write(ANOTHER_CHIP)
    gateways = [part for folder in folders for part in ("--tx", f"popen//chdir={folder}")]
    options = ["--dist=load", *gateways, f"--rsyncdir={base.folder}", "--benchmark-save=main"]
    result = base.run(list(records.values()), *options, base.folder, process=True)
    assert result.ret == 0
    serial, parallel = (read_run(next(base.storage.rglob(f"000{number}_main.json"))) for number in (1, 2))
    assert without_times(parallel) == without_times(serial)
    assert parallel.quant["planned"] == serial.quant["planned"]
    chips = [record.get("environment", {}).get("cpu") for record in parallel.records]
    assert chips.count("Another Chip") > 0
    assert set(chips) <= {None, "Another Chip"}
