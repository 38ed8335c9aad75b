import itertools

import pytest
import torch
from torch import nn

import quant
from quant.layers import Moments, layer_of
from quant.methods.gptq import Lattice, compensated_rounding, retargeted, solve_layer
from quant.methods.mse import search
from quant.scheme import parse
from quant.tensor import quantize_with


def lattice(matrix, step=0.5, reach=3):
    step = torch.full((*matrix.shape[:2], 1), step)
    return Lattice(step, torch.full_like(step, -reach), 2 * reach, matrix.shape[2])


def rounded(matrix, grid, gram):
    """What compensated rounding finds, in steps."""
    return compensated_rounding(matrix, grid, gram) + grid.lowest


def correlated(count, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)


def objective(steps, matrix, grid, gram):
    difference = (steps * grid.step - matrix).double()
    return (difference @ gram.double() * difference).sum().item()


def original_gptq(matrix, step, lowest, highest, gram):
    """The paper's algorithm, column by column with the factor of the inverse, in float64."""
    matrix, gram = matrix.double().clone(), gram.double()
    order = gram.diagonal().argsort(descending=True)
    matrix, gram = matrix[:, order], gram[order][:, order]
    upper = torch.linalg.cholesky(torch.linalg.inv(gram), upper=True)
    steps = torch.zeros_like(matrix)
    for column in range(matrix.shape[1]):
        steps[:, column] = (matrix[:, column] / step).round().clamp(lowest, highest)
        error = (matrix[:, column] - steps[:, column] * step) / upper[column, column]
        matrix[:, column:] -= error.unsqueeze(1) * upper[column, column:]
    return steps[:, order.argsort()]


def test_it_is_the_papers_algorithm():
    matrix, x = torch.randn(1, 12, 40), correlated(200, 40)
    gram = (x.T @ x / 200 + torch.eye(40)).unsqueeze(0)
    found = rounded(matrix, lattice(matrix), gram)
    assert torch.equal(found[0].double(), original_gptq(matrix[0], 0.5, -3, 3, gram[0]))


def test_blocks_of_columns_change_nothing(monkeypatch):
    matrix, x = torch.randn(2, 8, 50), correlated(300, 50)
    gram = (x.T @ x / 300 + torch.eye(50)).expand(2, -1, -1)
    whole = rounded(matrix, lattice(matrix), gram)
    monkeypatch.setattr("quant.methods.gptq._BLOCK", 12)
    monkeypatch.setattr("quant.methods.gptq._INNER_BLOCK", 5)
    assert torch.equal(rounded(matrix, lattice(matrix), gram), whole)


def test_with_an_identity_for_second_moments_it_rounds():
    weight = torch.randn(16, 64)
    graph = quant.capture(nn.Linear(64, 16, bias=False).eval(), (torch.randn(2, 64),))
    layer = layer_of(graph, "weight")
    moments = Moments(layer)
    moments.add(torch.eye(64))
    format, block = parse("int4").linear, (1, 32)
    expected = quantize_with(weight, *search(weight, format, block), format, block)
    found = solve_layer(layer, weight, moments, format, block)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scale, expected.scale)


def test_a_tiny_layer_is_near_the_best_of_all_roundings_and_plain_rounding_is_not():
    generator = torch.Generator().manual_seed(5)
    total = plain = best = 0.0
    for _ in range(6):
        matrix = torch.randn(1, 1, 5, generator=generator)
        x = torch.randn(64, 5, generator=generator) + torch.randn(64, 1, generator=generator)
        gram = (x.T @ x / 64).unsqueeze(0)
        grid = lattice(matrix, step=0.4, reach=6)
        total += objective(rounded(matrix, grid, gram), matrix, grid, gram)
        plain += objective((matrix / 0.4).round(), matrix, grid, gram)
        choices = itertools.product(
            *[range(low - 1, low + 3) for low in (matrix / 0.4).floor().int().flatten().tolist()]
        )
        difference = (torch.tensor(list(choices)) * 0.4 - matrix[0]).double()
        best += (difference @ gram[0].double() * difference).sum(1).min().item()
    assert best <= total * 1.0001
    assert total <= 1.05 * best
    assert plain > 1.2 * best


