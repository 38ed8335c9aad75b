import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")

from quant.backends._onnx_packing import kernel_blocks, pack
from quant.scheme import NumberFormat
from quant.tensor import QuantizedTensor, quantize

GENERATOR = torch.Generator().manual_seed(0)


def unpacked(packed, bits):
    """One code per element, by the definition: the first code in the lowest bits of a byte."""
    codes = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return np.stack(codes, -1).reshape(*packed.shape[:-1], -1)


def weight(rows, columns, bits, group, symmetric=False):
    format = NumberFormat(bits, symmetric, "group", group)
    return quantize(torch.randn(rows, columns, generator=GENERATOR), format, (1, min(group, columns)))


def values(blocks, codes, zero_points):
    """What the kernel computes from packed codes and zero points."""
    rows, columns = blocks.codes.shape
    middle = np.full(blocks.scale.shape, 2 ** (blocks.bits - 1))
    zero_point = middle if zero_points is None else unpacked(zero_points, blocks.bits)[:, : blocks.scale.shape[1]]
    scale, offset = (np.repeat(per_block, blocks.block, 1)[:, :columns] for per_block in (blocks.scale, zero_point))
    return (codes.reshape(rows, -1)[:, :columns].astype(np.float32) - offset) * scale


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_pack_keeps_every_code(bits):
    codes = torch.randint(0, 2**bits, (3, 5, 16), generator=GENERATOR).to(torch.uint8).numpy()
    packed = pack(codes, bits)
    assert packed.shape == (3, 5, 16 * bits // 8)
    np.testing.assert_array_equal(unpacked(packed, bits), codes)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("columns", "group"), [(64, 32), (40, 32), (96, 48), (17, 32), (1, 16), (100, 100), (384, 384)]
)
@pytest.mark.parametrize("bits", [8, 5, 4, 3, 2])
def test_packed_blocks_are_the_weight(bits, columns, group, symmetric):
    tensor = weight(6, columns, bits, group, symmetric)
    blocks = kernel_blocks(tensor)
    codes = unpacked(blocks.packed_blocks(), blocks.bits)
    np.testing.assert_array_equal(values(blocks, codes, blocks.packed_zero_points()), tensor.dequantize().numpy())


@pytest.mark.parametrize(("columns", "group"), [(64, 32), (40, 32), (24, 24), (384, 384)])
def test_packed_rows_are_the_weight(columns, group):
    tensor = weight(6, columns, 4, group)
    blocks = kernel_blocks(tensor, gathered=True)
    codes = unpacked(blocks.packed_rows(), 4)
    np.testing.assert_array_equal(values(blocks, codes, blocks.packed_zero_points()), tensor.dequantize().numpy())


def test_one_scale_for_the_whole_tensor():
    format = NumberFormat(4, symmetric=True, granularity="tensor")
    tensor = quantize(torch.randn(6, 40, generator=GENERATOR), format, (6, 40))
    blocks = kernel_blocks(tensor)
    codes = unpacked(blocks.packed_blocks(), 4)
    np.testing.assert_array_equal(values(blocks, codes, None), tensor.dequantize().numpy())


def test_rows_that_do_not_fill_a_byte_have_no_packed_form():
    assert kernel_blocks(weight(6, 17, 4, 32), gathered=True).packed_rows() is None


@pytest.mark.parametrize(("columns", "group"), [(64, 8), (72, 24), (64, 20)])
def test_other_groups_have_no_kernel(columns, group):
    assert kernel_blocks(weight(6, columns, 4, group)) is None


def test_blocks_of_several_rows_have_no_kernel():
    tensor = QuantizedTensor(
        torch.zeros(4, 32, dtype=torch.uint8),
        torch.ones(2, 1),
        torch.zeros(2, 1, dtype=torch.uint8),
        None,
        (2, 32),
        NumberFormat(4, symmetric=False, granularity="group", group_size=32),
    )
    assert kernel_blocks(tensor) is None
