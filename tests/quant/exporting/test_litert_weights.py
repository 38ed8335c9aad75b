"""Weights as LiteRT's files hold them, which needs no LiteRT."""

import pytest
import torch

from quant.exporting.litert_weights import HeldWeight, centred, held
from quant.scheme import parse
from quant.tensor import quantize


def weight(bits, shape, block):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return quantize(values, parse(bits).linear, block)


@pytest.mark.parametrize("bits", ["int8", "int8_sym", "int6", "int4", "int4_sym", "int3", "int2"])
@pytest.mark.parametrize(("shape", "block"), [((6, 64), (1, 32)), ((6, 64), (1, 64)), ((4, 3, 3, 3), (1, 3, 3, 3))])
def test_a_held_weight_is_the_table_s_and_its_codes_fit_into_what_holds_them(bits, shape, block):
    quantized = weight(bits, shape, block)
    module = HeldWeight("layer", quantized)
    torch.testing.assert_close(module(), quantized.dequantize(), rtol=0, atol=0)
    buffers = dict(module.named_buffers())
    assert held("layer", quantized).keys() == {f"layer.{name}" for name in buffers}
    for name, four_bits in held("layer", quantized).items():
        if four_bits:
            stored = buffers[name.removeprefix("layer.")]
            assert stored.min() >= -8
            assert stored.max() <= 7
    assert held("layer", quantized)["layer.codes"] == (bits[3] in "234")


def test_unsigned_codes_are_shifted_by_half_their_range_and_signed_ones_are_not():
    unsigned, signed = weight("int4", (2, 32), (1, 32)), weight("int4_sym", (2, 32), (1, 32))
    torch.testing.assert_close(centred(unsigned.codes, unsigned.format).int(), unsigned.codes.int() - 8)
    torch.testing.assert_close(centred(signed.codes, signed.format), signed.codes)


def test_groups_that_do_not_divide_a_row_are_refused_by_name():
    with pytest.raises(ValueError, match="'layer' is"):
        HeldWeight("layer", weight("int4", (4, 48), (1, 32)))
    with pytest.raises(ValueError, match="'layer' is"):
        HeldWeight("layer", weight("nf4", (4, 64), (1, 32)))
