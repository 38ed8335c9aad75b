"""What is worth trying on a model: methods for its kind of network, numbers of bits, and the backends that run here.

Candidates that cost the same to run (one backend, one kind of numbers) stand together on a rung, the quickest to make
first: the others are tried only where it does not suffice. Which those are is what the tables of the README show:
smoothing channels helps transformers and little else, compensating for rounding helps everywhere, learning to round
helps a little more and takes minutes. A runtime's own quantizers are no candidates, because their results cannot be
made again from a recipe.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.matrix import Case, matrix
from quant.backends import target, targets
from quant.hardware import processor
from quant.hardware.saturation import saturates
from quant.scheme import REDUCED_WORD

THIS_MACHINE = "this-machine"

_WEIGHTS = ("int8", "int6", "int5", "int4", "int3")
_ROUNDING = ("mse", "gptq", "adaround")
_STEADY = {
    "float": ("float",),
    "weight_only": _ROUNDING,
    "static": ("static",),
    "dynamic": ("dynamic",),
}
"""Networks without single channels of large activations."""
_WITH_OUTLIERS = _STEADY | {
    "static": ("smoothquant", "static", "smoothquant_outliers"),
    "dynamic": ("dynamic", "smoothquant_dynamic"),
}
_METHODS = {"convolutional": _STEADY, "recurrent": _STEADY}
"""By family of networks; all others are taken for transformers."""
_REDUCED = {"static": (REDUCED_WORD,), "dynamic": (REDUCED_WORD, "w4a8")}
"""Where products of 8-bit codes saturate."""
_BITS = {"float": ("fp16",), "weight_only": _WEIGHTS, "static": ("int8",), "dynamic": ("int8", "w4a8")}


@dataclass(frozen=True)
class Rung:
    """Cases that cost the same to run, the quickest to make first."""

    cases: tuple[Case, ...]

    @property
    def first(self) -> Case:
        return self.cases[0]


def rungs(model: str, family: str, backends: Sequence[str]) -> list[Rung]:
    """Return what to try on a model of the matrix, backend by backend."""
    exist = set(matrix()[0])
    found = []
    for backend in backends:
        reduced = target(backend).constant("INTEGER_KERNELS") and saturates(processor())
        for kind, names in _METHODS.get(family, _WITH_OUTLIERS).items():
            for bits in _REDUCED.get(kind, _BITS[kind]) if reduced else _BITS[kind]:
                cases = tuple(case for name in names if (case := Case(model, name, bits, backend)) in exist)
                found += [Rung(cases)] if cases else []
    return found


def backends_of(text: str) -> list[str]:
    """Return the backends that ``--target`` names: one, or all that are installed and run on this machine.

    Raises:
        ValueError: there is no such backend, or it is not installed or exists only elsewhere.
    """
    if text == THIS_MACHINE:
        here = [(name, found) for name, found in targets().items() if found.runs_here and not found.opt_in]
        return [name for name, found in here if not found.missing()]
    chosen = target(text)
    missing = chosen.missing()
    reason = chosen.elsewhere() or (f"{text} is not installed: {missing}" if missing else None)
    if reason:
        raise ValueError(f"{reason}.")
    return [text]
