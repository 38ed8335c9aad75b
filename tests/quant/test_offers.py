import numpy as np
import pytest
import torch
from torch import nn

import quant
from quant.backends import targets
from quant.backends._mlx_weights import AFFINE_BITS, encode
from quant.backends._onnx_packing import CONTAINERS
from quant.mixed import least_error
from quant.offers import HALF, WIDTHS, WORDS, Offer, layouts_of, words_of
from quant.scheme import parse
from quant.tensor import quantize


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(10, 24), nn.Linear(24, 40), nn.Flatten(), nn.Linear(200, 3)).eval()
    return quant.capture(module, (torch.randint(0, 10, (2, 5)),))


def test_words_are_those_of_the_widths_and_half_precision():
    assert words_of(WIDTHS) == WORDS
    assert {word.partition("_")[0] for word in words_of([4, 8])} == {"int8", "int4", HALF}
    assert {parse(word).linear.bits for word in WORDS if word != HALF} == set(WIDTHS)


def test_bits_are_those_of_real_tables(graph):
    offer = Offer(graph, WORDS)
    for name, row in zip(offer.weights, offer.bits(), strict=True):
        for word, bits in zip(WORDS, row, strict=True):
            layout = offer.layouts[name][word]
            weight = graph.parameters[name]
            assert bits == (16 * weight.numel() if layout is None else quantize(weight, *layout).nbits)


def test_a_width_that_is_not_stored_takes_the_next_wider_one(graph):
    offer = Offer(graph, ("int3_g32", "int4_g32", "int6_g64", "int8_g64"))
    three, four, six, eight = offer.bits(widths=(2, 4, 8)).T
    np.testing.assert_array_equal(three, four)
    np.testing.assert_array_equal(six, eight)
    wider = offer.bits(group_bits=dict.fromkeys((3, 4, 6, 8), 64))
    # 10 rows of one block of 24: scale and zero point took 16 and 3 bits.
    assert wider[0, 0] - offer.bits()[0, 0] == 10 * (64 - 16 - 3)


def _with_formats_of_their_own():
    offered = ((name, found, found.constant("EXECUTES")) for name, found in targets().items())
    return [(name, found) for name, found, families in offered if "mixed_4p5" in families.get("weight_only", ())]


def test_backends_say_the_widths_that_they_pack():
    widths = {name: tuple(found.constant("WIDTHS")) for name, found in _with_formats_of_their_own()}
    assert widths["onnxruntime"] == CONTAINERS
    assert widths["mlx"] == AFFINE_BITS
    assert all(set(known) <= set(WIDTHS) for known in widths.values())


def test_mlx_takes_the_bits_that_are_foreseen_of_whole_groups_and_others():
    """Rows of 128 are packed in groups of 32 and of 128; those of 672 in groups of 32 alone, and rows of 24 in none."""
    shapes = {"whole": (40, 128), "broken": (40, 672), "short": (40, 24)}
    module = nn.ModuleDict({name: nn.Linear(shape[1], shape[0], bias=False) for name, shape in shapes.items()})
    module.forward = lambda a, b, c: module["whole"](a) + module["broken"](b) + module["short"](c)
    graph = quant.capture(module.eval(), tuple(torch.randn(2, shape[1]) for shape in shapes.values()))
    offer, mlx = Offer(graph, ("int3_g32", "int5_g32", "int5_g128", "int8_g128")), targets()["mlx"]
    bits = offer.bits(*map(mlx.constant, ("WIDTHS", "GROUP_BITS", "LOOSE_WIDTHS")))
    for name, row in zip(offer.weights, bits, strict=True):
        for word, foreseen in zip(offer.words, row, strict=True):
            tensor = quantize(graph.parameters[name], *offer.layouts[name][word])
            _, stored = encode(name, tensor, ())
            assert foreseen == 8 * sum(part.nbytes for part in stored.values()), (name, word)


def test_bits_per_weight_and_budgets_are_each_others_inverse(graph):
    offer = Offer(graph, WORDS)
    assert offer.bits_per_weight(offer.budget(4.5)) == pytest.approx(4.5)
    quantized = quant.quantize(graph, "rtn", "int4_g128")
    bits = offer.bits()[:, WORDS.index("int4_g128")].sum()
    assert offer.bits_per_weight(bits) == pytest.approx(quantized.bits_per_weight)


def test_layers_that_read_one_value_stand_together(transformer_graph):
    offer = Offer(transformer_graph, WORDS)
    groups = [{offer.weights[place] for place in group} for group in offer.together]
    for attention in ("attention", "late_attention"):
        assert {f"{attention}.{name}.weight" for name in ("query", "key", "value")} in groups


def test_a_weight_that_several_operators_take_is_one_choice(tied_graph):
    offer = Offer(tied_graph, WORDS)
    shared = [name for name, uses in tied_graph.quantizable().items() if len(uses) > 1]
    assert shared
    assert [offer.weights.count(name) for name in shared] == [1] * len(shared)


def test_a_weight_beyond_half_precision_is_not_left_in_it():
    module = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    with torch.no_grad():
        module[0].weight[0, 0] = 1e5
    graph = quant.capture(module.eval(), (torch.randn(2, 8),))
    offer = Offer(graph, (HALF, "int8_g128"))
    chosen = least_error(offer.problem(np.array([[0.0, 1], [0, 1]])), 1e6)
    assert offer.named(chosen) == {"0.weight": "int8_g128", "1.weight": HALF}
    with pytest.raises(ValueError, match=r"'0\.weight' does not fit fp16"):
        layouts_of(graph, {"0.weight": HALF, "1.weight": HALF})


@pytest.mark.parametrize("word", ["fp32", "int9", "nonsense", "mixed_4p5"])
def test_what_is_no_format_is_not_offered(graph, word):
    with pytest.raises(ValueError, match=word):
        Offer(graph, (word,))


def test_every_weight_needs_a_format_and_nothing_else_has_one(graph):
    words = dict.fromkeys(Offer(graph, WORDS).weights, "int8")
    assert set(layouts_of(graph, words)) == set(words)
    with pytest.raises(ValueError, match="'nowhere', which is no weight"):
        layouts_of(graph, {**words, "nowhere": "int8"})
    words.pop(next(iter(words)))
    with pytest.raises(ValueError, match="no format is given for the weight"):
        layouts_of(graph, words)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.LayerNorm(4), "no weight that can be quantized"),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), r"what stays float alone takes 13.7 bits .* 6 are allowed"),
    ],
)
def test_a_budget_that_leaves_nothing_for_the_weights_is_refused_in_a_sentence(module, said):
    graph = quant.capture(module.eval(), (torch.randn(2, 4),))
    with pytest.raises(ValueError, match=said):
        quant.quantize(graph, "mixed", "mixed_6", [(torch.randn(8, 4),)])
