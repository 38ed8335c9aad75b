"""Every example runs on an export of its format, and prints what the tables make of the sample."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import quant
from fixtures.zoo._llama import Decoder, Step
from quant.exporting import formats
from quant.generation import CacheShape, capture_step

EXAMPLES = Path(__file__).parents[1] / "examples"
LANGUAGE = ("gguf", "mlx_lm")
ABSENT = ("Core ML runs models on macOS only", "is not installed: pip install")


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A small model in every format that is installed: a decoder where the format takes one."""
    torch.manual_seed(0)
    sizes = {"vocabulary": 64, "context": 16, "layers": 1, "width": 64, "heads": 2}
    module, step = Decoder(**sizes).eval(), Step(**sizes).eval()
    step.load_state_dict(module.state_dict())
    graph = quant.capture(module, (torch.randint(0, 64, (2, 12)),), ({0: "batch", 1: "sequence"},))
    usual, rows = quant.quantize(graph, "rtn", "int4"), torch.randn(8, 32)
    layers = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 5)).eval()
    integers = quant.quantize(quant.capture(layers, (rows,)), "static", "int8", [(rows,)])
    tables = {"litert": integers}  # which keeps the codes of static methods

    def exported(name):
        folder = tmp_path_factory.mktemp(name)
        steps = capture_step(step, CacheShape(tensors=2, heads=2, size=32)) if formats()[name].steps else None
        quant.export(tables.get(name, usual), name, folder, step=steps)
        return folder

    return exported


def test_every_format_has_an_example():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {f"run_{name}" for name in formats()}


@pytest.mark.parametrize("name", formats())
def test_an_example_prints_what_is_expected(exports, name):
    if formats()[name].missing():
        pytest.skip(formats()[name].missing())
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [formats()[name].python, EXAMPLES / f"run_{name}.py", exports(name)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=EXAMPLES)
    if done.returncode and any(sentence in done.stderr for sentence in ABSENT):
        assert done.stderr.count("\n") == 1
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert_printed_as_expected(done.stdout)


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML itself runs the examples here")
@pytest.mark.parametrize("name", [name for name in formats() if name.startswith("coreml")])
def test_an_example_for_core_ml_prints_what_is_expected_of_the_evaluator(exports, name, monkeypatch, capsys):
    if formats()[name].missing():
        pytest.skip(formats()[name].missing())
    import coremltools

    folder = exports(name)
    monkeypatch.setattr(coremltools.models, "MLModel", evaluated)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(sys, "argv", ["example", str(folder)])
    runpy.run_path(str(EXAMPLES / f"run_{name}.py"))
    assert_printed_as_expected(capsys.readouterr().out)


def evaluated(path):
    """What coremltools' MLModel is on macOS, with the reference evaluator in Core ML's place."""
    from coremltools.models.utils import load_spec

    from quant.backends.coreml_evaluator import Evaluator

    run = Evaluator(path, half=True)

    class Model:
        make_state = run.make_state

        def get_spec(self):
            return load_spec(path)

        def predict(self, inputs, state=None):
            return {key: value.numpy() for key, value in run(inputs, state=state).items()}

    return Model()


def assert_printed_as_expected(text):
    output, expected = (
        np.array([float(number) for number in found.split("[")[1].rstrip("] \n").split()])
        for found in (line for line in text.splitlines() if line.startswith(("output", "expected")))
    )
    np.testing.assert_allclose(output, expected, rtol=2e-2, atol=2e-2)
