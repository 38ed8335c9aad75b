"""What is given to LiteRT's converter and read back from its file, with a stand-in where LiteRT is not installed.

The stand-in keeps the codes of rounded weights with channels last, as the converter does, all but the last layer's,
which no integer kernel takes; and it computes in torch, from and to the integers of its inputs and outputs.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import quant
from quant.exporting import formats, litert_conversion
from quant.exporting.expected import Expected
from quant.exporting.litert_weights import ByteWeight, RoundedWeight, suits_integer_kernels

IMAGE, SCORES = (1 / 32, -3), (1 / 256, 5)
"""Scale and zero point of the stand-in's input and output."""


class Converted:
    def __init__(self, module):
        self.module, state = module, dict(module.state_dict())
        owners = [name.removesuffix(".scale") for name in state if name.endswith(".scale")]
        codes = [(name, state[f"{name}.codes"]) for name in owners if f"{name}.codes" in state]
        for name in owners:
            if f"{name}.values" in state and not name.startswith("head"):
                values, scale = state[f"{name}.values"], state[f"{name}.scale"]
                along = values / scale.reshape(-1, *[1] * (values.ndim - 1))
                codes.append((name, along.round().to(torch.int8).movedim(1, -1)))
        self.constants = [tensor.numpy() for _, tensor in codes]

    def export(self, path):
        Interpreter.made.append(self)
        Path(path).write_text(str(len(Interpreter.made) - 1))


class Interpreter:
    """As much of ``ai_edge_litert.interpreter.Interpreter`` as is used."""

    made = []  # noqa: RUF012

    def __init__(self, path, num_threads=None, experimental_op_resolver_type=None):
        self.model = self.made[int(Path(path).read_text())]
        self.image = self.scores = None

    def allocate_tensors(self):
        pass

    def get_tensor_details(self):
        own = [{"index": 10 + i, "dtype": np.int8, "shape": np.array(c.shape)} for i, c in enumerate(self.constants)]
        return [{"index": 0, "dtype": np.float32, "shape": np.array([1])}, *own]

    @property
    def constants(self):
        return self.model.constants

    def get_input_details(self):
        return [{"index": 0, "name": "image", "dtype": np.int8, "quantization": IMAGE}]

    def get_output_details(self):
        return [{"index": 1, "name": "scores", "dtype": np.int8, "quantization": SCORES}]

    def set_tensor(self, index, value):
        assert (index, value.dtype) == (0, np.int8)
        self.image = torch.from_numpy((value.astype(np.float32) - IMAGE[1]) * np.float32(IMAGE[0]))

    def invoke(self):
        scores = self.model.module(self.image)[0].detach().numpy()
        self.scores = np.clip(np.rint(scores / SCORES[0]) + SCORES[1], -128, 127).astype(np.int8)

    def get_tensor(self, index):
        return self.scores if index == 1 else self.constants[index - 10]


def module_named(name, **contents):
    module = ModuleType(name)
    vars(module).update(contents)
    return module


