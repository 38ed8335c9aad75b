"""Shards and resumed runs become one run, or a sentence says why not."""

import json

import pytest

from reports.__main__ import main
from reports.judgement import judge
from reports.limits import parse_limit
from reports.merge import merge, missing_shards, read_part
from reports.runs import RunError, problems_of, read_run, run_of
from reports.storage import find_run

ENVIRONMENT = {"cpu": "A", "threads": 1, "versions": {"torch": "2.9"}}
IDS = ["digits-rtn-int4-torch", "digits-gptq-int4-torch", "minilm-rtn-int4-torch", "minilm-gptq-int4-torch"]


@pytest.fixture
def save(tmp_path, make_record):
    """``save("one.json", [ids], shard=(1, 2), ...)`` writes a run that planned and ran these cases of ``IDS``."""

    def write(name, ids, shard=None, commit=None, environment=None, changes=None, planned=None, **quant):
        records = [make_record(case, **(changes or {})) for case in ids]
        planned = ids if planned is None else planned
        document = {
            "benchmarks": [
                {"fullname": name, "stats": {"median": 0.1}, "extra_info": {"quant": record}} for record in records
            ],
            "machine_info": {"node": name, "quant": {**ENVIRONMENT, **(environment or {})}},
            "commit_info": {"id": "abc", "dirty": False, **(commit or {})},
            "datetime": "2026-01-01",
            "quant": {
                "schema": 1,
                "selection": {"keyword": "int4"},
                "settings": {"threads": 1, "batch": 1},
                "planned": planned,
                "deselected": [case for case in IDS if case not in planned],
                "complete": len(planned) == len(ids),
                **({"shard": {"number": shard[0], "of": shard[1]}} if shard else {}),
                **quant,
            },
        }
        path = tmp_path / name
        path.write_text(json.dumps(document))
        return path

    return write


def merged(*paths):
    return merge([read_part(path) for path in paths])


def test_shards_become_the_run_they_were_planned_as(save, tmp_path, capsys):
    one, two = save("one.json", IDS[:1], (1, 2)), save("two.json", IDS[1:], (2, 2), skipped={}, failed={})
    output = tmp_path / "run.json"
    assert main(["merge", str(one), str(two), "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}: 4 of 4 planned cases\n"
    run = find_run(str(output))
    assert problems_of(run) == []
    assert run.quant["planned"] == IDS
    assert run.quant["deselected"] == []
    assert run.quant["complete"] is True
    assert "shard" not in run.quant
    document = json.loads(output.read_text())
    assert [bench["stats"]["median"] for bench in document["benchmarks"]] == [0.1] * 4


def test_missing_shards_are_said_and_the_run_is_not_complete(save, tmp_path, capsys):
    one, three = save("one.json", IDS[:1], (1, 4)), save("three.json", IDS[1:2], (3, 4))
    output = tmp_path / "run.json"
    assert main(["merge", str(one), str(three), "-o", str(output)]) == 0
    assert "Shards 2, 4 are missing" in capsys.readouterr().err
    with pytest.raises(RunError, match="serves no comparison"):
        find_run(str(output))
    assert missing_shards([read_part(one), read_part(three)]) == [2, 4]


def test_a_resumed_run_completes_the_one_that_was_cut_short(save):
    begun = save("begun.json", IDS[:2], planned=IDS)
    rest = save("rest.json", IDS[2:], selection={"keyword": "minilm"})
    quant = merged(begun, rest)["quant"]
    assert quant["complete"] is True
    assert quant["planned"] == IDS
    assert quant["deselected"] == []
    assert merged(begun)["quant"]["complete"] is False


def test_a_case_that_failed_first_and_was_measured_then_is_not_failed(save):
    begun = save("begun.json", IDS[:3], planned=IDS, failed={IDS[3]: "no memory"}, skipped={"x": "no data"})
    rest = save("rest.json", IDS[3:])
    quant = merged(begun, rest)["quant"]
    assert quant["failed"] == {}
    assert quant["skipped"] == {"x": "no data"}


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"commit": {"id": "def"}}, r"are of different commits \(def and abc\)"),
        ({"commit": {"dirty": True}}, "different uncommitted changes"),
        ({"commit": {"dirty": True, "changes_sha256": "1"}}, "different uncommitted changes"),
        ({"settings": {"threads": 2, "batch": 1}}, r"different settings \(threads: 2 and 1\)"),
        ({"environment": {"versions": {"torch": "2.8"}}}, r"different library versions \(torch: 2.8 and 2.9\)"),
        ({"selection": {"keyword": "int8"}}, "different selections"),
        ({"shard": (2, 3)}, r"different numbers of shards \(3 and 2\)"),
        ({"changes": {"scores.dataset_sha256": "e" * 64}}, "judged digits on different data"),
        ({"ids": IDS[:2]}, r"Both \S+one.json and \S+ measured digits-rtn-int4-torch"),
    ],
    ids=["commit", "changes", "digest", "settings", "versions", "selection", "count", "data", "overlap"],
)
def test_parts_that_do_not_belong_together_are_refused_and_nothing_is_written(
    save, tmp_path, capsys, difference, message
):
    one = save("one.json", IDS[:1], (1, 2))
    two = save("two.json", **{"ids": IDS[1:2], "shard": (2, 2), **difference})
    with pytest.raises(RunError, match=message):
        merged(one, two)
    output = tmp_path / "run.json"
    output.write_text("precious")
    assert main(["merge", str(one), str(two), "-o", str(output)]) == 4
    error = capsys.readouterr().err.strip()
    assert "one.json" in error
    assert "two.json" in error
    assert "\n" not in error
    assert output.read_text() == "precious"


def test_trees_with_the_same_changes_belong_together(save):
    commit = {"dirty": True, "changes_sha256": "1"}
    assert merged(save("one.json", IDS[:1], commit=commit), save("two.json", IDS[1:], commit=commit))


def test_cases_of_other_machines_keep_their_environment(save, tmp_path):
    one, two = save("one.json", IDS[:2], (1, 2)), save("two.json", IDS[2:], (2, 2), environment={"cpu": "B"})
    document = merged(one, two)
    records = [bench["extra_info"]["quant"] for bench in document["benchmarks"]]
    assert [record.get("environment", {}).get("cpu") for record in records] == [None, None, "B", "B"]
    run = run_of(tmp_path / "run.json", document)
    again = run_of(tmp_path / "again.json", merged(two, one))
    judgement = judge(run, again, [parse_limit("time:1%")])
    assert judgement.elsewhere == {}
    assert [finding.loss for finding in judgement.findings] == [0.0] * 4  # compared, and not refused


def test_the_folder_to_write_in_is_made_and_what_is_none_is_refused(save, tmp_path, capsys):
    part = save("one.json", ids=IDS)
    assert main(["merge", str(part), "-o", str(tmp_path / "new" / "run.json")]) == 0
    assert read_run(tmp_path / "new" / "run.json").records
    capsys.readouterr()
    assert main(["merge", str(part), "-o", str(part / "run.json")]) == 4
    assert "one.json is not a folder" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, capsys):
    (tmp_path / "cut.json").write_text('{"benchmarks": [')
    assert main(["merge", str(tmp_path / "cut.json"), "-o", str(tmp_path / "run.json")]) == 4
    assert "is not complete JSON" in capsys.readouterr().err
    assert not (tmp_path / "run.json").exists()
