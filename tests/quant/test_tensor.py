import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.scheme import NumberFormat, parse
from quant.tensor import block_extremes, block_of, expand, pack, quantize, round_scale, scale_and_zero_point, unpack

BITS = st.sampled_from([2, 3, 4, 5, 6, 8])
FORMATS = st.builds(
    NumberFormat,
    bits=BITS,
    symmetric=st.booleans(),
    granularity=st.just("group"),
    group_size=st.sampled_from([1, 3, 16, 32]),
    scale_dtype=st.sampled_from(["float16", "float32"]),
)


@st.composite
def weights(draw):
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 70))
    magnitude = draw(st.sampled_from([1e-3, 0.05, 1.0, 300.0]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = (
        generator.standard_normal((rows, columns)) * magnitude + draw(st.sampled_from([0.0, 2.0, -2.0])) * magnitude
    )
    values[draw(st.integers(0, rows - 1))] *= draw(st.sampled_from([0.0, 1.0]))
    return torch.from_numpy(values.astype(np.float32))


def quantized(weight, format):
    return quantize(weight, format, block_of(format, tuple(weight.shape), (1, weight.shape[1])))


@given(weights(), FORMATS)
def test_the_round_trip_is_within_half_a_step(weight, format):
    result = quantized(weight, format)
    step = expand(result.scale, result.block, weight.shape)
    # An asymmetric range is shifted by up to half a step when its zero point is rounded; a scale that was rounded down
    # clips the largest code's worth of what it lost, and one too small for half precision loses up to its smallest.
    steps = 0.5 if format.symmetric else 1.0
    clipped = 2.0 ** (format.bits - format.scale_significant_bits)
    assert torch.all((result.dequantize() - weight).abs() <= (steps + clipped) * step + 2.0**-25 * 2**format.bits)


@given(weights(), FORMATS)
def test_codes_stay_in_their_range_and_zero_is_exact(weight, format):
    weight[:, 0] = 0.0
    result = quantized(weight, format)
    assert result.codes.min() >= format.lowest
    assert result.codes.max() <= format.highest
    assert torch.all(result.dequantize()[:, 0] == 0)


@given(weights(), FORMATS)
def test_scales_are_exact_in_their_storage_type(weight, format):
    result = quantized(weight, format)
    assert torch.equal(result.scale.to(getattr(torch, format.scale_dtype)).float(), result.scale)


@given(weights(), st.sampled_from([2, 3, 4]))
def test_up_to_four_bits_zero_point_times_scale_is_exact_in_half_precision(weight, bits):
    result = quantized(weight, NumberFormat(bits, False, "group", 32))
    product = result.zero_point.double() * result.scale.double()
    assert torch.equal(product.half().double(), product)


@given(weights(), FORMATS)
def test_quantizing_what_was_dequantized_changes_no_value(weight, format):
    once = quantized(weight, format)
    twice = torch.round(once.dequantize() / expand(once.scale, once.block, weight.shape))
    offset = 0 if once.zero_point is None else expand(once.zero_point.float(), once.block, weight.shape)
    assert torch.equal(twice + offset, once.codes.float())


@given(st.integers(0, 60), BITS, st.booleans(), st.integers(0, 2**32))
def test_unpack_undoes_pack(count, bits, signed, seed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    codes = np.random.default_rng(seed).integers(low, high, (count, 3)).astype(np.int8 if signed else np.uint8)
    packed = pack(torch.from_numpy(codes), bits)
    assert packed.numel() == -(-count * 3 * bits // 8)
    assert np.array_equal(unpack(packed, bits, (count, 3), signed).numpy(), codes)


def test_unpack_refuses_a_stream_of_the_wrong_length():
    with pytest.raises(ValueError, match="cannot hold"):
        unpack(torch.zeros(5, dtype=torch.uint8), 4, (3, 4), signed=False)


def test_asymmetric_groups_equal_a_float64_oracle():
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    format = NumberFormat(4, False, "group", 16, scale_dtype="float32")
    result = quantized(weight, format)
    values = weight.double().numpy()
    for row in range(5):
        for group, start in enumerate(range(0, 40, 16)):
            part = values[row, start : start + 16]
            low, high = min(part.min(), 0.0), max(part.max(), 0.0)
            scale = (high - low) / 15
            zero = np.clip(np.round(-low / scale), 0, 15)
            codes = np.clip(np.round(part / scale) + zero, 0, 15)
            assert result.zero_point[row, group] == zero
            np.testing.assert_allclose(result.scale[row, group], scale, rtol=1e-6)
            assert np.array_equal(result.codes[row, start : start + 16].numpy(), codes)


def test_finer_granularity_is_never_worse():
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 1, 16)[:, None]
    errors = [
        (quantized(weight, parse(word).linear).dequantize() - weight).norm()
        for word in ("int4_tensor", "int4_channel", "int4_g32")
    ]
    assert errors[0] > errors[1] > errors[2]


@settings(max_examples=30)
@given(weights())
def test_a_rounded_scale_is_the_nearest_of_its_significant_bits(weight):
    format = parse("int4").linear
    scale = weight.abs().clamp(max=1000)
    distance = (round_scale(scale, format) - scale).abs()
    assert torch.all(distance <= scale * (1 + 1e-6) * 2.0**-format.scale_significant_bits + 2.0**-20)


def test_a_dead_channel_is_all_zeros_and_finite():
    weight = torch.randn(4, 32)
    weight[2] = 0
    for word in ("int4", "int4_sym", "int2_channel"):
        result = quantized(weight, parse(word).linear)
        assert torch.all(result.dequantize()[2] == 0)
        assert torch.isfinite(result.scale).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_range_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        scale_and_zero_point(torch.tensor(-1.0), torch.tensor(bad), parse("int4").linear)


def test_a_scale_beyond_half_precision_is_refused():
    with pytest.raises(ValueError, match="half precision"):
        quantized(torch.full((1, 32), 1e7), parse("int4").linear)


def test_groups_that_do_not_divide_have_a_short_last_block():
    weight = torch.arange(10.0).reshape(1, 10)
    low, high = block_extremes(weight, (1, 4))
    assert high.tolist() == [[3.0, 7.0, 9.0]]
    assert low.tolist() == [[0.0, 0.0, 0.0]]
    assert expand(high, (1, 4), (1, 10)).tolist() == [[3.0] * 4 + [7.0] * 4 + [9.0] * 2]


def test_a_group_is_no_wider_than_the_row_it_lies_in():
    format = parse("int4").linear
    assert block_of(format, (6, 20), (1, 20)) == (1, 20)
    assert block_of(format, (6, 80), (1, 80)) == (1, 32)


def test_bits_are_counted_with_scales_and_zero_points():
    result = quantized(torch.randn(2, 64), parse("int4").linear)
    assert result.nbits == 2 * 64 * 4 + 4 * (16 + 4)
