"""A suite whose cases measure nothing: their records are given, so that what surrounds them is tested in no time."""

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFTEST = """
import copy, json, os, time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.matrix import Case
from reports.record import case_id

HERE = Path(__file__).parent
RECORDS = {case_id(record): record for record in json.loads((HERE / "records.json").read_text())}
FATES = json.loads((HERE / "fates.json").read_text())


def pytest_generate_tests(metafunc):
    cases = [Case(**record["case"]) for record in RECORDS.values()]
    marks = [pytest.mark.case(**record["case"]) for record in RECORDS.values()]
    metafunc.parametrize("case", [pytest.param(case, id=case.id, marks=mark) for case, mark in zip(cases, marks)])


@pytest.fixture
def measurement(case, benchmark):
    benchmark.name, benchmark.fullname, benchmark.group = case.id, f"inference:{case.id}", case.model

    def record():
        found = copy.deepcopy(RECORDS[case.id])
        if benchmark.disabled:
            found["speed"] = {"reason": "timing is disabled in this run"}
        return found

    return SimpleNamespace(record=record, benchmark=benchmark)


@pytest.fixture
def fate(case):
    fate = FATES.get(case.id, "")
    if fate == "skip":
        pytest.skip("its data is gone")
    yield fate
    assert fate != "fail late", "the tidying failed"
"""
TESTS = """
import os, time

import pytest


def test_inference(case, measurement, fate):
    if fate == "interrupt":
        measurement.benchmark.pedantic(interrupted)
    if fate == "crash":
        os._exit(7)
    measurement.benchmark.pedantic(time.sleep, args=(0.02 if fate == "slow" else 0.001,), rounds=5)
    if fate == "fail":
        raise ValueError("it gives NaN\\non every sample")


def interrupted():
    raise KeyboardInterrupt
"""


class FakeSuite:
    """Runs pytest on cases with given records; ``fates`` says which of them fail, skip or worse."""

    def __init__(self, pytester):
        self.pytester, self.folder, self.storage = pytester, pytester.path, pytester.path / ".benchmarks"
        pytester.makeconftest(CONFTEST)
        pytester.makepyfile(test_inference=TESTS)

    def run(self, records, *arguments, process=False, fates=None):
        """Run in this process, or in one of its own where the run may kill it or starts workers."""
        (self.folder / "records.json").write_text(json.dumps(records))
        (self.folder / "fates.json").write_text(json.dumps(fates or {}))
        names = ("pytest_benchmark.plugin", "xdist.plugin", "fixtures.plugin", "benchmarks.plugin")
        plugins = ["--assert=plain", *(part for name in names for part in ("-p", name))]
        runner = self.pytester.runpytest_subprocess if process else self.pytester.runpytest_inprocess
        return runner(*plugins, "-m", "case", *map(str, arguments))

    def saved(self, name):
        """The newest save called ``name``, as JSON."""
        return json.loads(max(self.storage.glob(f"*/*_{name}.json")).read_text())

    @staticmethod
    def sentence(result):
        """The one line that says what is wrong."""
        lines = [line for line in result.stderr.lines + result.stdout.lines if line.strip()]
        assert not any("Traceback" in line or "INTERNALERROR" in line for line in lines)
        (line,) = [line for line in lines if line.startswith("ERROR: ")]
        return line

    @property
    def names(self):
        return sorted(path.name for path in self.storage.rglob("*.json"))


@pytest.fixture
def fake_suite(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "100")
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return FakeSuite(pytester)


@pytest.fixture
def records(with_scores):
    """Records of four cases of two models, judged on 400 samples of which 20 are wrong."""
    right = [index % 20 != 0 for index in range(400)]
    ids = [f"{model}-{method}-int4-torch" for model in ("digits", "minilm") for method in ("gptq", "rtn")]
    return {name: {**with_scores(right, case=name), "seconds": 0.1} for name in ids}


@pytest.fixture(scope="session")
def kept():
    """What the first run of :func:`base` saved."""
    return {}


@pytest.fixture
def base(fake_suite, records, kept):
    """A complete run of four cases, saved as ``main``; it is run once."""
    if not kept:
        fake_suite.run(list(records.values()), "--benchmark-save=main").assert_outcomes(passed=4)
        (path,) = fake_suite.storage.rglob("*.json")
        kept[path.relative_to(fake_suite.folder)] = path.read_text()
    for path, text in kept.items():
        (fake_suite.folder / path.parent).mkdir(parents=True, exist_ok=True)
        (fake_suite.folder / path).write_text(text)
    assert fake_suite.names == ["0001_main.json"]
    return fake_suite
