"""Named codebooks against the quantizers of the runtimes and torch's own 8-bit types."""

import numpy as np
import pytest
import torch

from quant.formats import CODEBOOKS, codebook, round_to_e4m3, round_up_to_e8m0, shared_power
from quant.scheme import CODEBOOK_FORMATS, parse
from quant.tensor import block_of, quantize, quantize_with, stored_parts

FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def weights(rows, columns, seed=0):
    """Rows of magnitudes from 1e-3 to 10, so that scales differ."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.logspace(-3, 1, rows)[:, None]


def quantized(weight, word):
    format = parse(word).linear
    return quantize(weight, format, block_of(format, tuple(weight.shape), (1, weight.shape[1])))


@pytest.mark.parametrize("name", CODEBOOKS)
def test_every_entry_is_its_own_nearest(name):
    book = CODEBOOKS[name]
    entries = book.entries[book.codes.int()]
    assert torch.isfinite(entries).all()
    assert torch.equal(entries, entries.sort().values)
    assert torch.equal(book.entries[book.nearest(entries).int()], entries)


@pytest.mark.parametrize("name", CODEBOOKS)
def test_no_entry_is_nearer_than_the_nearest(name):
    book = CODEBOOKS[name]
    largest = book.entries.nan_to_num(0, 0, 0).abs().max()
    values = torch.randn(3000, generator=torch.Generator().manual_seed(1)) * largest / 2
    distances = (values[:, None].double() - book.entries[book.codes.int()].double()).abs().min(1).values
    found = (values.double() - book.entries[book.nearest(values).int()].double()).abs()
    assert torch.equal(found, distances)


@pytest.mark.parametrize("name", FLOAT8)
def test_eight_bit_floats_are_those_of_torch(name):
    book, dtype = CODEBOOKS[name], FLOAT8[name]
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(20000, generator=generator) * torch.logspace(-7, 2.5, 20000)
    ties = book.boundaries[book.boundaries.abs() > 1e-30]
    values = torch.cat([values, ties, ties.nextafter(torch.tensor(torch.inf)), -ties, torch.zeros(1)])
    largest = torch.finfo(dtype).max
    assert torch.equal(book.nearest(values), values.clamp(-largest, largest).to(dtype).view(torch.uint8))
    assert torch.equal(book.entries.isfinite(), torch.arange(256, dtype=torch.uint8).view(dtype).float().isfinite())


def test_values_beyond_the_largest_entry_take_it():
    book = CODEBOOKS["e4m3"]
    values = torch.tensor([1e9, -1e9, torch.inf, -torch.inf])
    assert book.entries[book.nearest(values).int()].tolist() == [448, -448, 448, -448]


def test_ties_go_where_they_are_asked_to():
    entries = torch.tensor([-2.0, -1.0, 0.0, 1.0])
    half_way = torch.tensor([-1.5, -0.5, 0.5])
    assert codebook(entries, "zero").nearest(half_way).tolist() == [1, 2, 2]
    assert codebook(entries, "even").nearest(half_way).tolist() == [0, 2, 2]


@pytest.mark.parametrize("word", ["mxfp4", "mxfp8", "nvfp4"])
def test_codes_and_scales_are_those_of_mlx_bit_for_bit(word):
    mx = pytest.importorskip("mlx.core")
    weight = weights(64, 256)
    weight[5, :32] = torch.tensor(
        [6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5, 1]
    ).repeat(2)
    tensor = quantized(weight, word)
    parts = stored_parts(tensor)
    shared = parts.get("shared_scale", torch.tensor(1.0))
    codes, scales = (np.array(part) for part in mx.quantize(mx.array((weight / shared).numpy()), mode=word))
    codes = codes.view(np.uint8)
    if tensor.format.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1)
    assert np.array_equal(codes.reshape(64, 256), tensor.codes.numpy())
    assert np.array_equal(scales, parts["scale"].view(torch.uint8).numpy())
    assert shared.log2() == shared.log2().round()
    dequantized = mx.dequantize(
        *mx.quantize(mx.array((weight / shared).numpy()), mode=word), mode=word, dtype=mx.float32
    )
    assert np.array_equal(np.array(dequantized) * shared.item(), tensor.dequantize().numpy())


@pytest.mark.parametrize("block", [32, 64, 128])
def test_normal_floats_are_those_of_onnxruntime(block):
    bindings = pytest.importorskip("onnxruntime.capi._pybind_state")
    weight = weights(16, 256)
    packed, scale = np.zeros(16 * 256 // 2, np.uint8), np.zeros(16 * 256 // block, np.float32)
    bindings.quantize_matmul_bnb4(packed, weight.numpy(), scale, block, 1, 16, 256)
    scale = torch.from_numpy(scale).reshape(16, -1)
    tensor = quantize_with(weight, scale, None, parse(f"nf4_g{block}").linear, (1, block))
    assert np.array_equal(np.stack([packed >> 4, packed & 15], -1).reshape(16, 256), tensor.codes.numpy())
    torch.testing.assert_close(quantized(weight, f"nf4_g{block}").scale, scale, rtol=1e-3, atol=1e-7)


def test_integers_of_mlx_come_from_its_scales_and_biases():
    mx = pytest.importorskip("mlx.core")
    weight = weights(32, 128)
    words, scale, bias = mx.quantize(mx.array(weight.numpy()), 32, 4)
    scale, bias = (torch.from_numpy(np.array(part)) for part in (scale, bias))
    zero_point = (-bias / scale).round()
    # MLX's zero need not be a code, and its scale may be negative: where both are ours, so are the codes.
    fits = ((zero_point >= 0) & (zero_point <= 15)).repeat_interleave(32, 1)
    zero_point = zero_point.clamp(0, 15).to(torch.uint8)
    tensor = quantize_with(weight, scale, zero_point, parse("int4").linear, (1, 32))
    words = np.array(words).view(np.uint8)
    codes = torch.from_numpy(np.stack([words & 15, words >> 4], -1).reshape(32, 128))
    assert fits.float().mean() > 0.9
    assert torch.equal(codes[fits], tensor.codes[fits])


def test_scales_are_powers_of_two_no_smaller():
    scale = torch.cat([torch.rand(1000) * 10, torch.tensor([0.5, 1.0, 2.0, 3.0, 1e-40, 3e38, 0.0])])
    rounded = round_up_to_e8m0(scale)
    expected = 2.0 ** np.ceil(np.log2(scale[:1000].double().numpy()))
    assert np.array_equal(rounded[:1000].numpy(), expected)
    assert rounded[1000:1004].tolist() == [0.5, 1.0, 2.0, 4.0]
    assert rounded[1004:].tolist() == [2.0**-126, 2.0**127, 0.0]
    kept = rounded[rounded > 0]
    assert torch.equal(kept.to(torch.float8_e8m0fnu).float(), kept)


def test_scales_of_e4m3_share_a_power_of_two():
    scale = torch.tensor([1e-4, 3e-3, 0.02, 0.0])
    shared = shared_power(scale)
    assert 224 < scale.max() / shared <= 448
    rounded = round_to_e4m3(scale)
    torch.testing.assert_close(rounded[:3], scale[:3], rtol=1 / 16, atol=0)
    assert rounded[3] == shared * 2.0**-9
    assert torch.equal(round_to_e4m3(rounded), rounded)


@pytest.mark.parametrize(
    ("word", "bits"), {"nf4": 4.25, "mxfp4": 4.25, "mxfp8": 8.25, "nvfp4": 4.5, "e4m3": 8.125, "e5m2": 8.125}.items()
)
def test_bits_per_weight(word, bits):
    weight = weights(64, 256)
    tensor = quantized(weight, word)
    shared = 32 if word == "nvfp4" else 0
    assert tensor.nbits == weight.numel() * bits + shared


@pytest.mark.parametrize("word", CODEBOOK_FORMATS)
def test_dead_weights_are_exactly_zero(word):
    for weight in (torch.zeros(4, 64), torch.cat([torch.zeros(2, 64), weights(2, 64)])):
        tensor = quantized(weight, word)
        assert torch.isfinite(tensor.scale).all()
        assert (tensor.scale > 0).all()
        assert torch.all(tensor.dequantize()[:2] == 0)


@pytest.mark.parametrize("word", CODEBOOK_FORMATS)
def test_equal_weights_and_short_groups_keep_their_value(word):
    tensor = quantized(torch.full((3, 70), 0.3), word)
    error = (tensor.dequantize() / 0.3 - 1).abs().max()
    assert error <= {4: 0.18, 8: 0.13}[tensor.format.bits]
    assert tensor.scale.shape[1] == -(-70 // tensor.block[1])


@pytest.mark.parametrize("word", CODEBOOK_FORMATS)
def test_infinite_weights_are_refused(word):
    weight = weights(4, 64)
    weight[1, 1] = torch.inf
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantized(weight, word)


@pytest.mark.parametrize(
    ("word", "shape", "channel_block", "block"),
    [
        ("mxfp4", (8, 64, 1, 1), (1, 64, 1, 1), (1, 32, 1, 1)),
        ("mxfp4", (8, 64, 3, 3), (1, 64, 3, 3), (1, 3, 3, 3)),
        ("nvfp4", (8, 64, 5, 5), (1, 64, 5, 5), (1, 1, 5, 5)),
        ("nf4", (8, 1, 3, 3), (1, 1, 3, 3), (1, 1, 3, 3)),
        ("nf4", (16, 4, 2, 2), (8, 1, 2, 2), (8, 1, 2, 2)),
        ("mxfp8", (64, 4, 2, 2), (32, 1, 2, 2), (8, 1, 2, 2)),
        ("e4m3", (8, 64, 3, 3), (1, 64, 3, 3), (1, 64, 3, 3)),
    ],
)
def test_groups_of_a_kernel_hold_whole_input_channels(word, shape, channel_block, block):
    assert block_of(parse(word).convolution, shape, channel_block) == block
