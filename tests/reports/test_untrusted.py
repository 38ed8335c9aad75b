"""Saved runs that nobody vouches for: every command on them ends in what it prints or in one sentence."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reports.__main__ import main
from reports.runs import RunError, read_valid_run
from tests.damage import damage, in_a_sentence

CASES = [f"minilm-{method}-int4-{backend}" for method in ("rtn", "gptq") for backend in ("torch", "onnxruntime")]
COMMANDS = {
    "validate": ["validate"],
    "table": ["table"],
    "markdown": ["markdown"],
    "html": ["html", "-o", "{folder}/report.html"],
    "gate": ["gate", "{whole}", "--fail", "accuracy:1pp", "--fail", "speed:10%"],
    "compare": ["compare", "{whole}"],
    "recommend": ["recommend", "--max-drop", "1pp"],
    "pareto": ["pareto"],
    "history": ["history", "--metric", "accuracy"],
    "insight": ["insight"],
    "merge": ["merge", "-o", "{folder}/merged.json"],
}


@pytest.fixture
def run(with_scores, save_run):
    random = np.random.default_rng(0)
    records = [with_scores(random.random(60) < 0.9, case, ratio=1.5) for case in CASES]
    return save_run("run.json", *records)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1))
def test_a_damaged_run_is_read_or_refused_in_one_sentence(run, tmp_path, seed):
    damaged = tmp_path / "damaged.json"
    damaged.write_bytes(run.read_bytes())
    damage(damaged, np.random.default_rng(seed))
    in_a_sentence(read_valid_run, damaged, refusal=RunError)


@pytest.mark.parametrize("command", COMMANDS)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1))
def test_every_command_takes_a_damaged_run(run, tmp_path, capsys, command, seed):
    damaged = tmp_path / "damaged.json"
    damaged.write_bytes(run.read_bytes())
    damage(damaged, np.random.default_rng(seed))
    name, *options = [part.format(folder=tmp_path, whole=run) for part in COMMANDS[command]]
    files = [part for part in options if part == str(run)]
    arguments = [name, *files, str(damaged), *(part for part in options if part not in files)]
    assert main(arguments) in (0, 1, 4)
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert {path.name for path in tmp_path.iterdir()} <= {"run.json", "damaged.json", "report.html", "merged.json"}


def test_a_run_of_hostile_names_stays_text(with_scores, save_run, tmp_path):
    """Names reach HTML and Markdown: they must not become markup, nor the names of files."""
    hostile = "<script>alert(1)</script>../../etc"
    record = with_scores(np.ones(30, bool), "minilm-rtn-int4-torch")
    record["case"]["model"], record["accuracy"]["metric"] = hostile, hostile
    run = save_run("run.json", record)
    assert main(["html", str(run), "-o", str(tmp_path / "report.html")]) in (0, 4)
    page = tmp_path / "report.html"
    assert not page.exists() or "<script>alert(1)</script>" not in page.read_text()
    assert {path.name for path in tmp_path.iterdir()} <= {"run.json", "report.html"}
    assert json.loads(run.read_text())
