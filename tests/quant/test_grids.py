import pytest
import torch

from quant.grids import Blocks, Grid, fit_grids
from quant.scheme import NumberFormat

ASYMMETRIC = NumberFormat(3, symmetric=False, granularity="group", group_size=4, scale_dtype="float32")
SYMMETRIC = NumberFormat(3, symmetric=True, granularity="channel", scale_dtype="float32")


def covering(blocks):
    return blocks.squared_error(*blocks.covering(1.0))


def test_grids_are_shaped_as_blocks_are_even_where_they_do_not_divide():
    weight = torch.randn(5, 10)
    scale, zero_point = fit_grids(weight, ASYMMETRIC, (1, 4), covering)
    assert scale.shape == zero_point.shape == (5, 3)
    assert zero_point.dtype == torch.uint8
    extent = weight[:, 8:].amax(1).clamp(min=0) - weight[:, 8:].amin(1).clamp(max=0)
    torch.testing.assert_close(scale[:, 2], extent / 7)


def test_symmetric_grids_of_a_kernel_have_no_zero_points():
    weight = torch.randn(4, 3, 2, 2)
    scale, zero_point = fit_grids(weight, SYMMETRIC, (1, 3, 2, 2), covering)
    assert zero_point is None
    torch.testing.assert_close(scale.flatten(), weight.abs().amax((1, 2, 3)) / 3)


def test_many_chunks_are_fitted_as_one(monkeypatch):
    weight = torch.randn(40, 16)
    whole = fit_grids(weight, ASYMMETRIC, (1, 4), covering)
    monkeypatch.setattr("quant.grids._CHUNK", 24)
    for got, expected in zip(fit_grids(weight, ASYMMETRIC, (1, 4), covering), whole, strict=True):
        assert torch.equal(got, expected)


def test_the_better_grid_wins_block_by_block():
    first = Grid(torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1), torch.tensor([[5.0], [1.0]]))
    second = Grid(torch.tensor([[3.0], [4.0]]), torch.ones(2, 1), torch.tensor([[4.0], [1.0]]))
    best = first.or_better(second)
    assert best.scale.flatten().tolist() == [3.0, 2.0]
    assert best.zero_point.flatten().tolist() == [1.0, 0.0]


def test_importance_weighs_errors_and_fits():
    values, importance = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 100.0]])
    blocks = Blocks(values, importance, SYMMETRIC)
    grid = blocks.squared_error(torch.tensor([[0.7]]), torch.zeros(1, 1))
    assert grid.error.item() == pytest.approx((1 - 0.7) ** 2 + 100 * (2 - 2.1) ** 2, rel=1e-4)
    codes = blocks.codes(grid.scale, grid.zero_point).clone()
    expected = (1 * 1 * 1 + 100 * 3 * 2) / (1 + 100 * 9)
    assert blocks.least_squares(codes, values, grid.scale).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("block", [(1, 4), (1, 8), (6, 8)])
def test_importance_of_columns_holds_for_every_row(block):
    weight, importance = torch.randn(6, 8), torch.rand(1, 8) + 0.1
    seen = []

    def fit(blocks):
        seen.append(blocks.importance)
        return covering(blocks)

    fit_grids(weight, SYMMETRIC, block, fit, importance)
    expected = importance.expand(6, 8).reshape(-1, block[0], 8 // block[1], block[1]).transpose(1, 2).flatten(2)
    assert torch.equal(torch.cat(seen), expected.reshape(-1, block[0] * block[1]))


def test_a_fit_without_an_answer_keeps_the_old_scale():
    blocks = Blocks(torch.zeros(1, 4), None, SYMMETRIC)
    old = torch.tensor([[0.25]])
    assert torch.equal(blocks.least_squares(torch.zeros(1, 4), blocks.values, old), old)
