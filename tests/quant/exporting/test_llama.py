"""Recognizing Llama-like decoders, and computing them from settings and weights alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import quant
from fixtures.zoo._llama import Decoder, Layer
from quant.exporting.llama import adjacent, halves, logits, recognize


def test_settings_and_roles_are_read_from_the_graph(llama_graph):
    found = recognize(llama_graph)
    assert found.settings.as_dict() == {
        "vocabulary": 96, "context": 24, "layers": 2, "width": 96, "hidden": 256, "heads": 6, "key_heads": 3,
        "head_size": 16, "epsilon": 1e-5, "base": 500.0,
    }  # fmt: skip
    assert found.parameters["layers.1.query"] == "layers.1.attention.query.weight"
    assert "head" not in found.parameters


@pytest.mark.parametrize("base", [10_000.0, 100_000.0, 500_000.0])
def test_the_base_of_the_rotations_is_read_from_their_sines(base):
    module = Decoder(vocabulary=32, context=40, layers=1, width=128, heads=2, base=base).eval()
    graph = quant.capture(module, (torch.randint(0, 32, (2, 9)),), ({0: "batch", 1: "sequence"},))
    assert recognize(graph).settings.base == base


def test_pairs_side_by_side_give_the_same_logits(llama_graph):
    found = recognize(llama_graph)
    tokens = np.arange(12).reshape(1, 12)

    def weights(role):
        value = llama_graph.parameters[found.parameters[role]].numpy()
        heads = {"query": 6, "key": 3}.get(role.rpartition(".")[2])
        return value if heads is None else adjacent(value, heads)

    moved = logits(found.settings, weights, has_head=False, pairs="adjacent")(tokens)
    with torch.inference_mode():
        expected = llama_graph.module()(torch.from_numpy(tokens))[0]
    np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-3)


def test_putting_pairs_side_by_side_is_undone():
    rows = np.arange(48).reshape(12, 4)
    assert adjacent(rows, 2)[:2, 0].tolist() == [0, 12]  # features 0 and 3 of the first head
    np.testing.assert_array_equal(halves(adjacent(rows, 2), 2), rows)


def test_a_decoder_that_computes_something_else_is_refused(monkeypatch):
    class Doubled(Decoder):
        def forward(self, input_ids):
            return 2 * super().forward(input_ids)

    module = Doubled(vocabulary=32, context=16, layers=1, width=32, heads=2).eval()
    graph = quant.capture(module, (torch.randint(0, 32, (2, 9)),), ({0: "batch", 1: "sequence"},))
    with pytest.raises(ValueError, match="computes something else"):
        recognize(graph)


def test_a_decoder_without_a_part_is_refused_by_that_part(llama_graph):
    names = {"layers.1.feed_forward.gate.weight": "layers.1.feed_forward.gaze.weight"}
    parameters = {names.get(name, name): value for name, value in llama_graph.parameters.items()}
    with pytest.raises(ValueError, match=r"it has no layers\.1\.gate"):
        recognize(replace(llama_graph, parameters=parameters))


def test_a_decoder_whose_positions_do_not_turn_is_refused(llama_graph):
    straight = torch.zeros(24, 16)
    parameters = {
        name: straight if value.shape == straight.shape and not value[0].any() else value
        for name, value in llama_graph.parameters.items()
    }
    with pytest.raises(ValueError, match="it has no table of the sines of its positions"):
        recognize(replace(llama_graph, parameters=parameters))


def test_a_decoder_with_other_norms_is_refused(llama_graph):
    forward = llama_graph.graphs["forward"]
    others = replace(forward, nodes=[node for node in forward.nodes if node.operator != "aten.mean.dim"])
    with pytest.raises(ValueError, match="it has no RMS norms"):
        recognize(replace(llama_graph, graphs={"forward": others}))


def test_layers_of_the_zoo_have_all_parts():
    assert sum(1 for _ in Layer(32, 2, 1).parameters()) == 9
