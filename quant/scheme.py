"""Schemes: what the numbers of a quantized model are, as tiny immutable values, and the words that name them.

A word such as ``int4_g128`` names one scheme for each family of methods; the tables in this file are the only place
where that meaning is written down.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from quant.registry import nearest

Granularity = Literal["tensor", "channel", "group", "token"]
Family = Literal["float", "weight_only", "static", "dynamic"]

ScaleType = Literal["float32", "float16", "float8_e4m3fn", "float8_e8m0fnu"]
CodebookName = Literal["nf4", "e2m1", "e4m3", "e5m2", "learned"]

INTEGER_WORDS = {f"int{bits}": bits for bits in (8, 6, 5, 4, 3, 2)}
REDUCED_WORD = "int8_reduced"
"""W8A8 with weights of 7 bits, whose products never saturate (``quant.hardware.saturation``)."""
SYMMETRIC_WORD = "int8_sym"
"""W8A8 whose static activations have no zero point: for processors with products of two signed factors alone, and for
the Neural Engine."""
DYNAMIC_WORDS = {
    "int8_token_sym": ("token", True),
    "int8_token_asym": ("token", False),
    "int8_tensor_sym": ("tensor", True),
    "int8_tensor_asym": ("tensor", False),
}
"""W8A8 with activations quantized at run time per token or per tensor, symmetrically or not; plain ``int8`` leaves both
to the backend."""
PALETTE_WORDS = {f"lut{bits}": bits for bits in (8, 6, 4, 3, 2)}
FLOAT_WORDS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
W4A8 = "w4a8"
FAMILIES: tuple[Family, ...] = ("float", "weight_only", "static", "dynamic")
DEFAULT_GROUP_SIZE = 32

_FLOAT16_SIGNIFICANT_BITS = 11
_SCALE_BITS = {"float32": 32, "float16": 16, "float8_e4m3fn": 8, "float8_e8m0fnu": 8, None: 0}
_LARGEST_ENTRY = {"nf4": 1.0, "e2m1": 6.0, "e4m3": 448.0, "e5m2": 57344.0}
_BUDGET = re.compile(r"mixed_(?P<whole>\d{1,2})(?:p(?P<fraction>\d{1,3}))?")
_SUFFIX = re.compile(r"g(?P<group>[1-9]\d*)|(?P<symmetric>sym)|(?P<granularity>tensor|channel)")


@dataclass(frozen=True)
class NumberFormat:
    """The numbers of one quantized tensor.

    An integer ``code`` stands for ``(code - zero_point) * scale``. Symmetric codes are signed, use the range
    ``-(2**(bits-1) - 1) .. 2**(bits-1) - 1`` and have no zero point; asymmetric codes are unsigned.

    With a ``codebook`` a code, unsigned, stands for ``codebook[code] * scale``. A named codebook is the same for all
    tensors (``quant.formats``) and counts as symmetric; a ``learned`` one belongs to its tensor. Where ``scale_dtype``
    is None all scales are one.
    """

    bits: int
    symmetric: bool
    granularity: Granularity
    group_size: int | None = None
    scale_dtype: ScaleType | None = "float16"
    codebook: CodebookName | None = None

    @property
    def lowest(self) -> float:
        """The smallest code, or entry of a named codebook."""
        if self.codebook:
            return -self.highest
        return -(2 ** (self.bits - 1) - 1) if self.symmetric else 0

    @property
    def highest(self) -> float:
        """The largest code, or entry of a named codebook."""
        if self.codebook == "learned":
            raise ValueError(
                "look-up tables are learned from the weights and have no range of their own: use a palette."
            )
        if self.codebook:
            return _LARGEST_ENTRY[self.codebook]
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    @property
    def signed(self) -> bool:
        """Whether codes are int8 rather than uint8."""
        return self.symmetric and self.codebook is None

    @property
    def scale_bits(self) -> int:
        """Bits that one scale takes."""
        return _SCALE_BITS[self.scale_dtype]

    @property
    def scale_significant_bits(self) -> int:
        """Significant bits a scale may have.

        Up to four bits an asymmetric scale keeps so few that ``zero_point * scale`` is exact in half precision, which
        is how MLX stores it: the same table then means the same weights everywhere.
        """
        if self.scale_dtype == "float32":
            return 24
        if self.symmetric or self.bits > 4:
            return _FLOAT16_SIGNIFICANT_BITS
        return _FLOAT16_SIGNIFICANT_BITS - self.bits

    def __str__(self) -> str:
        if self.codebook == "learned":
            return f"{self.bits}-bit look-up tables"
        where = f"groups of {self.group_size}" if self.granularity == "group" else f"per {self.granularity}"
        if self.codebook:
            scales = self.scale_dtype.removeprefix("float8_").removesuffix("fnu").removesuffix("fn")
            return f"{self.codebook} {where} with {scales} scales"
        return f"int{self.bits} {'symmetric' if self.symmetric else 'asymmetric'} {where}"


_CHANNEL_FP8 = {"bits": 8, "symmetric": True, "granularity": "channel", "scale_dtype": "float32"}
CODEBOOK_FORMATS = {
    "nf4": NumberFormat(4, True, "group", 64, "float16", "nf4"),
    "e4m3": NumberFormat(**_CHANNEL_FP8, codebook="e4m3"),
    "e5m2": NumberFormat(**_CHANNEL_FP8, codebook="e5m2"),
    "mxfp8": NumberFormat(8, True, "group", 32, "float8_e8m0fnu", "e4m3"),
    "mxfp4": NumberFormat(4, True, "group", 32, "float8_e8m0fnu", "e2m1"),
    "nvfp4": NumberFormat(4, True, "group", 16, "float8_e4m3fn", "e2m1"),
}
"""QLoRA's normal floats (Dettmers et al., 2023, arXiv:2305.14314), with scales as their paper's first level has them;
8-bit floats of the Open Compute Project (OFP8, 2023) per output channel; its microscaling formats (MX 1.0, 2023); and
NVIDIA's nvfp4, whose 8-bit scales share a scale per tensor. Here that is a power of two, so that it never rounds."""

