"""What LiteRT's converter is given and what is read back from its file, with stand-ins where LiteRT is not installed.

The stand-in for the converter keeps the codes of rounded weights with channels last, all but the last layer's, which no
integer kernel takes; the one for the runtime computes in torch, from and to the integers of its inputs and outputs.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import quant
from quant.exporting import formats, litert_file
from quant.exporting.expected import Expected
from quant.exporting.litert_conversion import CODES, HELD, PART, PROGRAM
from quant.exporting.litert_file import MODEL, TENSORS
from quant.exporting.litert_weights import RoundedWeight, suits_integer_kernels

IMAGE, SCORES = (1 / 32, -3), (1 / 256, 5)
"""Scale and zero point of the stand-in's input and output."""


class Interpreter:
    """As much of ``ai_edge_litert.interpreter.Interpreter`` as is used; its file is a program of torch."""

    def __init__(self, path, num_threads=None):
        self.module = torch.export.load(path).module()
        self.image = self.scores = None

    def allocate_tensors(self):
        pass

    def get_input_details(self):
        return [{"index": 0, "name": "image", "dtype": np.int8, "quantization": IMAGE}]

    def get_output_details(self):
        return [{"index": 1, "name": "scores", "dtype": np.int8, "quantization": SCORES}]

    def set_tensor(self, index, value):
        assert (index, value.dtype) == (0, np.int8)
        self.image = torch.from_numpy((value.astype(np.float32) - IMAGE[1]) * np.float32(IMAGE[0]))

    def invoke(self):
        scores = self.module(self.image)[0].detach().numpy()
        self.scores = np.clip(np.rint(scores / SCORES[0]) + SCORES[1], -128, 127).astype(np.int8)

    def get_tensor(self, index):
        assert index == 1
        return self.scores


class Converter:
    """Stands for the process that converts; keeps what it was given to hold, each time it is called."""

    def __init__(self):
        self.held, self.read = [], []

    def __call__(self, command, **options):
        python, flag, name, place = command
        assert (flag, name) == ("-m", "quant.exporting.litert_conversion")
        assert ".litert" in python
        folder, tensors, order = Path(place), {}, {}
        state = torch.export.load(folder / PROGRAM).state_dict
        held = json.loads((folder / HELD).read_text())
        self.held.append(sorted(name.removesuffix(PART) for name in held if name.endswith(PART)))
        for name in self.held[-1]:
            tensors[name], order[name] = state[name + PART].numpy(), None
        with np.load(folder / CODES) as codes:
            for name in codes:
                if not name.startswith("head"):
                    axes = [0, *range(2, codes[name].ndim), 1]
                    tensors[name], order[name] = codes[name].transpose(axes), axes
        (folder / MODEL).write_bytes((folder / PROGRAM).read_bytes())
        (folder / TENSORS).write_text(json.dumps({name: [i, order[name]] for i, name in enumerate(tensors)}))
        self.read = [values.reshape(-1) for values in tensors.values()]
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def converter(monkeypatch):
    runtime = ModuleType("ai_edge_litert.interpreter")
    runtime.Interpreter = Interpreter
    monkeypatch.setitem(sys.modules, "ai_edge_litert", ModuleType("ai_edge_litert"))
    monkeypatch.setitem(sys.modules, runtime.__name__, runtime)
    standing = Converter()
    monkeypatch.setattr(subprocess, "run", standing)
    monkeypatch.setattr(litert_file, "read", lambda path: path)
    monkeypatch.setattr(litert_file, "integers", lambda path: dict(enumerate(standing.read)))
    return standing


@pytest.fixture(scope="module")
def writer():
    return formats()["litert"].load()


def layouts(quantized):
    return Expected(quantized).layouts


def test_weights_that_integer_kernels_do_not_take_are_held_as_their_codes(tables, converter, writer, tmp_path):
    quantized = tables("static", "int8")
    writer.write(quantized, None, tmp_path / "litert")
    assert converter.held == [[], ["head.weight"]]
    assert json.loads((tmp_path / "litert" / TENSORS).read_text()).keys() == quantized.weights.keys()


@pytest.mark.parametrize(("method", "word"), [("static", "int8"), ("rtn", "int8"), ("rtn", "int4_sym")])
def test_codes_are_found_again_whatever_form_they_are_held_in(tables, converter, writer, tmp_path, method, word):
    quantized = tables(method, word)
    writer.write(quantized, None, tmp_path / "litert")
    found = writer.codes(tmp_path / "litert", layouts(quantized))
    assert found.keys() == quantized.weights.keys()
    for name, weight in quantized.weights.items():
        np.testing.assert_array_equal(found[name], weight.codes.numpy(), err_msg=name)
        assert found[name].dtype == weight.codes.numpy().dtype


def test_a_file_whose_inputs_and_outputs_are_integers_takes_and_gives_floats(
    tables, images, converter, writer, tmp_path
):
    quantized = tables("static", "int8")
    writer.write(quantized, None, tmp_path / "litert")
    image = (images[:1] * 32).round().clamp(-125, 127) / 32  # what the integers of the input can hold
    with torch.inference_mode():
        expected = quant.simulate(quantized)(image)[0].numpy()
    [scores] = writer.load(tmp_path / "litert")(image.numpy())
    assert scores.dtype == np.float32
    assert abs(expected).max() > 20 * SCORES[0], "or nothing is compared"
    assert abs(scores - expected).max() <= 0.5 * SCORES[0] + 1e-5


def test_a_model_the_converter_cannot_take_is_refused_with_what_it_said(tables, writer, tmp_path, monkeypatch):
    said = "Traceback\n  in convert\nRuntimeError: no lowering for aten.foo\nhint: none\n"
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", said))
    with pytest.raises(ValueError, match=r"LiteRT's converter cannot take this model: .*no lowering for aten\.foo$"):
        writer.write(tables("rtn", "int8"), None, tmp_path / "litert")
    assert not (tmp_path / "litert").exists()


@pytest.mark.parametrize("word", ["int8_sym_channel", "int8_sym_tensor"])
def test_a_rounded_weight_is_rounded_to_the_codes_it_has(tables, word):
    for weight in tables("rtn", word).weights.values():
        assert suits_integer_kernels(weight)
        torch.testing.assert_close(RoundedWeight(weight)(), weight.dequantize(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("word", ["int8", "int4_sym", "nf4"])
def test_integer_kernels_take_symmetric_channels_alone(tables, word):
    assert not suits_integer_kernels(tables("rtn", word).weights["hidden.weight"])
