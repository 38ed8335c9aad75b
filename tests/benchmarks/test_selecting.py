"""Which cases `pytest benchmarks` collects, by options, markers and names."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.matrix import generators, matrix, models, quantizers
from benchmarks.peers import peer_cases
from tests.benchmarks.beside_inference import OTHERS

ROOT = Path(__file__).parents[2]
SELECTING = """
import json, sys
import pytest

class Collector:
    def pytest_collection_finish(self, session):
        functions = [item.function.__name__ for item in session.items]
        self.ids = [f"{name}[{item.callspec.id}]" for name, item in zip(functions, session.items)]

    def pytest_deselected(self, items):
        self.deselected += sum("case" in item.callspec.params for item in items if hasattr(item, "callspec"))

def collect(arguments):
    collector = Collector()
    collector.deselected = 0
    status = pytest.main([*arguments, "--collect-only", "-q", "-p", "no:cacheprovider"], plugins=[collector])
    return {"ids": collector.ids, "deselected": collector.deselected, "status": int(status)}

print("SELECTED", json.dumps([collect(arguments) for arguments in json.loads(sys.argv[1])]))
"""
OPT_IN = {name for name, entry in models().items() if entry.constants.get("OPT_IN")}
OFFERED = [case for case in matrix()[0] if case.model not in OPT_IN and not case.target.opt_in]
SELECTIONS = {
    "nothing": ["benchmarks"],
    "everything": ["benchmarks", "-m", "full"],
    "axes": ["benchmarks", "-m", "case(bits='int5', backend='torch')"],
    "keyword": ["benchmarks", "-k", "digits and int3"],
    "node id": ["benchmarks/test_inference.py::test_inference[digits-float-fp16-torch]"],
    "quantize": ["benchmarks", "-m", "quantize"],
    "quantize, narrowed": ["benchmarks", "-m", "quantize and case(method='rtn')", "-k", "digits and int4"],
    "quantize, of core": ["benchmarks/test_quantize.py"],
    "quantize, one": ["benchmarks/test_quantize.py::test_quantize[digits-rtn-int3-torch]"],
    "generate": ["benchmarks", "-m", "generate"],
    "opt-in": ["benchmarks", "--model", "smollm2", "-k", "rtn-int3-torch"],
    "peer": ["benchmarks", "-m", "peer"],
}


@pytest.fixture(scope="module")
def selected():
    """What pytest collects for each of the selections."""
    command = [sys.executable, "-c", SELECTING, json.dumps(list(SELECTIONS.values()))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    output = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    line = next(line for line in output.splitlines() if line.startswith("SELECTED "))
    answers = json.loads(line.removeprefix("SELECTED "))
    return dict(zip(SELECTIONS, answers, strict=True)), output


def inference(ids):
    return {f"test_inference[{name}]" for name in ids}


def test_without_a_selection_the_core_cases_run(selected):
    answers, output = selected
    cases = matrix()[0]
    core = {case.id for case in cases if case.core}
    every = len(cases) + len(OTHERS)
    assert set(answers["nothing"]["ids"]) == inference(core)
    assert answers["nothing"]["deselected"] == every - len(core) > 0
    kept, total, deselected = map(int, re.search(r"(\d+)/(\d+) tests collected \((\d+) deselected\)", output).groups())
    assert kept == len(core) == total - deselected
    assert total >= every  # the gate's own tests are beside the cases


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        ("everything", lambda case: True),
        ("axes", lambda case: case.bits == "int5" and case.backend == "torch"),
        ("keyword", lambda case: case.model == "digits" and case.bits == "int3"),
        ("node id", lambda case: case.id == "digits-float-fp16-torch"),
    ],
)
def test_a_selection_is_not_limited_to_core_cases(selected, selection, wanted):
    answers, _ = selected
    assert set(answers[selection]["ids"]) == inference(case.id for case in OFFERED if wanted(case))
    assert any(not case.core for case in OFFERED if wanted(case))


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        ("quantize", lambda case: case.model not in OPT_IN),
        ("quantize, narrowed", lambda case: (case.model, case.method, case.bits) == ("digits", "rtn", "int4")),
        ("quantize, of core", lambda case: case.core),
        ("quantize, one", lambda case: case.id == "digits-rtn-int3-torch"),
    ],
)
def test_quantizers_run_where_their_marker_or_file_is_named(selected, selection, wanted):
    answers, _ = selected
    cases = {name for name in answers[selection]["ids"] if not name.startswith("test_program")}
    assert cases == {f"test_quantize[{case}]" for case in quantizers() if wanted(case)} != set()


def test_generation_runs_where_its_marker_is_named(selected):
    answers, _ = selected
    wanted = {f"test_generate[{case}]" for case in generators() if case.model not in OPT_IN}
    assert set(answers["generate"]["ids"]) == wanted != set()


def test_a_model_to_opt_in_to_runs_where_it_is_named(selected):
    answers, _ = selected
    assert "smollm2" in OPT_IN
    assert answers["opt-in"]["ids"] == ["test_inference[smollm2-rtn-int3-torch]"]


def test_peers_run_where_their_marker_is_named(selected):
    answers, _ = selected
    assert set(answers["peer"]["ids"]) == {f"test_peer[{case}]" for case in peer_cases()}
