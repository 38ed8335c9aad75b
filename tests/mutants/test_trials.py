from pathlib import Path

import pytest

from tests.mutants.__main__ import main
from tests.mutants.catalogue import MUTANTS
from tests.mutants.trials import Known, Mutant, try_all

ROOT = Path(__file__).parents[2]
TESTS = ("tests/test_sum.py",)
KILLED = Mutant("quant/sum.py", "a + b", "a - b", TESTS)
SURVIVOR = Mutant("quant/sum.py", "return 7", "return 8", TESTS)
STALE = Mutant("quant/sum.py", "a * b", "a / b", TESTS)
TWICE = Mutant("quant/sum.py", "return", "yield", TESTS)
ENDLESS = Mutant("quant/sum.py", "    return a + b", "    while True:\n        pass", TESTS)
BROKEN = Mutant("quant/sum.py", "def total", "def total(", TESTS)


@pytest.fixture
def project(tmp_path):
    """A project of one function that is tested and one that is not."""
    for folder in ("quant", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "quant" / "sum.py").write_text("def total(a, b):\n    return a + b\n\n\ndef unknown():\n    return 7\n")
    (tmp_path / "tests" / "test_sum.py").write_text(
        "from quant.sum import total\n\n\ndef test_total():\n    assert total(2, 3) == 5\n"
    )
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    return tmp_path


def tried(project, *mutants):
    known = Known(project, project / "build" / "mutants.json")
    return {trial.mutant: trial for trial in try_all(project, mutants, 2, known)}


def test_a_mutant_is_killed_where_a_test_fails_and_the_project_stays_as_it_is(project):
    before = (project / "quant" / "sum.py").read_text()
    found = tried(project, KILLED, SURVIVOR, STALE, TWICE, BROKEN)
    outcomes = {mutant: trial.outcome for mutant, trial in found.items()}
    assert outcomes == {KILLED: "killed", SURVIVOR: "survived", STALE: "stale", TWICE: "stale", BROKEN: "broken"}
    assert found[STALE].output == "its text is in quant/sum.py 0 times"
    assert "2 times" in found[TWICE].output
    assert (project / "quant" / "sum.py").read_text() == before


def test_tests_that_fail_without_a_mutant_prove_nothing(project):
    (project / "quant" / "sum.py").write_text("def total(a, b):\n    return a + b + 1\n")
    with pytest.raises(ValueError, match=r"tests/test_sum\.py fails without any mutant"):
        tried(project, KILLED)


def test_a_mutant_that_never_ends_is_killed_by_the_processor_time_it_takes(project, monkeypatch):
    monkeypatch.setattr("tests.mutants.trials._SECONDS", 5)
    trial = tried(project, ENDLESS)[ENDLESS]
    assert (trial.outcome, trial.output) == ("killed", "no end after 5 seconds of processor time")


def test_what_was_killed_is_not_tried_again_until_the_code_changes(project, monkeypatch):
    tried(project, KILLED, SURVIVOR)
    calls = []
    monkeypatch.setattr("tests.mutants.trials.Project.run", lambda self, tests: (calls.append(tests) or 0, ""))
    assert tried(project, KILLED)[KILLED].outcome == "killed"
    assert not calls
    (project / "tests" / "test_sum.py").write_text("def test_nothing():\n    pass\n")
    assert tried(project, KILLED)[KILLED].outcome == "survived"
    assert calls


def test_a_damaged_memory_is_none(project):
    (project / "build").mkdir()
    (project / "build" / "mutants.json").write_text("[")
    assert tried(project, KILLED)[KILLED].outcome == "killed"


def test_every_planted_fault_is_found_once_and_is_python():
    for mutant in MUTANTS:
        changed = mutant.applied((ROOT / mutant.file).read_text())
        assert changed is not None, f"{mutant.name}: its text is not in the file once"
        compile(changed, mutant.file, "exec")
        assert all((ROOT / tests).exists() for tests in mutant.tests)
    assert len(MUTANTS) >= 30


def test_a_text_that_no_mutant_has_is_one_sentence(capsys):
    assert main(["no such text"]) == 4
    assert "no mutant has 'no such text' in its line" in capsys.readouterr().err
