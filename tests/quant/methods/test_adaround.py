import pytest
import torch
from torch import nn

import quant
from quant.layers import weight_formats
from quant.methods import adaround
from quant.methods.adaround import Reconstruction, SoftRounding
from quant.scheme import parse
from quant.sequential import quantize_sequentially
from quant.tensor import quantize


@pytest.fixture
def blocks(residual_graph):
    """The blocks of a small net, their weights plainly rounded, as a refinement sees them."""
    found, formats = [], weight_formats(residual_graph, parse("int2"))

    def refine(block):
        found.append(block)
        return block.weights

    def solve(layer, weight, moments):
        return quantize(weight, *formats[layer.parameter])

    batches = [(torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(i)),) for i in range(2)]
    quantize_sequentially(residual_graph, list(formats), batches, solve, refine)
    return found


def test_a_block_never_ends_worse_than_rounding_and_training_helps(residual_graph, blocks, monkeypatch):
    # From plain rounding the way is farther than from GPTQ's codes: larger steps, from a less settled start.
    for name, value in {"STEPS": 300, "LEARNING_RATE": 0.05, "START": 0.8}.items():
        monkeypatch.setattr(adaround, name, value)
    improved = 0
    for block in blocks:
        problem = Reconstruction(residual_graph, block)
        before, after = problem.error(block.weights), problem.error(problem.best())
        assert after <= before
        improved += after < 0.9 * before
    assert improved


def test_training_that_goes_wrong_is_not_taken(residual_graph, blocks, monkeypatch):
    monkeypatch.setattr(adaround, "STEPS", 3)
    monkeypatch.setattr(adaround, "LEARNING_RATE", 100.0)
    for block in blocks:
        problem = Reconstruction(residual_graph, block)
        assert problem.error(problem.best()) <= problem.error(block.weights)


def test_its_error_is_that_of_the_blocks_output(residual_graph, blocks):
    block = blocks[0]
    difference = energy = 0.0
    parameters = {name: weight.dequantize() for name, weight in block.weights.items()}
    module = residual_graph.module(parameters=parameters)
    names = [node.name for node in block.nodes]
    tapped = torch.fx.Interpreter(module)
    for inputs, target in zip(block.inputs, block.targets, strict=True):
        values = {}
        tapped.run_node = lambda node, values=values: values.setdefault(
            node.name, torch.fx.Interpreter.run_node(tapped, node)
        )
        tapped.run(*inputs.values())
        difference += (values[names[-1]] - target).square().sum().item()
        energy += target.square().sum().item()
    assert Reconstruction(residual_graph, block).error(block.weights) == pytest.approx(difference / energy, rel=1e-4)


def test_a_soft_weight_starts_near_its_codes_and_hardens_to_neighbours():
    torch.manual_seed(0)
    weight, format = torch.randn(8, 32), parse("int3").linear
    start = quantize(weight, format, (1, 32))
    soft = SoftRounding(weight, start)
    assert torch.equal(soft.hardened().codes, start.codes)
    distance = (soft.dequantize() - start.dequantize()).abs() / start.scale
    assert distance.max() <= 1 - adaround.START + 1e-4
    with torch.no_grad():
        soft.v.copy_(-soft.v)
    moved = (soft.hardened().codes.short() - start.codes.short()).abs()
    assert moved.max() == 1
    assert soft.hardened().codes.max() <= format.highest


def test_the_penalty_is_zero_only_where_every_code_is_decided():
    weight, format = torch.randn(4, 32), parse("int4").linear
    soft = SoftRounding(weight, quantize(weight, format, (1, 32)))
    with torch.no_grad():
        soft.v.fill_(10.0)
        assert soft.penalty(2.0).item() == 0.0
        soft.v.zero_()
        assert soft.penalty(2.0).item() == pytest.approx(weight.numel())


def test_gradients_are_those_of_what_is_computed():
    """Against autograd on the formulas, from far on one side of the clipped sigmoid to far on the other."""
    torch.manual_seed(0)
    weight, format = torch.randn(4, 32), parse("int4").linear
    start = quantize(weight, format, (1, 32))
    soft, towards = SoftRounding(weight, start), torch.randn(4, 32)
    with torch.no_grad():
        soft.v.copy_(torch.linspace(-4, 4, 128).reshape(4, 32))
    v = soft.v.detach().double().requires_grad_()
    share = (torch.sigmoid(v) * 1.2 - 0.1).clamp(0, 1)
    zero = start.zero_point.double().expand(4, 32)
    values = (soft.lower.double() + share - zero) * start.scale.double()
    penalty = (1 - (2 * share - 1).abs().pow(5.0)).sum()
    (values * towards).sum().add(penalty).backward()
    (soft.dequantize() * towards).sum().add(soft.penalty(5.0)).backward()
    torch.testing.assert_close(soft.dequantize().double(), values, rtol=1e-5, atol=1e-6)
    assert soft.penalty(5.0).item() == pytest.approx(penalty.item(), rel=1e-5)
    torch.testing.assert_close(soft.v.grad.double(), v.grad, rtol=1e-4, atol=1e-5)


class Heads(nn.Module):
    """Sizes of the batch, computed in one block and used in the next, and a value that has no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.last = nn.Linear(6, 6)

    def forward(self, x):
        batch, length, width = x.shape
        places = torch.arange(length).float().unsqueeze(-1)
        hidden = torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x)) + places))))
        return self.last(
            hidden.view(batch, length, 2, width // 2).transpose(1, 2).reshape(batch, length, width) + places
        )


@pytest.mark.parametrize("samples", [1, 4, 19])
def test_any_number_of_samples_and_values_without_a_batch_are_fine(samples, monkeypatch):
    monkeypatch.setattr(adaround, "STEPS", 4)
    graph = quant.capture(Heads().eval(), (torch.randn(3, 5, 6),), ({0: "batch", 1: "length"},))
    quantized = quant.quantize(graph, "adaround", "int3", [(torch.randn(samples, 5, 6),)])
    assert set(quantized.weights) == {f"{name}.weight" for name in ("first", "second", "third", "last")}
