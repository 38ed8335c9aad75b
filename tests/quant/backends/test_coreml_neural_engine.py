import pytest
import torch
from torch import nn

import quant
from quant.backends import coreml
from quant.methods import quantize


class Reader(nn.Module):
    """Looks tokens up, and reads them one after the other or all alike."""

    def __init__(self, recurrent):
        super().__init__()
        self.tokens, self.head = nn.Embedding(16, 8), nn.Linear(8, 2)
        self.reader = nn.LSTM(8, 8, batch_first=True) if recurrent else None

    def forward(self, tokens):
        values = self.tokens(tokens)
        values = self.reader(values)[0] if self.reader else torch.relu(values)
        return self.head(values.mean(1))


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return torch.relu(self.head(x))


def foretold(module, example, axes, folder, word="fp32"):
    graph = quant.capture(module.eval(), (example,), axes)
    coreml.template(graph, folder / "template", "float16" if word == "fp16" else "float32")
    coreml.compile(quantize(graph, "float", word), folder / "template", folder / "artefact")
    return coreml.forecast(folder / "artefact")


@pytest.mark.parametrize("recurrent", [False, True])
def test_recurrent_cells_are_not_taken_and_look_ups_perhaps(tmp_path, recurrent):
    said, *_ = foretold(Reader(recurrent), torch.randint(16, (2, 5)), ({0: "batch"},), tmp_path)
    assert "untested" in said
    assert ("lstm" in said.partition(", perhaps")[0]) == recurrent
    assert "gather" in said.partition(", perhaps")[2]
    assert (" 100 % of" in said) == (not recurrent)


def test_float32_and_sizes_that_vary_are_said_to_keep_off(tmp_path):
    said = foretold(Fixed(), torch.ones(2, 8), ({0: "batch"},), tmp_path)
    assert any("this one is float32" in sentence for sentence in said)
    assert "Of the sizes this program takes, 1x8 alone may run there." in said, "one sample is the default"


def test_a_float16_program_of_one_size_is_taken_whole(tmp_path):
    assert foretold(Fixed(), torch.ones(2, 8), ({},), tmp_path, "fp16") == [
        "Neural Engine (by published lists, untested): takes 100 % of the multiply-accumulates."
    ]


class Integers(nn.Module):
    """Two convolutions and a head, between which all can stay in integers, or a softmax can not."""

    def __init__(self, splits):
        super().__init__()
        self.splits = splits
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 2)

    def forward(self, image):
        values = torch.relu(self.first(image))
        values = torch.softmax(values, 1) if self.splits else values
        return self.head(torch.relu(self.second(values)).mean((2, 3)))


@pytest.mark.parametrize("word", ["int8", "int8_sym"])
@pytest.mark.parametrize("splits", [False, True])
def test_w8a8_is_told_how_much_stays_in_integers_and_what_interrupts_it(tmp_path, word, splits):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8)
    graph = quant.capture(Integers(splits).eval(), (images,), ({},))
    coreml.template(graph, tmp_path / "template", "float16")
    coreml.compile(quantize(graph, "static", word, [(images,)]), tmp_path / "template", tmp_path / "artefact")
    _, integers, *others = coreml.forecast(tmp_path / "artefact")
    assert "In 8 bits are weights and inputs of 100 % of the multiply-accumulates" in integers
    assert ("softmax" in integers) == splits
    assert any("have zero points" in sentence for sentence in others) == (word == "int8")
