"""The int8 kernels against the same arithmetic on integers in numpy."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from quant.backends import _torch_kernels as kernels
from quant.backends._torch_kernels import UNBOUNDED, Affine, Geometry
from quant.scheme import NumberFormat
from quant.tensor import quantize

PER_CHANNEL = NumberFormat(8, symmetric=True, granularity="channel", scale_dtype="float32")
PER_TOKEN = NumberFormat(8, symmetric=True, granularity="token", scale_dtype="float32")
SOURCE = Affine(0.031, 113)
TARGET = Affine(0.27, 90)
BOUNDS = [UNBOUNDED, (0.0, math.inf), (0.0, 6.0), (-1.5, 0.7), (-math.inf, 2.0)]

pytestmark = pytest.mark.skipif(kernels.unusable() is not None, reason=f"int8 kernels: {kernels.unusable()}")


def random_weight(*shape):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
    return quantize(values, PER_CHANNEL, (1, *shape[1:]))


def random_codes(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(len(shape)))


def values_of(codes, affine):
    return (codes.double() - affine.zero_point) * affine.scale


def exact_linear(codes, weight, bias, source):
    real = weight.codes.double() * weight.scale.double()
    return values_of(codes, source) @ real.T + (0 if bias is None else bias.double())


def assert_codes(got, exact, target, bounds):
    """At most one step apart, and hardly ever: only where the exact value lies on the edge between two codes."""
    expected = (exact.clamp(*bounds) / target.scale).round().add(target.zero_point).clamp(0, 255)
    difference = (got.double() - expected).abs()
    assert got.dtype == torch.uint8
    assert difference.max() <= 1
    assert difference.mean() < 0.01


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (1, 7, 5), (3, 384, 10), (33, 65, 17)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_static_linear_is_exact(rows, inputs, outputs, has_bias):
    weight, codes = random_weight(outputs, inputs), random_codes(rows, inputs)
    bias = torch.randn(outputs) if has_bias else None
    exact = exact_linear(codes, weight, bias, SOURCE)
    got = kernels.static_linear(weight, bias, SOURCE, UNBOUNDED)(codes)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-4)


def test_static_linear_keeps_leading_dimensions_and_reads_any_memory_layout():
    weight, codes = random_weight(5, 6), random_codes(2, 6, 4).transpose(1, 2)
    got = kernels.static_linear(weight, None, SOURCE, UNBOUNDED)(codes)
    assert got.shape == (2, 4, 5)
    torch.testing.assert_close(got.double(), exact_linear(codes, weight, None, SOURCE), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_requantizing_linear_clamps_and_rounds_once(bounds):
    weight, codes, bias = random_weight(31, 40), random_codes(9, 40), torch.randn(31)
    got = kernels.requantizing_linear(weight, bias, SOURCE, TARGET, bounds, [9, 40])(codes)
    assert_codes(got, exact_linear(codes, weight, bias, SOURCE), TARGET, bounds)


GEOMETRIES = {
    "plain": (4, 6, Geometry([1, 1], [0, 0], [1, 1], 1, [2, 4, 9, 11]), 3),
    "one by one": (5, 7, Geometry([1, 1], [0, 0], [1, 1], 1, [1, 5, 3, 3]), 1),
    "padded": (3, 8, Geometry([2, 1], [1, 2], [1, 1], 1, [2, 3, 8, 8]), 3),
    "depthwise": (6, 6, Geometry([1, 1], [1, 1], [1, 1], 6, [2, 6, 7, 7]), 3),
    "two outputs per channel": (3, 6, Geometry([1, 1], [1, 1], [1, 1], 3, [1, 3, 6, 6]), 3),
    "grouped and dilated": (8, 12, Geometry([1, 1], [2, 2], [2, 2], 4, [1, 8, 9, 9]), 3),
    "one dimension": (4, 6, Geometry([2], [2], [1], 2, [3, 4, 21]), 5),
}


def run_convolution(name, source, target, bounds, shift=0):
    inputs, outputs, shape, kernel = GEOMETRIES[name]
    dimensions = len(shape.typical) - 2
    weight = random_weight(outputs, inputs // shape.groups, *[kernel] * dimensions)
    codes, bias = random_codes(shape.typical[0] + shift, *shape.typical[1:]), torch.randn(outputs)
    real = weight.codes.double() * weight.scale.double()
    reference = F.conv2d if dimensions == 2 else F.conv1d
    exact = reference(values_of(codes, source), real, bias.double(), *shape[:-1])
    return kernels.convolution(weight, bias, shape, source, target, bounds)(codes), exact


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("zero_point", [0, 113])
def test_convolution_is_exact(name, zero_point):
    got, exact = run_convolution(name, Affine(0.031, zero_point), None, UNBOUNDED)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("name", "bounds"), list(itertools.product(["padded", "depthwise", "one dimension"], BOUNDS)))
def test_convolution_writes_codes_of_the_clamped_values(name, bounds):
    assert_codes(*run_convolution(name, SOURCE, TARGET, bounds), TARGET, bounds)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_convolution_clamps_floats(bounds):
    got, exact = run_convolution("padded", SOURCE, None, bounds)
    torch.testing.assert_close(got.double(), exact.clamp(*bounds), rtol=1e-5, atol=1e-4)


def test_weights_packed_for_one_batch_serve_another():
    got, exact = run_convolution("padded", SOURCE, None, UNBOUNDED, shift=3)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_residual_sum_reads_all_codes_as_unsigned(bounds):
    first, second = Affine(0.05, 120), Affine(0.03, 7)
    left, right = random_codes(2, 3, 16, 16), random_codes(2, 3, 16, 16).flip(3).contiguous()
    exact = values_of(left, first) + values_of(right, second)
    got = kernels.residual_sum(first, second, None, bounds)(left, right)
    torch.testing.assert_close(got.double(), exact.clamp(*bounds), rtol=1e-5, atol=1e-4)
    channels_last = left.contiguous(memory_format=torch.channels_last)
    assert_codes(kernels.residual_sum(first, second, TARGET, bounds)(channels_last, right), exact, TARGET, bounds)


def test_static_codes_round_to_nearest_and_saturate():
    values = torch.tensor([-100.0, -0.31, 0.0, 0.04, 0.23, 100.0])
    assert kernels.static_codes(Affine(0.1, 3), None)(values).tolist() == [0, 0, 3, 3, 5, 255]
    scaled = kernels.static_codes(Affine(0.1, 3), torch.full((6,), 2.0))(values)
    assert scaled.tolist() == [0, 0, 3, 4, 8, 255]
    assert values[0] == -100.0


def test_token_linear_quantizes_each_row_between_its_own_extremes():
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((2, 5, 40)) * np.array([1e-3, 1.0, 50.0, 1e4, 1.0])[:, None]
    weight, bias = random_weight(7, 40), torch.randn(7)
    values = torch.from_numpy(rows.astype(np.float32))
    before = values.clone()
    got = kernels.run_time_linear(weight, bias, UNBOUNDED)(kernels.run_time_codes(PER_TOKEN, None)(values))
    scale = np.abs(rows).max(-1, keepdims=True) / 127
    quantized = np.round(rows / scale) * scale
    exact = quantized @ (weight.codes.double() * weight.scale.double()).numpy().T + bias.double().numpy()
    assert np.all(np.abs(got.numpy() - exact) <= 1e-4 * np.abs(exact).max(-1, keepdims=True))
    assert torch.equal(values, before)


def test_asymmetric_codes_of_a_row_stand_for_its_values_within_half_a_step():
    rows = torch.tensor([[0.0, 1.0, 255.0], [-1.0, -3.0, -2.0], [5.0, 6.0, 5.0], [0.0, 0.0, 0.0]])
    codes = kernels.run_time_codes(NumberFormat(8, False, "token", scale_dtype="float32"), None)(rows)
    real = (codes.codes + codes.shift) * codes.scale
    steps = torch.tensor([[255.0], [3.0], [6.0], [0.0]]) / 255  # ranges always hold zero
    torch.testing.assert_close(codes.scale[:3], steps[:3])
    assert torch.all((real - rows).abs() <= steps / 2 + 1e-6)


def test_a_row_of_zeros_gives_the_bias_and_a_row_with_nan_spoils_only_itself():
    weight, bias = random_weight(3, 8), torch.tensor([0.5, -1.0, 2.0])
    rows = torch.randn(3, 8)
    rows[0], rows[1, 2] = 0.0, math.nan
    got = kernels.run_time_linear(weight, bias, UNBOUNDED)(kernels.run_time_codes(PER_TOKEN, None)(rows))
    assert torch.equal(got[0], bias)
    assert got[1].isnan().all()
    assert got[2].isfinite().all()


def test_token_linear_applies_input_scale_and_bounds():
    weight, rows, factors = random_weight(3, 8), torch.randn(4, 8), torch.rand(8) + 0.5
    linear = kernels.run_time_linear(weight, None, (0.0, 1.0))
    scaled = linear(kernels.run_time_codes(PER_TOKEN, factors)(rows))
    assert torch.equal(scaled, linear(kernels.run_time_codes(PER_TOKEN, None)(rows * factors)))
    assert scaled.min() >= 0
    assert scaled.max() <= 1


@pytest.mark.parametrize(
    ("affine", "bounds", "implied"),
    [
        (Affine(6 / 255, 0), (0.0, 6.0), True),
        (Affine(6 / 255, 0), (0.0, math.inf), True),
        (Affine(7 / 255, 0), (0.0, 6.0), False),
        (Affine(5 / 255, 0), (0.0, 6.0), True),
        (Affine(6 / 255, 1), (0.0, 6.0), False),
        (Affine(0.1, 128), UNBOUNDED, True),
    ],
)
def test_saturation_replaces_a_clamp_only_where_the_range_fits(affine, bounds, implied):
    assert affine.implies(bounds) is implied


def test_a_build_without_onednn_is_not_used(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "no oneDNN" in kernels.unusable.__wrapped__()


def test_overflowing_kernels_are_found_out(monkeypatch):
    exact = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda left, right: exact(left, right).clamp(-(2**15), 2**15 - 1))
    assert "overflow" in kernels.unusable.__wrapped__()


def test_codes_of_seven_bits_do_not_overflow_where_those_of_eight_do(monkeypatch):
    def in_sixteen_bits(left, right):
        pairs = left.int().unflatten(1, (-1, 2)).unsqueeze(-1) * right.int().unflatten(0, (-1, 2))
        return pairs.sum(2).clamp(-(2**15), 2**15 - 1).sum(1, dtype=torch.int32)

    monkeypatch.setattr(torch, "_int_mm", in_sixteen_bits)
    assert "int8_reduced" in kernels.unusable.__wrapped__()
    assert kernels._multiplies_exactly(63)


def test_refusing_kernels_are_reported_in_one_line(monkeypatch):
    def refuse(left, right):
        raise RuntimeError("not implemented\nsecond line")

    monkeypatch.setattr(torch, "_int_mm", refuse)
    assert kernels.unusable.__wrapped__().endswith("(not implemented)")
