"""Packing against MLX's own quantizer, and what its packing cannot express."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.scheme import NumberFormat, parse
from quant.tensor import QuantizedTensor, block_of, quantize

weights = pytest.importorskip("quant.backends._mlx_weights")
mx = weights.mx

WIDTHS = (2, 3, 4, 5, 6, 8)


def grouped(bits, group_size, symmetric=False, shape=(7, 256), scale_dtype="float16"):
    format = NumberFormat(bits, symmetric, "group", group_size, scale_dtype)
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(bits)) * 0.05
    values[3] = 0
    return quantize(values, format, (1, min(group_size, shape[1])))


def stored(tensor, name="layer.weight", taken=()):
    entry, tensors = weights.encode(name, tensor, taken)
    return entry, {name: mx.array(value.numpy()) for name, value in tensors.items()}


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_words_are_those_of_mlx(bits, group_size):
    codes, scales, biases = mx.quantize(mx.random.normal((5, 256)), group_size, bits)
    wide = [np.repeat(np.array(part), group_size, 1) for part in (scales, biases)]
    values = np.array(mx.dequantize(codes, scales, biases, group_size, bits))
    plain = torch.from_numpy(np.round((values - wide[1]) / wide[0]).astype(np.uint8))
    scale = torch.from_numpy(np.array(scales))
    tensor = QuantizedTensor(
        plain,
        scale,
        torch.zeros_like(scale, dtype=torch.uint8),
        None,
        (1, group_size),
        grouped(bits, group_size).format,
    )
    _, arrays = stored(tensor)
    assert arrays["layer.weight"].dtype == mx.uint32
    np.testing.assert_array_equal(np.array(arrays["layer.weight"]), np.array(codes))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
def test_mlx_dequantizes_to_exactly_the_same_weights(bits, symmetric):
    tensor = grouped(bits, 32, symmetric)
    entry, arrays = stored(tensor)
    assert entry["form"] == "affine"
    scales, biases = (arrays[f"layer.{part}"].astype(mx.float32) for part in ("scales", "biases"))
    values = mx.dequantize(arrays["layer.weight"], scales, biases, 32, bits)
    np.testing.assert_array_equal(np.array(values), tensor.dequantize().numpy())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_up_to_four_bits_scales_and_biases_are_half_precision(bits):
    _, arrays = stored(grouped(bits, 32))
    assert arrays["layer.scales"].dtype == arrays["layer.biases"].dtype == mx.float16


def test_what_half_precision_cannot_hold_is_stored_in_single():
    _, arrays = stored(grouped(8, 32))
    assert arrays["layer.scales"].dtype == arrays["layer.biases"].dtype == mx.float32


@pytest.mark.parametrize("bits", WIDTHS)
def test_packed_products_equal_dequantized_ones(bits):
    entry, arrays = stored(grouped(bits, 64))
    packed = weights.decode(entry, arrays, mx.float32)
    x = mx.random.normal((2, 3, 256))
    products = np.array(x @ packed.dequantize().T)
    np.testing.assert_allclose(np.array(packed.multiply(x)), products, atol=1e-5 * np.abs(products).max())
    indices = mx.array([[0, 6], [3, 3]])
    np.testing.assert_array_equal(np.array(packed.rows(indices)), np.array(packed.dequantize()[indices]))


def floats(word, shape=(7, 256)):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(3)) * 0.05
    format = parse(word).linear
    return quantize(values, format, block_of(format, shape, (1, shape[1])))


@pytest.mark.parametrize("word", weights.MICROSCALING)
def test_floats_are_stored_as_mlx_quantizes_them(word):
    tensor = floats(word)
    entry, arrays = stored(tensor)
    assert entry["form"] == word
    shared = arrays["layer.shared"].item() if "layer.shared" in arrays else 1.0
    assert (shared != 1) == (word == "nvfp4")
    values = torch.randn(7, 256, generator=torch.Generator().manual_seed(3)) * 0.05 / shared
    codes, scales = mx.quantize(mx.array(values.numpy()), mode=word)
    assert mx.array_equal(arrays["layer.weight"], codes)
    assert mx.array_equal(arrays["layer.scales"], scales)


@pytest.mark.parametrize("word", weights.MICROSCALING)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_packed_floats_multiply_as_their_values(word, dtype):
    tensor = floats(word)
    entry, arrays = stored(tensor)
    packed = weights.decode(entry, arrays, dtype)
    values = tensor.dequantize().numpy()
    dequantized = packed.dequantize()
    assert dequantized.dtype == dtype
    np.testing.assert_allclose(np.array(dequantized), values, rtol=0 if dtype == mx.float32 else 1e-3)
    indices = mx.array([[0, 6], [3, 3]])
    np.testing.assert_array_equal(np.array(packed.rows(indices)), np.array(dequantized[indices]))
    x = mx.random.normal((2, 3, 256)).astype(dtype)
    products = np.array(x).astype(np.float32) @ values.T
    tolerance = 1e-5 if dtype == mx.float32 else 5e-3
    np.testing.assert_allclose(np.array(packed.multiply(x)), products, atol=tolerance * np.abs(products).max())


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (floats("nf4"), "normal floats"),
        (floats("e4m3"), "floats per channel"),
        (floats("mxfp4", (7, 40)), "floats in a group that does not divide"),
        (floats("nvfp4", (5, 24)), "a short group with scales of 8 bits"),
        (grouped(4, 48), "a group size MLX does not know"),
        (grouped(4, 32, shape=(7, 40)), "a group that does not divide"),
        (grouped(4, 256), "groups larger than MLX's"),
        (quantize(torch.randn(5, 96), NumberFormat(4, True, "channel"), (1, 96)), "per channel"),
        (quantize(torch.randn(5, 64), NumberFormat(5, False, "tensor"), (5, 64)), "per tensor"),
        (quantize(torch.randn(4, 2, 3, 3), NumberFormat(3, True, "channel"), (1, 2, 3, 3)), "a convolution"),
        (quantize(torch.randn(4, 3, 3, 3), NumberFormat(8, True, "channel"), (2, 1, 3, 3)), "transposed convolution"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_the_rest_is_stored_as_codes(tensor, reason):
    entry, arrays = stored(tensor)
    assert entry["form"] == "codes"
    assert torch.equal(weights.decode(entry, arrays, mx.float32), tensor.dequantize())
    per_byte = 2 if tensor.format.bits <= 4 else 1
    assert arrays["layer.weight"].nbytes == -(-tensor.codes.numel() // per_byte)


def test_a_palette_is_stored_with_its_codebook():
    format = NumberFormat(4, False, "channel", codebook="learned")
    codes = torch.randint(0, 16, (6, 32), dtype=torch.uint8)
    tensor = QuantizedTensor(
        codes, torch.rand(6, 1).half().float(), None, torch.randn(16).half().float(), (1, 32), format
    )
    entry, arrays = stored(tensor)
    assert torch.equal(weights.decode(entry, arrays, mx.float32), tensor.dequantize())


def test_names_are_those_of_mlx_modules_unless_taken():
    tensor = grouped(4, 32)
    assert set(stored(tensor)[1]) == {"layer.weight", "layer.scales", "layer.biases"}
    assert set(stored(tensor, "table")[1]) == {"table", "table.scales", "table.biases"}
    taken = {"layer.weight", "layer.scales"}
    assert set(stored(tensor, taken=taken)[1]) == {"layer.weight", "layer.weight.scales", "layer.weight.biases"}


@settings(max_examples=30, deadline=None)
@given(groups=st.integers(1, 3), inputs=st.integers(1, 3), outputs=st.integers(1, 3), kernel=st.integers(1, 3))
def test_arranging_a_transposed_convolution_moves_scales_with_their_weights(groups, inputs, outputs, kernel):
    values = torch.randn(groups * inputs, outputs, kernel, 2)
    arranged = weights.arrange(values, groups)
    assert arranged.shape == (groups * outputs, kernel, 2, inputs)
    for group, i, o, k in np.ndindex(groups, inputs, outputs, kernel):
        assert arranged[group * outputs + o, k, 1, i] == values[group * inputs + i, o, k, 1]