_FIXED_GROUPS = ("mxfp8", "mxfp4", "nvfp4")
WORDS = (*INTEGER_WORDS, W4A8, *CODEBOOK_FORMATS, *PALETTE_WORDS, *FLOAT_WORDS)
_MEANT = {
    "float": "fp32",
    "weight_only": "int4",
    "static": "int8, int8_sym or int8_reduced",
    "dynamic": "int8, int8_reduced or w4a8, or int8_token_sym, _token_asym, _tensor_sym or _tensor_asym",
}


@dataclass(frozen=True)
class Scheme:
    """What the weights and activations of a model become.

    ``linear`` holds for linear and embedding weights, ``convolution`` for convolutions; ``None`` leaves them float.
    ``activations`` is ``None`` where they stay float. ``float_dtype`` is what stays float. With ``bits_per_weight``
    each weight has a format of its own, which the method chooses, and all parameters take so many bits at most.
    """

    name: str
    family: Family
    linear: NumberFormat | None = None
    convolution: NumberFormat | None = None
    activations: NumberFormat | None = None
    float_dtype: str = "float32"
    bits_per_weight: float | None = None

    def weight_format(self, kind: str) -> NumberFormat | None:
        """Return the format of the weights of an operator of ``kind``: linear, embedding or convolution.

        The channel of an embedding is its row.
        """
        return self.convolution if kind == "convolution" else self.linear

    def __str__(self) -> str:
        return self.name

    def as_dict(self) -> dict[str, str | None]:
        """Return the scheme in words, for records."""
        formats = {"linear": self.linear, "convolution": self.convolution, "activations": self.activations}
        described = {key: str(value) if value else self.float_dtype for key, value in formats.items()}
        if self.bits_per_weight is not None:
            mixed = f"mixed, {self.bits_per_weight:g} bits per weight at most"
            described |= {"linear": mixed, "convolution": mixed}
        return {"name": self.name, "family": self.family, **described}


