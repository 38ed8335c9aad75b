"""Which save a name means, in a storage as pytest-benchmark fills it."""

import json

import pytest

from reports.runs import RunError
from reports.storage import find_run, open_run, saves

HERE, THERE = "Linux-CPython-3.11-64bit", "Darwin-CPython-3.12-64bit"


@pytest.fixture
def save(tmp_path, make_record):
    """``save("0001_main")`` writes a save, and returns its path; later ones have later dates."""
    dates = iter(range(10, 60))

    def write(stem, machine=HERE, cpu="A", complete=True, records=None, date=None):
        path = tmp_path / "storage" / machine / f"{stem}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        records = [make_record()] if records is None else records
        document = {
            "benchmarks": [{"stats": {}, "extra_info": {"quant": record}} for record in records],
            "machine_info": {"quant": {"cpu": cpu}},
            "quant": {"planned": [], "complete": complete},
            "datetime": date or f"2026-01-{next(dates)}T00:00:00+00:00",
        }
        path.write_text(json.dumps(document))
        return path

    return write


@pytest.fixture
def storage(tmp_path):
    return tmp_path / "storage"


def test_saves_are_listed_by_folder_and_number(save, storage):
    for stem, machine in [("0002_b", HERE), ("0010_c", HERE), ("0001_a", HERE), ("0001_x.partial", THERE)]:
        save(stem, machine)
    (storage / HERE / "notes.json").write_text("{}")
    (storage / HERE / "0003_picture.svg").write_text("")
    found = saves(storage)
    assert [(one.machine, one.number, one.name) for one in found] == [
        (THERE, "0001", "x.partial"),
        (HERE, "0001", "a"),
        (HERE, "0002", "b"),
        (HERE, "0010", "c"),
    ]
    assert [one.partial for one in found] == [True, False, False, False]
    assert saves(storage / "none") == []


@pytest.mark.parametrize("name", ["main", "0002", "0002_main", "0002_main.json", f"{HERE}/main", f"{HERE}/0002"])
def test_a_name_a_number_or_both_mean_a_save(save, storage, name):
    save("0001_main")
    wanted = save("0002_main")
    save("0003_other")
    assert find_run(name, storage).path == wanted


def test_a_name_is_not_a_pattern_nor_a_beginning(save, storage):
    save("0001_main_of_yesterday")
    for name in ("main", "0001_main", "main*", "*", "_main", f"{THERE}/main_of_yesterday"):
        with pytest.raises(RunError, match="no complete save called"):
            find_run(name, storage)


def test_nothing_means_the_newest_complete_save(save, storage):
    save("0001_a")
    newest = save("0002_b")
    save("0003_c.partial")
    save("0004_d", complete=False)
    save("0005_e", records=[])
    assert find_run(None, storage).path == newest


def test_the_newest_of_several_folders_is_by_date_not_by_number(save, storage):
    save("0057_main", THERE, date="2026-01-01T00:00:00+00:00")
    newest = save("0002_main", HERE, date="2026-01-03T00:00:00+00:00")
    save("0001_main", HERE, date="2026-01-02T00:00:00+00:00")
    assert find_run("main", storage).path == newest


def test_of_several_the_one_of_this_chip_comes_first_else_the_newest(save, storage):
    older, newer = save("0001_main", cpu="A"), save("0002_main", cpu="B")
    assert find_run("main", storage, cpu="A").path == older
    assert find_run("main", storage, cpu="B").path == newer
    assert find_run("main", storage, cpu="C").path == newer
    assert find_run("main", storage).path == newer


def test_only_the_files_that_decide_are_read(save, storage):
    save("0001_main").write_text("broken")
    newest = save("0002_main")
    assert find_run("main", storage).path == newest


def test_a_path_means_its_file_wherever_it_lies(save, tmp_path, storage):
    path = save("0001_main").rename(tmp_path / "copied.json")
    assert find_run(str(path), storage).path == path
    assert open_run(str(path), storage).path == path
    with pytest.raises(RunError, match=f"{tmp_path}/none.json does not exist"):
        open_run(f"{tmp_path}/none.json", storage)


def test_a_partial_run_is_opened_but_not_compared_with(save, storage):
    path = save("0001_main.partial", complete=False)
    assert open_run(str(path), storage).quant["complete"] is False
    with pytest.raises(RunError, match="cut short, which serves no comparison"):
        find_run(str(path), storage)
    with pytest.raises(RunError, match=r"there are 0001_main\.partial"):
        find_run("main.partial", storage)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "is not complete JSON"),
        (lambda text: "", "is not complete JSON"),
        (lambda text: '{"benchmarks": []}', "holds no quantization record"),
        (lambda text: text.replace('"schema": 1', '"schema": 9'), "written by a newer version"),
        (lambda text: text.replace('"kind": "inference"', '"kind": "conference"'), "kind is 'conference'"),
    ],
    ids=["truncated", "empty", "foreign", "newer", "invalid"],
)
def test_a_save_that_cannot_be_read_is_one_sentence(save, storage, damage, message):
    save("0001_main")
    path = save("0002_main")
    path.write_text(damage(path.read_text()))
    with pytest.raises(RunError) as caught:
        find_run("main", storage)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_file_is_told_as_such(storage, tmp_path):
    with pytest.raises(RunError, match="is a folder: name a file in it, or a save such as main"):
        open_run(str(tmp_path), storage)
    with pytest.raises(RunError, match=r"none/run.json does not exist, and there is no complete save called so in"):
        open_run("none/run.json", storage)


def test_the_sentence_for_no_save_lists_the_last_of_those_there_are(save, storage):
    for number in range(1, 13):
        save(f"{number:04}_run")
    with pytest.raises(RunError) as caught:
        find_run("mian", storage)
    assert str(caught.value) == (
        f"There is no complete save called 'mian' in {storage}; there are 0012_run, 0011_run, 0010_run, 0009_run, "
        "0008_run, 0007_run, 0006_run, 0005_run and 4 older."
    )
    with pytest.raises(RunError, match="save a run with --benchmark-save=NAME"):
        find_run("main", storage / "none")


def test_a_folder_of_the_same_name_hides_no_save(save, storage, tmp_path, monkeypatch):
    wanted = save("0001_main")
    (tmp_path / "main").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_run("main", storage).path == wanted
