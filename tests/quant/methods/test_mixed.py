import pytest
import torch

import quant
from quant.methods.mixed import FORMATS
from quant.scheme import MIXED_WORDS, parse


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
    assert MIXED_WORDS[word] * 0.93 < quantized.bits_per_weight <= MIXED_WORDS[word] * (1 + 1e-6)


def test_predicted_bits_are_those_of_the_tables(made):
    for quantized in made.values():
        real = sum(weight.nbits for weight in quantized.weights.values())
        assert quantized.recipe["predicted_bits"] == pytest.approx(real, rel=0.01)


def test_layers_that_read_one_value_have_one_format(made):
    formats = made["mixed_4p5"].recipe["formats"]
    assert len(set(formats.values())) > 1
    assert set(formats.values()) <= set(FORMATS)
    for attention in ("attention", "late_attention"):
        assert len({formats[f"{attention}.{name}.weight"] for name in ("query", "key", "value")}) == 1


def test_more_bits_lose_less(made, batches):
    expected = made["mixed_6"].graph.module()(*batches[0])[0]
    lost = {word: float((quant.simulate(q)(*batches[0])[0] - expected).square().sum()) for word, q in made.items()}
    assert lost["mixed_6"] < lost["mixed_4p5"] / 2


def test_a_budget_below_the_floats_is_refused(tied_graph):
    tokens = [(torch.randint(0, 40, (4, 7)),)]
    with pytest.raises(ValueError, match="raise it or allow more formats"):
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
    with pytest.raises(ValueError, match="did you mean"):
        parse("mixed_4p6")
    with pytest.raises(ValueError, match="no meaning for static"):
        parse("mixed_4p5", "static")


def test_tables_of_several_formats_are_saved(made, transformer_graph, tmp_path):
    quantized = made["mixed_4p5"]
    quant.save(quantized, tmp_path)
    read = quant.load(tmp_path, transformer_graph)
    assert read.scheme == quantized.scheme
    assert {name: weight.format for name, weight in read.weights.items()} == {
        name: weight.format for name, weight in quantized.weights.items()
    }