@pytest.fixture(scope="module")
def writer():
    """The format's writer, whose converter is the stand-in, in this process."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        put_in_place(monkeypatch)
        yield formats()["litert"].load()


@pytest.fixture(scope="module")
def static(tables, writer, tmp_path_factory):
    """Tables of a static method, and the folder that is written of them."""
    folder = tmp_path_factory.mktemp("static") / "litert"
    writer.write(tables("static", "int8"), None, folder)
    return tables("static", "int8"), folder


def put_in_place(monkeypatch):
    resolvers = SimpleNamespace(BUILTIN_WITHOUT_DEFAULT_DELEGATES=0)
    quantizer = SimpleNamespace(set_global=lambda config: None)
    stand_in = [
        module_named("litert_torch", convert=lambda module, example, quant_config: Converted(module)),
        module_named("litert_torch.quantize"),
        module_named(
            "litert_torch.quantize.pt2e_quantizer",
            PT2EQuantizer=lambda: quantizer,
            get_symmetric_quantization_config=lambda **options: options,
        ),
        module_named("litert_torch.quantize.quant_config", QuantConfig=lambda **options: options),
        module_named("ai_edge_litert"),
        module_named("ai_edge_litert.interpreter", Interpreter=Interpreter, OpResolverType=resolvers),
    ]
    for module in stand_in:
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def converted(command, **options):
        python, flag, name, folder = command
        assert (flag, name) == ("-m", "quant.exporting.litert_conversion")
        assert ".litert" in python
        litert_conversion.main([folder])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", converted)


def layouts(quantized):
    return Expected(quantized).layouts


def test_codes_are_found_again_whatever_order_their_axes_are_in(static, writer):
    quantized, folder = static
    found = writer.codes(folder, layouts(quantized))
    assert found.keys() == quantized.weights.keys()
    for name, weight in quantized.weights.items():
        np.testing.assert_array_equal(found[name], weight.codes.numpy(), err_msg=name)
    orders = {name: order for name, (_, order) in json.loads((folder / "tensors.json").read_text()).items()}
    assert orders["branch.weight"] == [0, 2, 3, 1]
    assert orders["head.weight"] == [0, 1], "no integer kernel took it, so that it is given a second time as bytes"


def test_unsigned_codes_come_back_as_the_tables_have_them(tables, writer, tmp_path):
    quantized = tables("rtn", "int8")
    writer.write(quantized, None, tmp_path / "litert")
    found = writer.codes(tmp_path / "litert", layouts(quantized))
    assert {name: codes.dtype.name for name, codes in found.items()} == {
        "stem.weight": "int8", "branch.weight": "int8", "hidden.weight": "uint8", "head.weight": "uint8"
    }  # fmt: skip
    for name, weight in quantized.weights.items():
        np.testing.assert_array_equal(found[name], weight.codes.numpy(), err_msg=name)


def test_a_file_whose_inputs_and_outputs_are_integers_takes_and_gives_floats(static, images, writer):
    quantized, folder = static
    function = writer.load(folder)
    image = (images[:1] * 32).round().clamp(-125, 127) / 32  # what the integers of the input can hold
    with torch.inference_mode():
        expected = quant.simulate(quantized)(image)[0].numpy()
    [scores] = function(image.numpy())
    assert scores.dtype == np.float32
    assert abs(expected).max() > 20 * SCORES[0], "or nothing is compared"
    assert abs(scores - expected).max() <= 0.5 * SCORES[0] + 1e-5


def test_weights_of_which_the_converter_keeps_no_code_are_refused(tables, writer, tmp_path, monkeypatch):
    monkeypatch.setattr(Interpreter, "constants", [])
    with pytest.raises(ValueError, match="as floats: use a static method"):
        writer.write(tables("rtn", "int8"), None, tmp_path / "litert")


def test_a_model_the_converter_cannot_take_is_refused_with_what_it_said(tables, writer, tmp_path, monkeypatch):
    said = "Traceback\n  in convert\nRuntimeError: no lowering for aten.foo\nhint: none\n"
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", said))
    with pytest.raises(ValueError, match=r"LiteRT's converter cannot take this model: .*no lowering for aten\.foo$"):
        writer.write(tables("rtn", "int8"), None, tmp_path / "litert")
    assert not (tmp_path / "litert").exists()


@pytest.mark.parametrize("word", ["int8", "int8_sym_channel", "int8_tensor", "int4", "int4_sym", "int4_g64"])
def test_arithmetic_on_bytes_gives_the_weight(tables, word):
    for name, weight in tables("rtn", word).weights.items():
        stored = ByteWeight(name, weight)
        assert stored.codes.dtype == torch.int8
        torch.testing.assert_close(stored(), weight.dequantize(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("word", ["int8_sym_channel", "int8_sym_tensor"])
def test_a_rounded_weight_is_rounded_to_the_codes_it_has(tables, word):
    for weight in tables("rtn", word).weights.values():
        assert suits_integer_kernels(weight)
        torch.testing.assert_close(RoundedWeight(weight)(), weight.dequantize(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("word", ["int8", "int4_sym", "nf4"])
def test_integer_kernels_take_symmetric_channels_alone(tables, word):
    assert not suits_integer_kernels(tables("rtn", word).weights["hidden.weight"])


@pytest.mark.parametrize(("method", "word"), [("rtn", "nf4"), ("palette", "lut4")])
def test_tables_that_are_no_integers_are_refused_by_name(tables, method, word):
    with pytest.raises(ValueError, match=r"whole groups of a row; 'hidden\.weight' is"):
        ByteWeight("hidden.weight", tables(method, word).weights["hidden.weight"])