def test_a_tiny_layer_that_clips_stays_in_range():
    matrix, x = 10 * torch.randn(1, 3, 6), correlated(64, 6)
    steps = rounded(matrix, lattice(matrix), (x.T @ x / 64 + torch.eye(6)).unsqueeze(0))
    assert steps.abs().max() == 3


def test_depthwise_groups_are_solved_each_on_its_own():
    matrix, x = torch.randn(4, 1, 9), torch.randn(4, 100, 9)
    gram = x.mT @ x / 100 + torch.eye(9)
    together = rounded(matrix, lattice(matrix), gram)
    for group in range(4):
        one = slice(group, group + 1)
        assert torch.equal(together[one], rounded(matrix[one], lattice(matrix[one]), gram[one]))


def test_the_target_is_the_least_squares_fit_to_the_float_models_outputs():
    graph = quant.capture(nn.Linear(6, 4, bias=False).eval(), (torch.randn(2, 6),))
    original, changed, weight = torch.randn(200, 6), torch.randn(200, 6), torch.randn(1, 4, 6)
    changed = original + 0.3 * changed
    moments = Moments(layer_of(graph, "weight"))
    moments.add(changed, original)
    found = retargeted(weight, moments, moments.gram / moments.count)
    expected = torch.linalg.lstsq(changed.double(), (original @ weight[0].T).double()).solution.T
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", ["int4", "int3"])
def test_outputs_on_new_data_are_closer_than_by_clip_search(bits):
    torch.manual_seed(6)
    mixing = torch.randn(64, 64)
    module = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 32)).eval()
    graph = quant.capture(module, (torch.randn(2, 64),))
    seen, unseen = torch.randn(512, 64) @ mixing, torch.randn(256, 64) @ mixing
    errors = [
        (quant.simulate(quant.quantize(graph, method, bits, [(seen,)]))(unseen)[0] - module(unseen)).norm()
        for method in ("gptq", "mse")
    ]
    assert errors[0] < 0.8 * errors[1]


def test_an_embedding_is_rounded():
    """Its rows are looked up, not multiplied with: nothing could make good an error of theirs."""
    graph = captured(nn.Sequential(nn.Embedding(40, 24), nn.Linear(24, 24)))
    quantized = quant.quantize(graph, "gptq", "int4", [(torch.randint(0, 40, (4, 7)),)])
    expected = quant.quantize(graph, "mse", "int4")
    assert torch.equal(quantized.weights["0.weight"].codes, expected.weights["0.weight"].codes)
    assert not torch.equal(quantized.weights["1.weight"].codes, expected.weights["1.weight"].codes)


def test_a_head_that_is_the_embedding_is_fitted_to_its_inputs(tied_module, tied_graph):
    """Its outputs change less than with rounding, and the rows that are looked up not much more."""
    tokens = torch.randint(0, 40, (16, 7), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        hidden = tied_module.embedding(tokens) + tied_module.positions[:7]
        inputs = (hidden + tied_module.feed_forward(tied_module.norm(hidden))).flatten(0, 1)
    weight = tied_graph.parameters["embedding.weight"]
    changes = [
        quant.quantize(tied_graph, method, "int4", [(tokens,)]).weights["embedding.weight"].dequantize() - weight
        for method in ("gptq", "mse")
    ]
    fitted, nearest = ((inputs @ change.T).norm() for change in changes)
    assert fitted < 0.9 * nearest
    assert changes[0].norm() < 1.5 * changes[1].norm()


def captured(module):
    torch.manual_seed(0)
    return quant.capture(module.eval(), (torch.randint(0, 40, (2, 7)),), ({0: "batch", 1: "sequence"},))


def test_the_quick_variant_is_the_whole_one_of_its_samples():
    torch.manual_seed(7)
    module = nn.Sequential(nn.Linear(32, 24)).eval()
    graph = quant.capture(module, (torch.randn(2, 32),))
    values = torch.randn(100, 32) * torch.linspace(0.1, 3, 32)
    quick = quant.quantize(graph, "gptq_quick", "int4", [(values[:20],), (values[20:],)]).weights["0.weight"].codes
    some, whole = (
        quant.quantize(graph, "gptq", "int4", [(part,)]).weights["0.weight"] for part in (values[:32], values)
    )
    assert torch.equal(quick, some.codes)
    assert not torch.equal(quick, whole.codes)
