"""What a user sees of `pytest benchmarks --model FILE`, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.__main__ import main
from reports.record import validate
from reports.runs import read_run

ROOT = Path(__file__).parents[2]
REGRESSION = """
import numpy as np
import torch
from torch import nn
from fixtures.own import OwnModel

def build():
    torch.manual_seed(0)
    return nn.Linear(8, 3)

def data(split):
    inputs = np.random.default_rng(len(split)).normal(size=(40, 8)).astype(np.float32)
    return {"input": inputs}, inputs[:, :3]

MODEL = OwnModel(build, data, metric="mean_error")
"""


def run(tmp_path, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", "--benchmark-disable"]
    command += [f"--cache-dir={tmp_path / 'cache'}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def measured(tmp_path, file, selected):
    saved = tmp_path / "run.json"
    done = run(tmp_path, f"--model={file}", "-k", selected, f"--benchmark-json={saved}")
    assert done.returncode == 0, done.stdout
    records = read_run(saved).records
    assert [validate(record) for record in records] == [[]] * len(records)
    return records


def test_the_template_is_benchmarked_alone(tmp_path):
    file = tmp_path / "mine.py"
    main(["new", str(file)])
    (record,) = measured(tmp_path, file, "rtn-int8-torch")
    assert record["case"] == {"model": "mine", "method": "rtn", "bits": "int8", "backend": "torch"}
    assert record["accuracy"]["metric"] == "accuracy"
    assert record["accuracy"]["n"] == 500
    assert record["fidelity"]["error"] < 0.02


def test_a_model_without_classes_has_no_agreement(tmp_path):
    file = tmp_path / "regression.py"
    file.write_text(REGRESSION)
    (record,) = measured(tmp_path, file, "rtn-int4-onnxruntime")
    assert (record["accuracy"]["metric"], record["accuracy"]["better"]) == ("mean_error", "lower")
    assert record["fidelity"]["agreement"] is None
    assert "no classes" in record["fidelity"]["reason"]
    assert record["accuracy"]["ci95"][0] <= record["accuracy"]["delta"] <= record["accuracy"]["ci95"][1]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("mine.py", "MODEL = 3\n", "makes no model"),
        ("digits.py", REGRESSION, "there is a model digits already"),
        ("none.py", None, "does not exist; write one to start from with: python -m fixtures new /"),
        ("mine.json", "{}", "is not a Python file"),
    ],
)
def test_a_wrong_file_ends_the_run_in_one_sentence(tmp_path, name, text, said):
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    done = run(tmp_path, "--model", file)
    assert done.returncode == 4
    assert said in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_model_of_the_zoo_can_be_named(tmp_path):
    done = run(tmp_path, "--model=digits", "--collect-only", "-q", "-m", "full")
    assert "cases of 1 model (digits)" in done.stdout
