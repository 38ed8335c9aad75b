"""The formats on offer to the weights of a model: which there are, and what each weight takes in each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch

from quant.channels import linear_groups
from quant.graph import FloatGraph, QuantizedModel
from quant.layers import weight_formats
from quant.mixed import Problem
from quant.scheme import NumberFormat, parse

HALF = "fp16"
"""The word that leaves a weight in half precision."""
WIDTHS = (2, 3, 4, 5, 6, 8)
WORDS = (
    "fp16", "int8_g32", "int8_g128", "int6_g64", "int5_g32", "int5_g128", "int4_g32", "int4_g64", "int4_g128",
    "int3_g32", "int3_g128", "int2_g32",
)  # fmt: skip

Layout = tuple[NumberFormat, tuple[int, ...]]
"""Format and block of a weight."""


def words_of(widths: Sequence[int]) -> tuple[str, ...]:
    """Return the words whose integers have one of these numbers of bits, and that of half precision."""
    return tuple(word for word in WORDS if word == HALF or parse(word).linear.bits in widths)


@dataclass(frozen=True)
class Offer:
    """Words of formats on offer to every weight of a graph that can be quantized.

    Raises:
        ValueError: a word names no integers, nor half precision.
    """

    graph: FloatGraph
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        for word in self.words:
            if word != HALF and parse(word).linear is None:
                raise ValueError(f"{word!r} is no format of integers: offer some like {', '.join(WORDS)}.")

    @cached_property
    def layouts(self) -> dict[str, dict[str, Layout | None]]:
        """Weight -> word -> its layout; None in half precision. A weight that does not fit a word lacks it.

        Raises:
            ValueError: a weight holds NaN or infinity.
        """
        found: dict[str, dict[str, Layout | None]] = {name: {} for name in weight_formats(self.graph, parse("int8"))}
        for word in self.words:
            of_word = None if word == HALF else weight_formats(self.graph, parse(word))
            for name, known in found.items():
                if of_word is not None:
                    known[word] = of_word[name]
                elif torch.isfinite(self.graph.parameters[name].half()).all():
                    known[word] = None
        return found

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(self.layouts)

    @cached_property
    def together(self) -> tuple[tuple[int, ...], ...]:
        """The places of weights that must have one format: a runtime may join linear layers that read one value."""
        place = {name: index for index, name in enumerate(self.weights)}
        groups = (dict.fromkeys(group.parameters) for group in linear_groups(self.graph, place))
        return tuple(tuple(place[name] for name in group) for group in groups if len(group) > 1)

    def bits(
        self,
        widths: Sequence[int] = WIDTHS,
        group_bits: Mapping[int, int] | None = None,
        loose_widths: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Return what the weights take: float64 [weights, words]; nothing where a word is not open to a weight.

        Args:
            widths: of codes that are stored without padding; others take the next wider one.
            group_bits: width -> what scale and zero point of an asymmetric group take, where it is not the table's.
            loose_widths: what holds instead of both for weights that are no matrices of whole groups, whose zero
                points take a byte each.
        """

        def taken(name: str, word: str) -> float:
            shape = tuple(self.graph.parameters[name].shape)
            if word not in self.layouts[name]:
                return 0.0
            layout = self.layouts[name][word]
            if layout is None:
                return 16.0 * prod(shape)
            if loose_widths and not _in_whole_groups(shape, *layout):
                return _stored_bits(shape, *layout, loose_widths, None, loose=True)
            return _stored_bits(shape, *layout, widths, group_bits)

        return np.array([[taken(name, word) for word in self.words] for name in self.weights])

    def problem(self, errors: np.ndarray, cost: np.ndarray | None = None) -> Problem:
        """Return which word each weight is to take, given its errors and what it costs, float64 [weights, words] each.

        The cost is bits in the tables where it is not given.

        Raises:
            ValueError: there is no weight to choose a format for.
        """
        if not self.weights:
            raise ValueError("the model has no weight that can be quantized, so there is no format to choose.")
        closed = np.array([[word not in self.layouts[name] for word in self.words] for name in self.weights])
        return Problem(np.where(closed, np.inf, errors), self.bits() if cost is None else cost, self.together)

    def budget(self, bits_per_weight: float) -> float:
        """Return the bits left for the weights where all parameters take so many each, and all others stay float.

        Raises:
            ValueError: nothing is left.
        """
        left = bits_per_weight * self.graph.parameter_count - self._others
        if left <= 0:
            raise ValueError(
                f"what stays float alone takes {self.bits_per_weight(0):.3g} bits for each parameter, and "
                f"{bits_per_weight:g} are allowed: raise it, or quantize weights alone by another method."
            )
        return left

    def bits_per_weight(self, bits: float) -> float:
        """Return the bits that every parameter takes where the weights take ``bits`` together."""
        return (bits + self._others) / self.graph.parameter_count

    def named(self, chosen: np.ndarray) -> dict[str, str]:
        """Return the word of each weight, of choices int64 [weights]."""
        return {name: self.words[choice] for name, choice in zip(self.weights, chosen, strict=True)}

    @cached_property
    def _others(self) -> float:
        everything = QuantizedModel(self.graph, parse("fp32", "float")).bits_per_weight * self.graph.parameter_count
        values = (self.graph.parameters[name] for name in self.weights)
        return everything - sum(8 * value.numel() * value.element_size() for value in values)


def layouts_of(graph: FloatGraph, words: Mapping[str, str]) -> dict[str, Layout | None]:
    """Return the layout of each weight in the word it has, None in half precision.

    Raises:
        ValueError: a weight that there is not, one without a word, or a word that does not suit it.
    """
    offer = Offer(graph, tuple(dict.fromkeys(words.values())))
    strange = [name for name in words if name not in offer.layouts]
    if strange:
        raise ValueError(f"a format is given for {strange[0]!r}, which is no weight that can be quantized.")
    absent = [name for name in offer.weights if name not in words]
    if absent:
        raise ValueError(f"no format is given for the weight {absent[0]!r}.")
    closed = [name for name, word in words.items() if word not in offer.layouts[name]]
    if closed:
        raise ValueError(f"the weight {closed[0]!r} does not fit {words[closed[0]]}: give it another format.")
    return {name: offer.layouts[name][word] for name, word in words.items()}


def _stored_bits(
    shape: tuple[int, ...],
    format: NumberFormat,
    block: tuple[int, ...],
    widths: Sequence[int],
    group_bits: Mapping[int, int] | None,
    loose: bool = False,
) -> float:
    width = next((width for width in sorted(widths) if width >= format.bits), format.bits)
    scales = prod(-(-size // within) for size, within in zip(shape, block, strict=True))
    if group_bits and not format.symmetric:
        return float(prod(shape) * width + scales * group_bits[width])
    zero_points = 0 if format.symmetric else scales * (8 if loose else width)
    return float(prod(shape) * width + scales * format.scale_bits + zero_points)


def _in_whole_groups(shape: tuple[int, ...], format: NumberFormat, block: tuple[int, ...]) -> bool:
    return len(shape) == 2 and block == (1, format.group_size) and shape[1] % format.group_size == 0
