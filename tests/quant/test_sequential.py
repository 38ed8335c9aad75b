import pytest
import torch
from torch import nn

import quant
from quant.layers import weight_formats
from quant.scheme import parse
from quant.sequential import quantize_sequentially
from quant.tensor import quantize

SCHEME = parse("int2")


class Decoder(nn.Module):
    """An embedding, two layers with a residual sum, and a mask that depends on no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, tokens):
        mask = (tokens > 3).float().unsqueeze(-1)
        hidden = self.embedding(tokens)
        hidden = hidden + torch.relu(self.second(torch.relu(self.first(hidden)))) * mask
        return self.third(hidden)


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return quant.capture(Decoder().eval(), (torch.randint(0, 20, (2, 6)),))


def rounding(graph):
    formats = weight_formats(graph, SCHEME)
    return lambda layer, weight, moments: quantize(weight, *formats[layer.parameter])


def test_layers_come_in_order_each_with_what_the_quantized_ones_before_pass_on(graph):
    tokens = torch.randint(0, 20, (4, 6))
    seen = {}
    solve = rounding(graph)

    def watching(layer, weight, moments):
        seen[layer.parameter] = moments
        return solve(layer, weight, moments)

    weights = quantize_sequentially(
        graph, list(weight_formats(graph, SCHEME)), [(tokens[:2],), (tokens[2:],)], watching
    )
    assert list(seen) == ["embedding.weight", "first.weight", "second.weight", "third.weight"]
    assert seen["embedding.weight"] is None
    module = Decoder()
    module.load_state_dict(graph.module().state_dict())
    with torch.no_grad():
        before = torch.relu(module.first(module.embedding(tokens))).reshape(-1, 8)
        module.embedding.weight.copy_(weights["embedding.weight"].dequantize())
        module.first.weight.copy_(weights["first.weight"].dequantize())
        after = torch.relu(module.first(module.embedding(tokens))).reshape(-1, 8)
    torch.testing.assert_close(seen["second.weight"].gram[0], after.T @ after, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen["second.weight"].cross[0], before.T @ after, rtol=1e-4, atol=1e-4)


def test_a_block_is_refined_with_its_inputs_and_the_float_models_outputs(graph):
    tokens = torch.randint(0, 20, (3, 6))
    blocks = []

    def refine(block):
        blocks.append(block)
        return {
            name: quantize(graph.parameters[name], weight.format, weight.block)
            for name, weight in block.weights.items()
        }

    weights = quantize_sequentially(graph, list(weight_formats(graph, SCHEME)), [(tokens,)], rounding(graph), refine)
    assert [[layer.parameter for layer in block.layers] for block in blocks] == [
        ["first.weight", "second.weight"],
        ["third.weight"],
    ]
    with torch.no_grad():
        torch.testing.assert_close(blocks[-1].targets[0], graph.module()(tokens)[0])
    assert set(weights) == {f"{name}.weight" for name in ("embedding", "first", "second", "third")}


def test_what_a_refinement_returns_is_what_later_layers_see(graph):
    tokens = torch.randint(0, 20, (3, 6))
    seen, solve = {}, rounding(graph)

    def watching(layer, weight, moments):
        seen[layer.parameter] = moments
        return solve(layer, weight, moments)

    def emptied(block):
        return {
            name: quantize(torch.zeros_like(graph.parameters[name]), weight.format, weight.block)
            for name, weight in block.weights.items()
        }

    weights = quantize_sequentially(graph, list(weight_formats(graph, SCHEME)), [(tokens,)], watching, emptied)
    # Without its weights the second layer gives its bias, whatever comes in.
    residual = torch.relu(graph.parameters["second.bias"]) * (tokens > 3).float().unsqueeze(-1)
    rows = (weights["embedding.weight"].dequantize()[tokens] + residual).reshape(-1, 8)
    torch.testing.assert_close(seen["third.weight"].gram[0], rows.T @ rows, rtol=1e-4, atol=1e-4)


def test_without_data_it_is_one_sentence(graph):
    with pytest.raises(ValueError, match="needs calibration data"):
        quantize_sequentially(graph, ["first.weight"], [], rounding(graph))
