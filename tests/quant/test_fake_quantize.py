import math
from dataclasses import replace

import pytest
import torch

from quant.fake_quantize import (
    Grid,
    LearnedActivation,
    LearnedRange,
    LearnedScales,
    LearnedWeight,
    PassingActivation,
    fake_quantize,
)
from quant.graph import ActivationQuantizer
from quant.scheme import NumberFormat, parse
from quant.tensor import block_of, expand, quantize, quantize_with, round_scale

GROUPED, PER_CHANNEL = parse("int3").linear, parse("int2").convolution
CASES = [
    pytest.param(GROUPED, (6, 64), (1, 32), id="groups"),
    pytest.param(GROUPED, (6, 40), (1, 32), id="a group that does not divide"),
    pytest.param(PER_CHANNEL, (6, 4, 3, 3), (1, 4, 3, 3), id="channels of a convolution"),
    pytest.param(parse("int8").convolution, (4, 3, 2, 2), (2, 1, 2, 2), id="channels of a transposed convolution"),
    pytest.param(NumberFormat(4, False, "tensor"), (5, 7), (5, 7), id="a tensor"),
    pytest.param(NumberFormat(8, False, "tensor", scale_dtype="float32"), (5, 7), None, id="an activation"),
]


def drawn(format, shape, block, dtype=torch.float64):
    """Values of which some are clipped, with scales and zero points as the tables may hold."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator, dtype=dtype)
    counts = () if block is None else [-(-size // within) for size, within in zip(shape, block, strict=True)]
    extent = format.highest if format.symmetric else format.highest - format.lowest
    scale = (0.7 + torch.rand(counts, generator=generator, dtype=dtype)) * 2 / extent
    scale = round_scale(scale, format).to(dtype)
    zero_point = None
    if not format.symmetric:
        zero_point = torch.randint(1, int(format.highest), counts, generator=generator).to(dtype)
    return values, scale, zero_point


def spread(per_block, block, shape):
    return per_block.expand(shape) if block is None else expand(per_block, block, shape).expand(shape)


@pytest.mark.parametrize(("format", "shape", "block"), CASES)
def test_it_is_what_the_codes_stand_for(format, shape, block):
    values, scale, zero_point = drawn(format, shape, block, torch.float32)
    found = fake_quantize(values, scale, zero_point, Grid(format, block))
    if block is None:
        quantizer = ActivationQuantizer("static", format, scale, zero_point.to(torch.uint8))
        assert torch.equal(found, quantizer(values))
    else:
        zeros = None if zero_point is None else zero_point.to(torch.uint8)
        assert torch.equal(found, quantize_with(values, scale, zeros, format, block).dequantize())


@pytest.mark.parametrize("estimator", ["lsq", "pact"])
@pytest.mark.parametrize(("format", "shape", "block"), CASES)
def test_gradients_are_those_of_the_papers(format, shape, block, estimator):
    """Element by element: LSQ's equations 3 and 5, LSQ+'s of the offset, PACT's of the clip."""
    values, scale, zero_point = drawn(format, shape, block)
    arriving = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs = [values.requires_grad_(), scale.requires_grad_()]
    inputs += [] if zero_point is None else [zero_point.requires_grad_()]
    fake_quantize(values, scale, zero_point, Grid(format, block, estimator)).backward(arriving)

    scales = spread(scale.detach(), block, shape)
    zeros = torch.zeros(shape, dtype=torch.float64) if zero_point is None else spread(zero_point.detach(), block, shape)
    owners = spread(torch.arange(scale.numel(), dtype=torch.float64).reshape(scale.shape), block, shape)
    by_values, by_scale, by_zero = torch.zeros(shape), [0.0] * scale.numel(), [0.0] * scale.numel()
    for index in (tuple(position.tolist()) for position in torch.ones(shape).nonzero()):
        step, owner, share = float(scales[index]), int(owners[index]), float(arriving[index])
        v = float(values[index].detach()) / step
        low, high = format.lowest - float(zeros[index]), format.highest - float(zeros[index])
        if low <= v <= high:
            by_values[index] = share
            by_scale[owner] += share * (round(v) - v) if estimator == "lsq" else 0.0
        else:
            by_scale[owner] += share * (low if v < low else high)
            by_zero[owner] -= share * step
    count = math.prod(block) if block else math.prod(shape[1:])
    factor = 1 / math.sqrt(count * format.highest)
    assert 0 < (by_values == 0).double().mean() < 1, "some values are clipped, some are not"
    torch.testing.assert_close(values.grad, by_values.double(), check_dtype=False)
    found = [one.grad.flatten() for one in inputs[1:]]
    for ours, theirs in zip(found, (by_scale, by_zero), strict=False):
        torch.testing.assert_close(ours, factor * torch.tensor(theirs, dtype=torch.float64))


