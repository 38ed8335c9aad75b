from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import quant
from quant.backends import targets
from quant.methods import method
from quant.methods.mixed import measured, rounding_errors
from quant.offers import WORDS, Offer
from quant.replaying import recipe_of
from quant.scheme import bits_per_weight, budget_word, parse
from quant.sensitivity import CRITERIA


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 6, 64, generator=generator),)]


@pytest.fixture(scope="module")
def made(transformer_graph, batches):
    return {word: quant.quantize(transformer_graph, "mixed", word, batches) for word in ("mixed_4p5", "mixed_6")}


@pytest.mark.parametrize("word", ["mixed_4p5", "mixed_6"])
def test_the_budget_is_kept_and_used(made, word):
    quantized = made[word]
    assert bits_per_weight(word) * 0.93 < quantized.bits_per_weight <= bits_per_weight(word) * (1 + 1e-6)


def test_predicted_bits_are_those_of_the_tables(made):
    for quantized in made.values():
        real = sum(weight.nbits for weight in quantized.weights.values())
        assert quantized.recipe["predicted_bits"] == pytest.approx(real, rel=0.01)


def test_layers_that_read_one_value_have_one_format(made):
    formats = made["mixed_4p5"].recipe["formats"]
    assert len(set(formats.values())) > 1
    assert set(formats.values()) <= set(WORDS)
    for attention in ("attention", "late_attention"):
        assert len({formats[f"{attention}.{name}.weight"] for name in ("query", "key", "value")}) == 1


def test_more_bits_lose_less(made, batches):
    expected = made["mixed_6"].graph.module()(*batches[0])[0]
    lost = {word: float((quant.simulate(q)(*batches[0])[0] - expected).square().sum()) for word, q in made.items()}
    assert lost["mixed_6"] < lost["mixed_4p5"] / 2


def test_a_budget_below_the_floats_is_refused(tied_graph):
    tokens = [(torch.randint(0, 40, (4, 7)),)]
    with pytest.raises(ValueError, match=r"what stays float alone takes .* are allowed: raise it"):
        quant.quantize(tied_graph, "mixed", "mixed_3p5", tokens)


def test_it_needs_calibration_data(transformer_graph):
    with pytest.raises(ValueError, match="calibration data"):
        quant.quantize(transformer_graph, "mixed", "mixed_4p5")


def test_other_methods_refuse_a_budget(transformer_graph):
    with pytest.raises(ValueError, match="use the method 'mixed'"):
        quant.quantize(transformer_graph, "rtn", "mixed_4p5")


def test_mixed_words_say_what_they_bound():
    scheme = parse("mixed_4p5")
    assert scheme.bits_per_weight == 4.5
    assert scheme.as_dict()["linear"] == "mixed, 4.5 bits per weight at most"
    assert parse("mixed_4p61").bits_per_weight == 4.61
    for word in ("mixed", "mixed_four", "mixed_4p", "mixed_4_g32"):
        with pytest.raises(ValueError, match="write the bits per weight as in"):
            parse(word)
    with pytest.raises(ValueError, match="no meaning for static"):
        parse("mixed_4p5", "static")


@pytest.mark.parametrize(("bits", "word"), [(4, "mixed_4"), (4.49906, "mixed_4p5"), (12.1, "mixed_12p1")])
def test_a_word_allows_at_least_what_it_was_made_of(bits, word):
    assert budget_word(bits) == word
    assert bits <= bits_per_weight(word) < bits + 0.002


def settled(**settings):
    return replace(method("mixed"), settings=settings)


def test_formats_of_one_s_own_are_taken_and_half_precision_stays(transformer_graph, batches):
    weights = Offer(transformer_graph, WORDS).weights
    formats = dict.fromkeys(weights, "int4_g32") | {"up.weight": "fp16", "down.weight": "int2_g32"}
    quantized = quant.quantize(transformer_graph, settled(formats=formats), "mixed_6", batches)
    assert quantized.weights["down.weight"].format.bits == 2
    assert "up.weight" not in quantized.weights
    half = transformer_graph.parameters["up.weight"].half()
    assert torch.equal(quantized.floats["up.weight"], half)
    assert torch.equal(quantized.real_parameters()["up.weight"], half.float())
    assert quantized.left_float() == ["up.weight"]


