"""Schemes: what the numbers of a quantized model are, as tiny immutable values, and the words that name them.

A word such as ``int4_g128`` names one scheme for each family of methods; the tables in this file are the only place
where that meaning is written down.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

from quant.registry import nearest

Granularity = Literal["tensor", "channel", "group", "token"]
Family = Literal["float", "weight_only", "static", "dynamic"]

INTEGER_WORDS = {f"int{bits}": bits for bits in (8, 6, 5, 4, 3, 2)}
FLOAT_WORDS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
FAMILIES: tuple[Family, ...] = ("float", "weight_only", "static", "dynamic")
DEFAULT_GROUP_SIZE = 32

_FLOAT16_SIGNIFICANT_BITS = 11
_SUFFIX = re.compile(r"g(?P<group>[1-9]\d*)|(?P<symmetric>sym)|(?P<granularity>tensor|channel)")


@dataclass(frozen=True)
class NumberFormat:
    """The numbers of one quantized tensor.

    An integer ``code`` stands for ``(code - zero_point) * scale``. Symmetric codes are signed, use the range
    ``-(2**(bits-1) - 1) .. 2**(bits-1) - 1`` and have no zero point; asymmetric codes are unsigned.
    """

    bits: int
    symmetric: bool
    granularity: Granularity
    group_size: int | None = None
    scale_dtype: Literal["float16", "float32"] = "float16"

    @property
    def lowest(self) -> int:
        return -(2 ** (self.bits - 1) - 1) if self.symmetric else 0

    @property
    def highest(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

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
        where = f"groups of {self.group_size}" if self.granularity == "group" else f"per {self.granularity}"
        return f"int{self.bits} {'symmetric' if self.symmetric else 'asymmetric'} {where}"


@dataclass(frozen=True)
class Scheme:
    """What the weights and activations of a model become.

    ``linear`` holds for linear and embedding weights, ``convolution`` for convolutions; ``None`` leaves them float.
    ``activations`` is ``None`` where they stay float. ``float_dtype`` is what stays float.
    """

    name: str
    family: Family
    linear: NumberFormat | None = None
    convolution: NumberFormat | None = None
    activations: NumberFormat | None = None
    float_dtype: str = "float32"

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
        return {"name": self.name, "family": self.family, **described}


def parse(word: str, family: Family = "weight_only", dynamic_granularity: Granularity = "token") -> Scheme:
    """Return the scheme that ``word`` names for a family of methods.

    ``dynamic_granularity`` is what the backend's kernels offer for run-time activation quantization: symmetric per
    token, or asymmetric per tensor.

    Raises:
        ValueError: an unknown word, suffix or family, or a combination that has no meaning.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family of methods {family!r}: {nearest(family, FAMILIES)}")
    base, *suffixes = word.split("_")
    if base in FLOAT_WORDS and not suffixes:
        return Scheme(word, "float", float_dtype=FLOAT_WORDS[base])
    if base not in INTEGER_WORDS:
        raise ValueError(f"unknown bits word {word!r}: {nearest(base, [*INTEGER_WORDS, *FLOAT_WORDS])}")
    if family == "weight_only":
        return _weight_only(word, INTEGER_WORDS[base], suffixes)
    if family == "float" or word != "int8":
        raise ValueError(
            f"{word!r} has no meaning for {family} methods: use {'fp32' if family == 'float' else 'int8'}."
        )
    return _eight_bit(word, family, dynamic_granularity)


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


def _eight_bit(word: str, family: Family, dynamic_granularity: Granularity) -> Scheme:
    weights = NumberFormat(8, symmetric=True, granularity="channel", scale_dtype="float32")
    per_token = family == "dynamic" and dynamic_granularity == "token"
    activations = NumberFormat(
        8, symmetric=per_token, granularity="token" if per_token else "tensor", scale_dtype="float32"
    )
    return Scheme(word, family, weights, weights, activations)