@pytest.mark.parametrize("estimator", ["lsq", "pact"])
@pytest.mark.parametrize(("format", "shape", "block"), CASES)
def test_gradients_are_finite_differences_of_the_surrogate(format, shape, block, estimator):
    """The surrogate clips what was clipped; to the rest LSQ's adds what rounding added, PACT's adds nothing."""
    values, scale, zero_point = drawn(format, shape, block)
    arriving = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def in_steps(values, scale, zero_point):
        zero = 0 if zero_point is None else spread(zero_point, block, shape)
        return values / spread(scale, block, shape), format.lowest - zero, format.highest - zero

    steps, low, high = in_steps(values, scale, zero_point)
    added, below, above = steps.round() - steps, steps < low, steps > high
    added = added if estimator == "lsq" else torch.zeros_like(added)

    def surrogate(values, scale, zero_point):
        steps, low, high = in_steps(values, scale, zero_point)
        rounded = torch.where(below, low + 0 * steps, torch.where(above, high + 0 * steps, steps + added))
        return (rounded * spread(scale, block, shape) * arriving).sum()

    inputs = [one for one in (values, scale, zero_point) if one is not None]
    for one in inputs:
        one.requires_grad_()
    fake_quantize(values, scale, zero_point, Grid(format, block, estimator)).backward(arriving)
    factor = Grid(format, block).gradient_scale(torch.Size(shape))
    small = 1e-6
    for position, one in enumerate(inputs):
        expected = torch.zeros(one.numel(), dtype=torch.float64)
        for index in range(one.numel()):
            moved = [other.detach().clone() for other in inputs]
            ends = []
            for sign in (1, -1):
                moved[position].view(-1)[index] = one.detach().reshape(-1)[index] + sign * small
                ends.append(surrogate(*moved, *[None] * (3 - len(moved))))
            expected[index] = (ends[0] - ends[1]) / (2 * small)
        torch.testing.assert_close(one.grad.flatten(), expected * (factor if position else 1), rtol=1e-5, atol=1e-7)


def test_blocks_that_are_not_chosen_stay_what_they_are():
    values, scale, zero_point = drawn(GROUPED, (4, 64), (1, 32))
    chosen = torch.tensor([[True, False], [False, False], [True, True], [False, True]])
    grid = Grid(GROUPED, (1, 32))
    quantized = fake_quantize(values, scale, zero_point, grid)
    scale.requires_grad_(), values.requires_grad_(), zero_point.requires_grad_()
    found = fake_quantize(values, scale, zero_point, grid, chosen=chosen)
    where = expand(chosen, (1, 32), (4, 64))
    assert torch.equal(found, torch.where(where, quantized, values))
    found.sum().backward()
    assert (values.grad[~where] == 1).all()
    assert (values.grad[where] == 0).any()
    assert ((scale.grad != 0) == chosen).all()
    assert (zero_point.grad[~chosen] == 0).all()


@pytest.mark.parametrize(("format", "shape", "block"), CASES[:5])
def test_a_weight_starts_with_the_codes_it_is_given_as_near_as_it_can(format, shape, block):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    rounded = quantize(weight, format, block)
    moved = rounded.codes.clone().view(-1)
    moved[::3] = torch.where(moved[::3] > format.lowest, moved[::3] - 1, moved[::3])  # as GPTQ would, against rounding
    start = replace(rounded, codes=moved.reshape(shape))
    learned = LearnedWeight(weight, start)
    table = learned.table()
    assert torch.equal(table.codes, start.codes)
    assert torch.equal(table.scale, start.scale)
    assert torch.equal(learned(), start.dequantize())
    scale = expand(start.scale, block, shape).expand(shape)
    values = (learned.values * expand(learned.unit, block, shape)).detach()
    from_code = (values - start.dequantize()).abs() / scale
    assert from_code.max() <= 0.2 + 2e-3
    within = (start.codes > format.lowest) & (start.codes < format.highest)
    near = within & ((weight - start.dequantize()).abs() < 0.2 * scale)
    assert near.any()
    torch.testing.assert_close(values[near], weight[near])


