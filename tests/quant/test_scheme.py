import pytest

from quant.scheme import CODEBOOK_FORMATS, FAMILIES, INTEGER_WORDS, PALETTE_WORDS, NumberFormat, parse


@pytest.mark.parametrize(
    "word", [*INTEGER_WORDS, "int4_g128", "int4_sym", "int3_g64_sym", "int8_channel", "int6_tensor"]
)
def test_a_weight_only_word_is_printed_as_it_was_read(word):
    scheme = parse(word)
    assert str(scheme) == word
    assert scheme.activations is None
    assert scheme.linear.bits == scheme.convolution.bits == int(word[3])


def test_the_default_is_asymmetric_groups_of_32_for_linear_and_symmetric_channels_for_convolution():
    scheme = parse("int4")
    assert str(scheme.linear) == "int4 asymmetric groups of 32"
    assert str(scheme.convolution) == "int4 symmetric per channel"
    assert scheme.weight_format("embedding") == scheme.linear
    assert scheme.weight_format("convolution") == scheme.convolution


def test_suffixes_change_what_they_name():
    assert parse("int4_g128").linear.group_size == 128
    assert parse("int4_sym").linear.symmetric
    assert parse("int4_channel").linear.granularity == "channel"
    assert parse("int4_tensor").convolution.granularity == "tensor"


@pytest.mark.parametrize("bits", [8, 7, 6, 5, 4, 3, 2])
def test_code_ranges(bits):
    assert (NumberFormat(bits, False, "tensor").lowest, NumberFormat(bits, False, "tensor").highest) == (0, 2**bits - 1)
    symmetric = NumberFormat(bits, True, "tensor")
    assert symmetric.highest == -symmetric.lowest == 2 ** (bits - 1) - 1


def test_eight_bit_families_quantize_activations_as_their_kernels_do():
    assert str(parse("int8", "static").activations) == "int8 asymmetric per tensor"
    assert str(parse("int8", "dynamic", "token").activations) == "int8 symmetric per token"
    assert str(parse("int8", "dynamic", "tensor").activations) == "int8 asymmetric per tensor"
    assert str(parse("int8", "dynamic", "group").activations) == "int8 symmetric groups of 32"
    assert str(parse("int8", "static").linear) == "int8 symmetric per channel"


@pytest.mark.parametrize(
    ("word", "described"),
    {
        "nf4": "nf4 groups of 64 with float16 scales",
        "nf4_g128": "nf4 groups of 128 with float16 scales",
        "e4m3": "e4m3 per channel with float32 scales",
        "e5m2_tensor": "e5m2 per tensor with float32 scales",
        "mxfp8": "e4m3 groups of 32 with e8m0 scales",
        "mxfp4": "e2m1 groups of 32 with e8m0 scales",
        "nvfp4": "e2m1 groups of 16 with e4m3 scales",
        "lut4": "4-bit look-up tables",
    }.items(),
)
def test_codebook_words_name_their_entries_groups_and_scales(word, described):
    scheme = parse(word)
    assert str(scheme.linear) == str(scheme.convolution) == described
    assert scheme.activations is None
    assert str(scheme) == word


@pytest.mark.parametrize(
    ("word", "activations"),
    [
        ("int8_token_sym", "int8 symmetric per token"),
        ("int8_token_asym", "int8 asymmetric per token"),
        ("int8_tensor_sym", "int8 symmetric per tensor"),
        ("int8_tensor_asym", "int8 asymmetric per tensor"),
    ],
)
def test_a_word_says_how_activations_are_quantized_at_run_time(word, activations):
    for what_is_fastest in ("token", "tensor", "group"):
        scheme = parse(word, "dynamic", what_is_fastest)
        assert (str(scheme.linear), str(scheme.activations)) == ("int8 symmetric per channel", activations)
    with pytest.raises(ValueError, match="has no meaning for static"):
        parse(word, "static")


@pytest.mark.parametrize("word", [*CODEBOOK_FORMATS, *PALETTE_WORDS])
def test_codes_of_a_codebook_are_unsigned(word):
    assert not parse(word).linear.signed


def test_four_bit_weights_with_eight_bit_activations():
    scheme = parse("w4a8", "dynamic", "tensor")
    assert scheme.linear == parse("int4").linear
    assert scheme.convolution is None
    assert str(scheme.activations) == "int8 symmetric groups of 32"


def test_float_words():
    assert parse("fp16", "float").float_dtype == "float16"
    assert parse("bf16", "float").float_dtype == "bfloat16"
    assert parse("fp32", "float").linear is None


@pytest.mark.parametrize(
    ("word", "family", "sentence"),
    [
        ("int44", "weight_only", "did you mean int4"),
        ("itn8", "weight_only", "did you mean int8"),
        ("quux", "weight_only", "known are int8"),
        ("int4_g", "weight_only", "unknown suffix 'g'"),
        ("int4_g0", "weight_only", "unknown suffix 'g0'"),
        ("int4_symm", "weight_only", "unknown suffix 'symm'"),
        ("", "weight_only", "unknown bits word ''"),
        ("int4", "static", "use int8"),
        ("int8_g32", "dynamic", "use int8"),
        ("int8", "float", "use fp32"),
        ("int8", "statik", "did you mean static"),
        ("mxpf4", "weight_only", "did you mean mxfp4"),
        ("mxfp4_g64", "weight_only", "mxfp4 fixes its groups"),
        ("nvfp4_channel", "weight_only", "nvfp4 fixes its groups"),
        ("nf4_sym", "weight_only", "unknown suffix 'sym'"),
        ("e4m3_x", "weight_only", "unknown suffix 'x'"),
        ("lut4_g16", "weight_only", "look-up tables take no suffix"),
        ("nf4", "static", "use int8"),
        ("lut4", "dynamic", "use int8, int8_reduced or w4a8"),
        ("w4a8", "weight_only", "use int4"),
        ("w4a8_g64", "dynamic", "use int8, int8_reduced or w4a8"),
    ],
)
def test_a_bad_name_is_answered_with_the_nearest_good_ones(word, family, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse(word, family)


def test_a_scheme_in_words_is_plain_text():
    for family in FAMILIES:
        described = parse("fp32" if family == "float" else "int8", family).as_dict()
        assert all(isinstance(value, str) for value in described.values())