@pytest.mark.parametrize("backend", [name for name, found in targets().items() if found.elsewhere() is None])
def test_half_precision_among_integers_runs_on_every_backend(transformer_graph, batches, backend, tmp_path):
    if targets()[backend].missing():
        pytest.skip(f"{backend} is not installed")
    formats = dict.fromkeys(Offer(transformer_graph, WORDS).weights, "int4_g32")
    sizes = {}
    for word in ("fp16", "int8_g32"):
        chosen = formats | {"up.weight": word}
        quantized = quant.quantize(transformer_graph, settled(formats=chosen), "mixed_6", batches)
        executable = quant.compile(quantized, backend, tmp_path / word)
        expected = quant.simulate(quantized)(*batches[0])[0].numpy()
        np.testing.assert_allclose(executable(batches[0][0].numpy())[0], expected, rtol=1e-4, atol=1e-4)
        sizes[word] = executable.size_bytes
    # 8 bits more for each of 64 x 128 elements, less scale and zero point of each of their blocks of 32.
    of_a_block = targets()[backend].constant("GROUP_BITS", {8: 24})[8]
    assert sizes["fp16"] - sizes["int8_g32"] == pytest.approx(64 * 128 * (8 - of_a_block / 32) / 8, rel=0.15)


def test_a_backend_s_widths_are_the_only_ones_chosen(transformer_graph, batches):
    quantized = quant.quantize(transformer_graph, settled(widths=[4, 8]), "mixed_6", batches)
    assert {weight.format.bits for weight in quantized.weights.values()} == {4, 8}


def test_a_recipe_with_formats_makes_the_same_tables(made, transformer_graph, batches):
    formats = made["mixed_4p5"].recipe["formats"]
    quantized = quant.quantize(transformer_graph, settled(formats=formats), "mixed_4p5", batches)
    for name, weight in made["mixed_4p5"].weights.items():
        assert torch.equal(quantized.weights[name].codes, weight.codes)
    again = quant.replay(transformer_graph, recipe_of(quantized, batches), batches)
    assert again.recipe == quantized.recipe


class Planted(nn.Module):
    """Four layers in a row; the first has weights so large, for an input that is small, that the others are lost."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        with torch.no_grad():
            self.layers[0].weight[:, 3] = 6

    def forward(self, values):
        for layer in self.layers:
            values = layer(values)
        return values


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_finds_the_planted_layer_worst_once_it_is_rounded(criterion):
    torch.manual_seed(0)
    graph = quant.capture(Planted().eval(), (torch.randn(2, 32),), ({0: "batch"},))
    offer = Offer(graph, ("int8_g32", "int4_g32", "int3_g32"))
    values = torch.randn(32, 32)
    values[:, 3] *= 0.01
    found = measured(offer, [(values,)], criterion)
    assert (found.weights, found.formats) == (offer.weights, offer.words)
    assert [found.weights[row] for row in found.errors.argmax(0)] == ["layers.0.weight"] * 3


def test_rounding_errors_are_those_of_gptq_with_its_inputs(transformer_graph, batches):
    offer = Offer(transformer_graph, ("int3_g32", "fp16"))
    changes = rounding_errors(offer, batches)
    assert list(changes) == list(offer.weights)
    first = "attention.query.weight"  # its inputs are those of the float model in GPTQ, too
    table = quant.quantize(transformer_graph, "gptq", "int3", batches).weights[first]
    expected = table.dequantize() - transformer_graph.parameters[first]
    torch.testing.assert_close(changes[first][0].float(), expected, rtol=0.01, atol=1e-6)


def test_a_recurrent_model_is_mixed(recurrent_graph):
    tokens = [(torch.randint(0, 20, (4, 9), generator=torch.Generator().manual_seed(0)),)]
    quantized = quant.quantize(recurrent_graph, "mixed", "mixed_6", tokens)
    assert quantized.bits_per_weight <= 6
    assert set(quantized.recipe["formats"]) == set(recurrent_graph.quantizable())


@pytest.fixture(scope="module")
def recurrent_graph():
    torch.manual_seed(0)

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(20, 32), nn.Linear(64, 3)
            self.lstm = nn.LSTM(32, 32, batch_first=True, bidirectional=True)

        def forward(self, tokens):
            return self.head(self.lstm(self.embedding(tokens))[0].mean(1))

    return quant.capture(Recurrent().eval(), (torch.randint(0, 20, (2, 9)),), ({0: "batch"},))


def test_tables_of_several_formats_are_saved(made, transformer_graph, tmp_path):
    quantized = made["mixed_4p5"]
    quant.save(quantized, tmp_path)
    read = quant.load(tmp_path, transformer_graph)
    assert read.scheme == quantized.scheme
    assert {name: weight.format for name, weight in read.weights.items()} == {
        name: weight.format for name, weight in quantized.weights.items()
    }
