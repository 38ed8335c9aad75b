"""What saturates where; and that 7-bit weights undo it, shown with the arithmetic of the kernels on a small network."""

import numpy as np
import pytest
import torch
from torch import nn

import quant
from quant.hardware import Processor, saturation
from quant.scheme import parse

VNNI = Processor("New", "x86_64", ("avx2", "avx512f", "avx512vnni"))
NO_VNNI = Processor("Old", "x86_64", ("avx2",))
ARM = Processor("Arm", "aarch64", ("asimddp",))


def test_caps_are_read_as_libraries_read_them():
    assert saturation.caps({}) == {}
    assert saturation.caps({"ONEDNN_MAX_CPU_ISA": "avx2"}) == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert saturation.caps({"ONEDNN_MAX_CPU_ISA": "ALL", "ATEN_CPU_CAPABILITY": "default"}) == {}
    assert saturation.caps({"ONEDNN_MAX_CPU_ISA": "", "PATH": "/bin"}) == {}


@pytest.mark.parametrize(
    ("processor", "variables", "said"),
    [
        (VNNI, {}, None),
        (ARM, {}, None),
        (NO_VNNI, {}, "This processor has no VNNI"),
        (VNNI, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "ONEDNN_MAX_CPU_ISA=AVX2 keeps oneDNN from VNNI"),
        (VNNI, {"DNNL_MAX_CPU_ISA": "avx512_core"}, "DNNL_MAX_CPU_ISA=AVX512_CORE keeps oneDNN"),
        (VNNI, {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"}, None),
        (VNNI, {"ATEN_CPU_CAPABILITY": "avx2"}, None),
        (ARM, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, None),
    ],
)
def test_a_warning_names_the_cause_and_the_remedy(processor, variables, said):
    found = saturation.warning(processor, variables)
    assert (found is None) == (said is None)
    if said:
        assert found.startswith(said)
        assert "int8_reduced" in found


def test_reduced_weights_never_saturate_and_activations_stay_as_they_are():
    reduced, whole = parse("int8_reduced", "static"), parse("int8", "static")
    assert reduced.linear.highest <= saturation.EXACT_EVERYWHERE < whole.linear.highest
    assert reduced.activations == whole.activations
    assert str(reduced) == "int8_reduced"
    with pytest.raises(ValueError, match="reduced"):
        parse("int8_reduced", "weight_only")


def in_sixteen_bits(activations, weights):
    """What VPMADDUBSW and VPMADDWD make of uint8 [n, in] and int8 [out, in]: pairs of products saturate, int32."""
    products = activations.astype(np.int32)[:, None] * weights.astype(np.int32)
    return np.clip(products[..., 0::2] + products[..., 1::2], -(2**15), 2**15 - 1).sum(-1)


def outputs_of_kernel(quantized, inputs, multiply):
    """Return what a kernel that multiplies codes by ``multiply`` makes of the first linear layer of ``quantized``."""
    (weight,), (quantizer,) = quantized.weights.values(), quantized.activations.values()
    zero, scale = int(quantizer.zero_point), quantizer.scale.item()
    codes = (inputs / scale).round_().add_(zero).clamp_(0, 255).to(torch.uint8).numpy()
    weights = weight.codes.numpy()
    sums = multiply(codes, weights) - zero * weights.astype(np.int64).sum(1)
    return torch.from_numpy(sums * scale) * weight.scale.flatten()


@pytest.fixture(scope="module")
def layers():
    """What a linear layer makes of inputs near the top of their range, the inputs, and its tables in both widths."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 32, bias=False).eval()
    nn.init.uniform_(layer.weight, -1, 1)
    inputs = 1 - 0.1 * torch.rand(64, 64)
    graph = quant.capture(layer, (inputs[:2],), ({0: "batch"},))
    made = {bits: quant.quantize(graph, "static_plain", bits, [(inputs.numpy(),)]) for bits in ("int8", "int8_reduced")}
    return layer(inputs).detach(), inputs, made


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_saturation_spoils_eight_bits_and_spares_seven(layers):
    expected, inputs, made = layers

    def exact(codes, weights):
        return codes.astype(np.int64) @ weights.astype(np.int64).T

    errors = {
        (bits, name): error(outputs_of_kernel(quantized, inputs, multiply), expected)
        for bits, quantized in made.items()
        for name, multiply in (("exact", exact), ("saturating", in_sixteen_bits))
    }
    assert errors["int8", "saturating"] > 3 * errors["int8", "exact"]
    assert errors["int8_reduced", "saturating"] == pytest.approx(errors["int8_reduced", "exact"])
    assert errors["int8_reduced", "saturating"] < errors["int8", "saturating"]