@pytest.mark.parametrize("chosen", [None, torch.tensor([[True, False], [False, True]])])
def test_values_in_units_mean_the_same_and_get_gradients_in_them(chosen):
    values, scale, zero_point = drawn(GROUPED, (2, 64), (1, 32))
    unit = torch.tensor([[2.0, 0.5], [4.0, 8.0]], dtype=torch.float64)
    spread_unit, grid = expand(unit, (1, 32), (2, 64)), Grid(GROUPED, (1, 32))
    plain = [one.clone().requires_grad_() for one in (values, scale, zero_point)]
    scaled = [one.clone().requires_grad_() for one in (values / spread_unit, scale, zero_point)]
    expected, found = fake_quantize(*plain, grid, None, chosen), fake_quantize(*scaled, grid, unit, chosen)
    assert torch.equal(expected, found)
    arriving = torch.randn(2, 64, dtype=torch.float64)
    expected.backward(arriving)
    found.backward(arriving)
    torch.testing.assert_close(scaled[0].grad, plain[0].grad * spread_unit)
    for ours, theirs in zip(scaled[1:], plain[1:], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("weight", [torch.zeros(4, 32), torch.ones(4, 32), torch.full((1, 32), -1e-6)])
def test_a_weight_without_extent_keeps_its_codes(weight):
    for format in (GROUPED, parse("int4_sym").linear):
        start = quantize(weight, format, block_of(format, tuple(weight.shape), (1, 32)))
        learned = LearnedWeight(weight, start)
        assert torch.equal(learned(), start.dequantize())
        learned().sum().backward()
        assert torch.isfinite(learned.range.stretch.grad).all()


def test_scales_and_zero_points_are_always_such_as_can_be_stored():
    start = quantize(torch.randn(8, 64, generator=torch.Generator().manual_seed(3)), GROUPED, (1, 32))
    learned = LearnedRange(start.scale, start.zero_point, GROUPED)
    with torch.no_grad():
        learned.stretch += torch.linspace(-3, 3, 16).reshape(8, 2)
        learned.shift += torch.linspace(-2, 2, 16).reshape(8, 2)
    learned.keep_valid()
    scale, zero_point = learned()
    assert torch.equal(round_scale(scale, GROUPED), scale)
    assert (scale > 0).all()
    assert torch.equal(zero_point.round().clamp(0, 7), zero_point)
    assert len(zero_point.unique()) > 2
    (scale.sum() + zero_point.sum()).backward()
    assert (learned.stretch.grad > 0).all(), "gradients pass the rounding, also at the ends"
    assert (learned.shift.grad == 7).all()


@pytest.mark.parametrize("word", ["int3", "int4_sym"])
def test_codes_that_stay_give_the_exact_gradient_of_their_scales(word):
    format = parse(word).linear
    start = quantize(torch.randn(4, 64, generator=torch.Generator().manual_seed(4)), format, (1, 32))
    learned, arriving = LearnedScales(start), torch.randn(4, 64)
    assert torch.equal(learned(), start.dequantize())
    learned().backward(arriving)
    steps = (start.dequantize() / expand(start.scale, (1, 32), (4, 64)) * arriving).reshape(4, 2, 32).sum(-1)
    factor = learned.grid.gradient_scale(torch.Size((4, 64)))
    torch.testing.assert_close(learned.range.stretch.grad, factor * start.scale * steps)
    if not format.symmetric:
        assert learned.range.shift.grad is None
    with torch.no_grad():
        learned.range.stretch *= 1.3
    table = learned.table()
    assert torch.equal(table.codes, start.codes)
    assert torch.equal(learned(), table.dequantize())
    assert not torch.equal(table.scale, start.scale)


@pytest.mark.parametrize("scaled", [False, True])
def test_activations_start_as_they_are(scaled):
    values = torch.randn(6, 16, generator=torch.Generator().manual_seed(5)) * 3
    static, dynamic = parse("int8", "static").activations, parse("int8", "dynamic").activations
    input_scale = torch.linspace(0.5, 2, 16) if scaled else None
    fixed = ActivationQuantizer("static", static, torch.tensor(0.02), torch.tensor(100, dtype=torch.uint8), input_scale)
    learned = LearnedActivation(fixed, "lsq")
    assert torch.equal(learned(values), fixed(values))
    assert learned.table().same_as(fixed)
    for quantizer in (ActivationQuantizer("dynamic", dynamic, input_scale=input_scale),
                      ActivationQuantizer("none", input_scale=input_scale)):  # fmt: skip
        moving = values.clone().requires_grad_()
        found = PassingActivation(quantizer)(moving)
        assert torch.equal(found, quantizer(values))
        found.sum().backward()
        assert torch.equal(moving.grad, (input_scale if scaled else torch.ones(16)).expand(6, 16))