def parse(word: str, family: Family = "weight_only", dynamic_granularity: Granularity = "token") -> Scheme:
    """Return the scheme that ``word`` names for a family of methods.

    ``dynamic_granularity`` is what the backend's kernels do fastest where activations are quantized at run time:
    symmetric per token or in groups, or asymmetric per tensor.

    Raises:
        ValueError: an unknown word, suffix or family, or a combination that has no meaning.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family of methods {family!r}: {nearest(family, FAMILIES)}")
    base, *suffixes = word.split("_")
    budget = bits_per_weight(word)
    if budget is not None and family == "weight_only":
        return Scheme(word, "weight_only", bits_per_weight=budget)
    if base == "mixed" and budget is None:
        raise ValueError(f"unknown bits word {word!r}: write the bits per weight as in mixed_4 or mixed_4p5.")
    if base in FLOAT_WORDS and not suffixes:
        return Scheme(word, "float", float_dtype=FLOAT_WORDS[base])
    if base not in WORDS and budget is None:
        raise ValueError(f"unknown bits word {word!r}: {nearest(base, WORDS)}")
    if family == "weight_only" and base in INTEGER_WORDS:
        return _weight_only(word, INTEGER_WORDS[base], suffixes)
    if family == "weight_only" and base in CODEBOOK_FORMATS:
        return _codebook(word, base, suffixes)
    if family == "weight_only" and base in PALETTE_WORDS:
        return _palette(word, PALETTE_WORDS[base], suffixes)
    if word in ("int8", REDUCED_WORD, SYMMETRIC_WORD) and family == "static":
        return _eight_bit(word, family, "tensor", symmetric=word == SYMMETRIC_WORD)
    if word in ("int8", REDUCED_WORD) and family == "dynamic":
        return _eight_bit(word, family, dynamic_granularity, symmetric=dynamic_granularity != "tensor")
    if word in DYNAMIC_WORDS and family == "dynamic":
        return _eight_bit(word, family, *DYNAMIC_WORDS[word])
    if word == W4A8 and family == "dynamic":
        return _four_and_eight_bit(word)
    raise ValueError(f"{word!r} has no meaning for {family} methods: use {_MEANT[family]}.")


def bits_per_weight(word: str) -> float | None:
    """Return the bits per weight that a word such as ``mixed_4p5`` allows, or None if it is no such word."""
    match = _BUDGET.fullmatch(word)
    return float(f"{match['whole']}.{match['fraction'] or 0}") if match else None


def budget_word(bits: float) -> str:
    """Return the word that allows at least ``bits`` per weight, and hardly more: thousandths are rounded up."""
    return f"mixed_{math.ceil(1000 * bits - 1e-6) / 1000:g}".replace(".", "p")


def _weight_only(word: str, bits: int, suffixes: list[str]) -> Scheme:
    linear = NumberFormat(bits, symmetric=False, granularity="group", group_size=DEFAULT_GROUP_SIZE)
    convolution = NumberFormat(bits, symmetric=True, granularity="channel")
    for suffix in suffixes:
        match = _SUFFIX.fullmatch(suffix)
        if match is None:
            raise ValueError(f"unknown suffix {suffix!r} in {word!r}: known are g<size>, sym, channel and tensor.")
        if match["group"]:
            linear = replace(linear, granularity="group", group_size=int(match["group"]))
        elif match["symmetric"]:
            linear = replace(linear, symmetric=True)
        else:
            linear = replace(linear, granularity=match["granularity"], group_size=None)
            convolution = replace(convolution, granularity=match["granularity"])
    return Scheme(word, "weight_only", linear, convolution)


def _codebook(word: str, base: str, suffixes: list[str]) -> Scheme:
    """Return a codebook format for all weights: what its groups are in a convolution, ``block_of`` says."""
    format = CODEBOOK_FORMATS[base]
    if suffixes and base in _FIXED_GROUPS:
        raise ValueError(f"the format {base} fixes its groups: write {base!r} instead of {word!r}.")
    for suffix in suffixes:
        match = _SUFFIX.fullmatch(suffix)
        if match is None or match["symmetric"]:
            raise ValueError(f"unknown suffix {suffix!r} in {word!r}: known are g<size>, channel and tensor.")
        granularity = "group" if match["group"] else match["granularity"]
        format = replace(format, granularity=granularity, group_size=int(match["group"]) if match["group"] else None)
    return Scheme(word, "weight_only", format, format)


def _palette(word: str, bits: int, suffixes: list[str]) -> Scheme:
    if suffixes:
        raise ValueError(f"look-up tables take no suffix, as {word!r} has: how many there are is up to the method.")
    palette = NumberFormat(bits, symmetric=False, granularity="tensor", scale_dtype=None, codebook="learned")
    return Scheme(word, "weight_only", palette, palette)


def _four_and_eight_bit(word: str) -> Scheme:
    """Weights as weight-only int4 has them; activations in blocks as long as theirs, as ONNX Runtime's kernel reads."""
    weights = NumberFormat(4, symmetric=False, granularity="group", group_size=DEFAULT_GROUP_SIZE)
    activations = NumberFormat(8, True, "group", DEFAULT_GROUP_SIZE, scale_dtype="float32")
    return Scheme(word, "dynamic", linear=weights, activations=activations)


def _eight_bit(word: str, family: Family, granularity: Granularity, symmetric: bool) -> Scheme:
    """Return W8A8, its activations quantized as ``granularity`` and ``symmetric`` say."""
    bits = 7 if word == REDUCED_WORD else 8
    weights = NumberFormat(bits, symmetric=True, granularity="channel", scale_dtype="float32")
    group = DEFAULT_GROUP_SIZE if granularity == "group" else None
    activations = NumberFormat(8, symmetric, granularity, group, scale_dtype="float32")
    return Scheme(word, family, weights, weights, activations)
