import sys

import pytest

from benchmarks import matrix
from benchmarks.__main__ import main
from benchmarks.describing import PROBES

LACKING = """
import numpy as np, torch
from torch import nn
from fixtures.own import OwnModel

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        hidden = torch.special.bessel_j0(self.first(x))  # the line to name
        return self.second(hidden)

def data(split):
    x = np.random.default_rng(len(split)).normal(size=(20, 8)).astype(np.float32)
    return x, (x.sum(1) > 0).astype(np.int64)

MODEL = OwnModel(lambda: Net(), data)
"""
LINE = next(number for number, line in enumerate(LACKING.splitlines(), 1) if "the line to name" in line)


@pytest.fixture
def lacking(tmp_path):
    """The file of a model that is in the matrix for this test alone."""
    file = tmp_path / "lacking.py"
    file.write_text(LACKING)
    yield file
    matrix._ADDED.pop("lacking", None)
    matrix.matrix.cache_clear()
    matrix.quantizers.cache_clear()


def described(capsys, tmp_path, *arguments):
    status = main(["describe", *map(str, arguments), f"--cache-dir={tmp_path / 'cache'}"])
    return status, capsys.readouterr()


def test_operators_and_native_shares_of_a_model_of_the_zoo(capsys, tmp_path):
    status, said = described(capsys, tmp_path, "digits", "--backend=torch", "--backend=onnxruntime", "--backend=coreml")
    assert status == 0
    lines = said.out.splitlines()
    assert lines[0].startswith("digits: convolutional, 62,986 parameters, 17 operators of 5 kinds")
    assert any(line.split()[:2] == ["conv2d", "6"] for line in lines)
    cells = {line.split()[0]: line for line in lines if line.split()[:1] in (["torch"], ["onnxruntime"], ["coreml"])}
    assert cells["onnxruntime"].endswith("100 %")
    assert cells["torch"].count("(100 % sim)") == 2
    if sys.platform != "darwin":
        assert cells["coreml"].count("100 % (saved)") == 3
    assert any(line.startswith("In 8 bits are weights and inputs of 100 % of the multiply") for line in lines)
    reason = next(line for line in lines if "no runtime has a fast convolution kernel" in line)
    assert reason.startswith("torch, onnxruntime, coreml: ")


def test_what_a_backend_lacks_is_named_with_its_line_and_stops_no_other(capsys, tmp_path, lacking):
    status, said = described(capsys, tmp_path, lacking)
    assert status == 0, said.err
    rows = {words[0]: words for line in said.out.splitlines() if (words := line.split())}
    assert rows["mlx"].count("fails") == rows["onnxruntime"].count("fails") == len(PROBES)
    assert "fails" not in rows["torch"]
    for backend in ("mlx", "onnxruntime", "coreml"):
        lines = (line.partition(": ") for line in said.out.splitlines())  # backends of one reason share its line
        (sentence,) = [text for names, _, text in lines if backend in names.split(", ") and "bessel" in text]
        assert f"'aten.special_bessel_j0.default' (node 'special_bessel_j0_0', {lacking}:{LINE})" in sentence


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["digit"], "did you mean digits?"),
        (["digits", "--backend=torhc"], "did you mean torch or "),
        (["none.py"], "does not exist"),
    ],
)
def test_what_cannot_be_described_is_a_sentence(capsys, tmp_path, arguments, sentence):
    status, said = described(capsys, tmp_path, *arguments)
    assert status == 4
    assert sentence in said.err
    assert "Traceback" not in said.err
