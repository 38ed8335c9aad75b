"""Attention step by step, against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from quant.attention import Attention

GENERATOR = torch.Generator().manual_seed(0)
SHAPE = (2, 4, 5, 8)


def operand(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def unchanged(probabilities):
    return probabilities


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"scale": 0.7},
        {"is_causal": True},
        {"attn_mask": operand(2, 1, 5, 5)},
        {"attn_mask": torch.eye(5, dtype=torch.bool).flip(0)},
    ],
)
def test_it_computes_what_torch_computes(keywords):
    query, key, value = (operand(*SHAPE) for _ in range(3))
    expected = F.scaled_dot_product_attention(query, key, value, **keywords)
    torch.testing.assert_close(Attention(unchanged)(query, key, value, **keywords), expected)


def test_fewer_heads_of_keys_are_shared():
    query, key, value = operand(*SHAPE), operand(2, 2, 7, 8), operand(2, 2, 7, 8)
    expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(Attention(unchanged)(query, key, value, enable_gqa=True), expected)


def test_probabilities_pass_the_function_before_they_weigh_the_values():
    query, key, value = (operand(*SHAPE) for _ in range(3))
    seen = []

    def first_alone(probabilities):
        seen.append(probabilities)
        return F.one_hot(torch.zeros(2, 4, 5, dtype=torch.long), 5).float()

    mixed = Attention(first_alone)(query, key, value)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(2, 4, 5))
    torch.testing.assert_close(mixed, value[:, :, :1].expand(*SHAPE))


def test_its_result_is_viewed_as_torch_lays_it_out():
    mixed = Attention(unchanged)(*(operand(*SHAPE) for _ in range(3)))
    assert mixed.transpose(1, 2).view(2, 5, 32).shape == (2, 5, 32)
