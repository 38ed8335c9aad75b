"""Properties that quantized numbers have whatever the numbers are: of tensors, activations, observers and methods."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import quant
from quant.calibrate import CALIBRATORS, range_of
from quant.formats import CODEBOOKS
from quant.graph import ActivationQuantizer
from quant.scheme import CODEBOOK_FORMATS, NumberFormat, parse
from quant.tensor import (
    block_of,
    expand,
    pack,
    quantize,
    quantize_with,
    restored,
    scale_and_zero_point,
    stored_parts,
    unpack,
)

BITS = st.sampled_from([2, 3, 4, 5, 6, 8])
SEEDS = st.integers(0, 2**32 - 1)
INTEGERS = st.builds(
    partial(NumberFormat, granularity="group"),
    bits=BITS,
    symmetric=st.booleans(),
    group_size=st.sampled_from([1, 5, 16, 32]),
    scale_dtype=st.sampled_from(["float16", "float32"]),
)
FORMATS = st.one_of(INTEGERS, st.sampled_from(list(CODEBOOK_FORMATS.values())))
few = settings(max_examples=40)


@st.composite
def weights(draw, fewest_rows=1, fewest_columns=1):
    """Matrices of all shapes, some of whose rows are dead, tiny or far larger than the others."""
    generator = np.random.default_rng(draw(SEEDS))
    shape = draw(st.integers(fewest_rows, 9)), draw(st.integers(fewest_columns, 70))
    values = generator.standard_normal(shape) + draw(st.sampled_from([0.0, 3.0, -3.0]))
    values *= generator.choice([0.0, 1e-3, 1.0, 50.0], (shape[0], 1), p=[0.1, 0.2, 0.5, 0.2])
    return torch.from_numpy(values.astype(np.float32))


@st.composite
def grids(draw):
    """An integer format with a scale and zero point that cover some range: format, scale, zero point, low, high."""
    format = draw(INTEGERS)
    low, high = -draw(st.floats(0, 100, width=32)), draw(st.floats(0, 100, width=32))
    scale, zero_point = scale_and_zero_point(torch.tensor(low), torch.tensor(high), format)
    offset = 0 if zero_point is None else int(zero_point)
    lowest, highest = ((bound - offset) * float(scale) for bound in (format.lowest, format.highest))
    return format, scale, zero_point, lowest, highest


def quantized(weight, format):
    return quantize(weight, format, block_of(format, tuple(weight.shape), (1, weight.shape[1])))


def again(values, tensor):
    """Round ``values`` in the scales that ``tensor`` has."""
    return quantize_with(values, tensor.scale, tensor.zero_point, tensor.format, tensor.block)


@given(grids(), SEEDS)
def test_what_a_grid_covers_is_off_by_half_a_step_at_most(grid, seed):
    format, scale, zero_point, low, high = grid
    values = torch.from_numpy(np.random.default_rng(seed).uniform(low, high, (1, 50)).astype(np.float32))
    scale, zero_point = (None if part is None else part.reshape(1, 1) for part in (scale, zero_point))
    found = quantize_with(values, scale, zero_point, format, (1, 50)).dequantize()
    assert torch.all((found - values).abs() <= scale * (0.5 + 1e-4))


@given(grids(), SEEDS)
def test_what_a_grid_does_not_cover_goes_to_its_end(grid, seed):
    format, scale, zero_point, low, high = grid
    beyond = torch.from_numpy(np.random.default_rng(seed).uniform(1, 9, (1, 20)).astype(np.float32)) * scale
    scale, zero_point = (None if part is None else part.reshape(1, 1) for part in (scale, zero_point))
    for values, end in ((high + beyond, high), (low - beyond, low)):
        found = quantize_with(values, scale, zero_point, format, (1, 20)).dequantize()
        torch.testing.assert_close(found, torch.full_like(found, end), rtol=1e-6, atol=0)


@given(weights(), FORMATS)
def test_rounding_what_was_rounded_changes_nothing(weight, format):
    once = quantized(weight, format)
    twice = again(once.dequantize(), once)
    assert torch.equal(twice.dequantize(), once.dequantize())


@given(weights(), FORMATS)
def test_larger_weights_of_a_block_have_no_smaller_values(weight, format):
    tensor = quantized(weight, replace(format, granularity="channel", group_size=None))
    ordered = tensor.dequantize().gather(1, weight.argsort(1))
    assert torch.all(ordered.diff(dim=1) >= 0)


@given(weights(), FORMATS, st.integers(-3, 3))
def test_twice_the_weights_have_the_same_codes_and_twice_the_scales(weight, format, power):
    tensor, scaled = quantized(weight, format), quantized(weight * 2.0**power, format)
    normal = expand((tensor.scale > 2.0**-10) | (tensor.scale == 1), tensor.block, weight.shape).expand(weight.shape)
    assert torch.equal(scaled.codes[normal], tensor.codes[normal])
    assert torch.equal(scaled.dequantize()[normal], tensor.dequantize()[normal] * 2.0**power)


@given(weights(), st.sampled_from(["int8_sym", "int4_sym", "int3_sym", "mxfp4", "nvfp4", "e4m3"]))
def test_the_opposite_weights_have_the_opposite_values_in_symmetric_formats(weight, word):
    format = parse(word).linear
    found, opposite = quantized(weight, format).dequantize(), quantized(-weight, format).dequantize()
    assert torch.equal(found, -opposite)


@given(weights(fewest_rows=2), FORMATS, SEEDS)
def test_permuted_rows_have_permuted_codes(weight, format, seed):
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(weight)))
    tensor, permuted = quantized(weight, format), quantized(weight[order], format)
    assert torch.equal(permuted.codes, tensor.codes[order])
    assert torch.equal(permuted.dequantize(), tensor.dequantize()[order])


@given(weights(fewest_rows=2), INTEGERS)
def test_rows_are_quantized_as_each_alone(weight, format):
    together = quantized(weight, format)
    alone = [quantized(row[None], format) for row in weight]
    assert torch.equal(together.codes, torch.cat([tensor.codes for tensor in alone]))
    assert torch.equal(together.scale, torch.cat([tensor.scale for tensor in alone]))


@given(weights(), FORMATS)
def test_what_is_stored_is_what_was_made(weight, format):
    tensor = quantized(weight, format)
    codes = unpack(pack(tensor.codes, format.bits), format.bits, tuple(weight.shape), format.signed)
    read = restored(codes, stored_parts(tensor), tensor.zero_point, tensor.block, format)
    assert torch.equal(read.codes, tensor.codes)
    assert torch.equal(read.dequantize(), tensor.dequantize())
    assert read.nbits == tensor.nbits


@given(st.lists(st.integers(0, 255), max_size=30), BITS)
def test_a_packed_stream_is_the_codes_written_one_after_the_other(codes, bits):
    codes = [code % 2**bits for code in codes]
    number = sum(code << (bits * index) for index, code in enumerate(codes))
    stream = number.to_bytes(-(-len(codes) * bits // 8), "little")
    assert bytes(pack(torch.tensor(codes, dtype=torch.uint8), bits).tolist()) == stream


@given(st.sampled_from(sorted(CODEBOOKS)), SEEDS)
def test_no_entry_of_a_codebook_is_nearer_than_the_chosen_one(name, seed):
    book = CODEBOOKS[name]
    entries = book.entries[book.codes.int()]
    generator = np.random.default_rng(seed)
    values = torch.from_numpy((generator.standard_normal(200) * float(entries.max()) / 3).astype(np.float32))
    chosen = book.entries[book.nearest(values).int()]
    nearest = (entries.double() - values[:, None].double()).abs().amin(1)
    assert torch.equal((chosen.double() - values.double()).abs(), nearest)


ACTIVATIONS = {
    "static": parse("int8", "static").activations,
    "token": parse("int8", "dynamic", "token").activations,
    "group": parse("w4a8", "dynamic").activations,
}


def quantizer(kind, values):
    format = ACTIVATIONS[kind]
    if kind != "static":
        return ActivationQuantizer("dynamic", format)
    return ActivationQuantizer("static", format, *scale_and_zero_point(values.min(), values.max(), format))


@given(weights(), st.sampled_from(sorted(ACTIVATIONS)))
def test_activations_are_off_by_half_a_step_at_most_and_keep_their_order(values, kind):
    found = quantizer(kind, values)(values)
    if kind == "static":
        step = quantizer(kind, values).scale
        # The range is shifted by up to half a step where its zero point is rounded.
        assert torch.all((found - values).abs() <= step * 1.001)
    else:
        assert torch.all((found - values).abs() <= values.abs().amax(-1, keepdim=True) / 254 * 1.001)
    if kind != "group":
        assert torch.all(found.gather(1, values.argsort(1)).diff(dim=1) >= 0)


@given(weights(fewest_rows=2), st.sampled_from(sorted(ACTIVATIONS)), SEEDS)
def test_a_token_is_quantized_whatever_else_is_in_its_batch(values, kind, seed):
    apply = quantizer(kind, values)
    whole = apply(values)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(values)))
    assert torch.equal(torch.cat([apply(row[None]) for row in values]), whole)
    assert torch.equal(apply(values[order]), whole[order])


@given(weights(), st.sampled_from(["token", "group"]), st.integers(-4, 4))
def test_run_time_ranges_follow_the_size_of_what_they_see(values, kind, power):
    apply = quantizer(kind, values)
    torch.testing.assert_close(apply(values * 2.0**power), apply(values) * 2.0**power, rtol=1e-6, atol=0)


@few
@given(weights(fewest_columns=2), st.sampled_from(CALIBRATORS), SEEDS)
def test_a_range_depends_on_the_values_not_on_their_order_and_holds_zero_or_them(values, calibrator, seed):
    format = ACTIVATIONS["static"]
    flat = values.flatten()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(flat)))
    low, high = range_of(flat, calibrator, format)
    assert (low, high) == range_of(flat[order], calibrator, format)
    assert min(flat.min().item(), 0) <= low
    assert low <= max(high.item(), 0)
    assert high <= max(flat.max().item(), 0) + 1e-6


@few
@given(weights(fewest_columns=2), st.sampled_from(CALIBRATORS))
def test_twice_the_values_have_twice_the_range(values, calibrator):
    format = ACTIVATIONS["static"]
    once, twice = range_of(values, calibrator, format), range_of(2 * values, calibrator, format)
    for bound, doubled in zip(once, twice, strict=True):
        torch.testing.assert_close(doubled, 2 * bound, rtol=1e-5, atol=1e-12)


WEIGHT_METHODS = ("rtn", "mse", "hqq", "gptq", "awq", "palette")


@pytest.fixture(scope="module")
def batch():
    """Inputs [64, 24] whose channels differ in size."""
    values = torch.randn(64, 24, generator=torch.Generator().manual_seed(0))
    return values * torch.linspace(0.2, 3, 24)


def linear(weight, bias=None):
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return quant.capture(nn.Sequential(layer).eval(), (torch.randn(2, weight.shape[1]),))


def answers(graph, method, batches, inputs):
    bits = "lut4" if method == "palette" else "int4_g8"
    return quant.simulate(quant.quantize(graph, method, bits, batches))(inputs)[0]


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_permuted_output_channels_are_quantized_to_permuted_ones(method, batch):
    weight = torch.randn(20, 24, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    expected = answers(linear(weight), method, [(batch,)], batch)[:, order]
    found = answers(linear(weight[order]), method, [(batch,)], batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_permuted_groups_of_input_channels_change_no_output(method, batch):
    weight = torch.randn(20, 24, generator=torch.Generator().manual_seed(1))
    order = torch.arange(24).reshape(3, 8)[[2, 0, 1]].flatten()
    expected = answers(linear(weight), method, [(batch,)], batch)
    permuted = batch[:, order]
    found = answers(linear(weight[:, order]), method, [(permuted,)], permuted)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_calibration_in_other_batches_gives_the_same_weights(method, batch):
    graph = linear(torch.randn(20, 24, generator=torch.Generator().manual_seed(1)))
    expected = answers(graph, method, [(batch,)], batch)
    divided = [(part,) for part in batch.split([1, 30, 33])]
    # Sums in another order may move a weight that lies between two codes.
    found = answers(graph, method, divided, batch)
    assert (found - expected).norm() <= (0.05 if method == "awq" else 1e-3) * expected.norm()


@pytest.mark.parametrize("method", ["rtn", "mse", "hqq", "gptq"])
def test_a_layer_twice_as_large_is_quantized_to_twice_the_layer(method, batch):
    weight = torch.randn(20, 24, generator=torch.Generator().manual_seed(1))
    once, twice = (answers(linear(factor * weight), method, [(batch,)], batch) for factor in (1, 2))
    torch.testing.assert_close(twice, 2 * once, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["static_plain", "static_percentile"])
def test_ranges_do_not_depend_on_how_samples_are_divided_or_ordered(method, batch):
    graph = linear(torch.randn(20, 24, generator=torch.Generator().manual_seed(1)))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    first, *others = (
        quant.quantize(graph, method, "int8", [(part,) for part in parts])
        for parts in ([batch], batch.split(5), batch[order].split([40, 24]))
    )
    for other in others:
        assert all(quantizer.same_as(other.activations[edge]) for edge, quantizer in first.activations.items())


@pytest.mark.parametrize(("method", "bits"), [("rtn", "int4"), ("static", "int8"), ("dynamic", "int8")])
def test_a_batch_in_parts_has_the_same_answers(residual_graph, method, bits):
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    module = quant.simulate(quant.quantize(residual_graph, method, bits, [(images,)]))
    whole, parts = module(images)[0], torch.cat([module(part)[0] for part in images.split([1, 2, 3])])
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-2 if bits == "int8" else 1e-5)
