"""What follows from each machine. The saturation behind the 7-bit rule is shown with the arithmetic of the kernel."""

import numpy as np
import pytest

from quant.backends import target, targets
from quant.hardware import Accelerator, Machine, Memory, _apple, _linux, strategy
from quant.hardware.bandwidth import Bandwidth
from tests.quant.hardware import machines


@pytest.fixture
def linux(root):
    def read(text):
        root.write("proc/cpuinfo", text)
        return _linux.processor(root.path)

    return read


def said(processor, *accelerators):
    return "\n".join(strategy.consequences(Machine(processor, Memory(), accelerators)))


@pytest.mark.parametrize(
    ("text", "saturates", "int8"),
    [
        (machines.SKYLAKE, True, "Keep weights to 7 bits"),
        (machines.HASWELL, True, "Keep weights to 7 bits"),
        (machines.ZEN_4, False, "run on VNNI without saturating"),
        (machines.ALDER_LAKE, False, "run on VNNI without saturating"),
        (machines.GRAVITON_2, False, "native for s8 x s8 (dotprod)"),
        (machines.GRAVITON_3, False, "run on i8mm"),
        (machines.x86("Old", "sse sse2", 1), False, "No int8 dot products"),
    ],
    ids=["skylake", "haswell", "zen", "alder_lake", "graviton_two", "graviton_three", "old"],
)
def test_int8_follows_from_the_instructions(linux, text, saturates, int8):
    processor = linux(text)
    assert strategy.saturates(processor) is saturates
    assert int8 in said(processor)


def pairs_in_sixteen_bits(activations, weights):
    """VPMADDUBSW: products of two neighbours, added and saturated in 16 bits; then added in 32."""
    products = activations.astype(np.int32) * weights.astype(np.int32)
    return np.clip(products[0::2] + products[1::2], -(2**15), 2**15 - 1).sum()


@pytest.mark.parametrize("sign", [1, -1])
def test_seven_bits_is_the_most_that_never_saturates(sign):
    activations = np.full(64, 255, np.uint8)

    def exact(code):
        weights = np.full(64, sign * code, np.int8)
        return pairs_in_sixteen_bits(activations, weights) == (activations.astype(np.int32) * weights).sum()

    assert exact(64)
    assert not exact(65)
    assert not exact(127)


def test_the_neural_engine_computes_in_int8_from_the_fourth_generation():
    engine = Accelerator("neural engine", "Neural Engine")
    assert "W8A8 computes in fp16" in said(_apple.processor(machines.M3), engine)
    assert "W8A8 computes in int8" in said(_apple.processor(machines.M4), engine)


@pytest.mark.parametrize("name", targets())
def test_something_suits_every_target_and_is_what_it_executes(linux, name):
    for processor in (linux(machines.SKYLAKE), linux(machines.ZEN_4), linux(""), _apple.processor(machines.M4)):
        found = strategy.suited(name, Machine(processor, Memory(), ()))
        offered = target(name).constant("EXECUTES")
        if found is None:
            pytest.skip(f"nothing is known of {name} beforehand")
        assert found.words
        assert found.why
        for family, words in found.words.items():
            assert set(words) <= set(offered.get(family, ())), (name, family)


def test_of_a_target_that_was_added_nothing_is_known_beforehand(linux):
    assert strategy.suited("mine", Machine(linux(""), Memory(), ())) is None


def test_words_follow_from_the_instructions(linux):
    def words(text, name="onnxruntime"):
        return strategy.suited(name, Machine(linux(text), Memory(), ())).words

    assert words(machines.SKYLAKE)["static"] == ("int8_reduced",)
    assert words(machines.ZEN_4)["static"] == ("int8",)
    assert words(machines.GRAVITON_2)["dynamic"] == ("int8",)
    assert "static" not in words(machines.x86("Old", "sse sse2", 1))
    sapphire_rapids = machines.x86("Xeon", "avx2 avx512f avx512_vnni amx_int8", 2)
    assert words(sapphire_rapids)["static"] == ("int8",)
    assert words(sapphire_rapids, "openvino")["static"] == ("int8_sym", "int8")
    assert words(machines.ZEN_4, "openvino")["static"] == ("int8",)


def test_the_neural_engine_is_given_palettes_and_integers_where_it_has_them():
    def words(text):
        return strategy.suited("coreml_ane", Machine(_apple.processor(text), Memory(), ())).words

    assert "static" not in words(machines.M3)
    assert words(machines.M4)["static"] == ("int8_sym",)
    assert words(machines.M3)["weight_only"][:2] == ("lut4", "lut6")


def test_what_suits_a_neural_engine_is_told_elsewhere_too_with_the_chips_it_holds_for(linux):
    found = strategy.suited("coreml_ane", Machine(linux(machines.ZEN_4), Memory(), ()))
    assert found.words["static"] == ("int8_sym",)
    assert "symmetric W8A8 with weights per channel computes in int8 from the M4 on" in found.why
    assert "palettes of 4 and 6 bits" in found.why


def test_a_mac_has_one_memory_and_a_gpu_that_likes_groups():
    sentences = said(_apple.processor(machines.M1), Accelerator("mps", "Apple M1 GPU"))
    assert "Unified memory" in sentences
    assert "affine groups" in sentences
    assert "4 of 8 cores are fast" in sentences


@pytest.mark.parametrize(
    ("capability", "has", "lacks"),
    [
        ((7, 0), "none of", "fp8,"),
        ((7, 5), "int8", "bf16"),
        ((8, 0), "bf16", "fp8"),
        ((8, 9), "fp8", "fp4"),
        ((10, 0), "fp4", "none"),
    ],
)
def test_cards_by_their_capability(linux, capability, has, lacks):
    sentence = said(linux(""), Accelerator("cuda", "Card", 2**34, capability)).splitlines()[-1]
    assert has in sentence
    assert lacks not in sentence


def test_what_is_out_of_reach_is_said_with_its_reason(linux):
    assert "Card is out of reach: no driver." in said(linux(""), Accelerator("cuda", "Card", unused="no driver"))


def test_a_container_with_fewer_processors_is_told(linux, root):
    root.write("proc/self/cgroup", "0::/\n")
    root.write("sys/fs/cgroup/cpu.max", "50000 100000\n")
    assert "gets 0.5 of 4 processors" in said(linux(machines.SKYLAKE))


@pytest.mark.parametrize(("huge_pages", "advised"), [(True, False), (False, True), (None, False)])
def test_huge_pages_are_advised_where_they_can_be_had(linux, huge_pages, advised):
    machine = Machine(linux(machines.ZEN_4), Memory(huge_pages=huge_pages), ())
    assert ("GLIBC_TUNABLES=" in "\n".join(strategy.consequences(machine))) is advised


def test_memory_bounds_tokens():
    assert "40 at int4, 22.2 at int8, 6.25 at fp32" in strategy.tokens_per_second(Bandwidth(1e10, 2.5e10, 4, False))
