"""Static W8A8 in which single operators stay wide: those whose rounding hurts most for the time that it saves.

The tables are those of ``smoothquant``. What an operator costs the output when it alone is quantized
(``quant.sensitivity``) and what it takes in 8 bits and in float (``quant.latency``), with the conversions between
neighbours, make an integer program (``quant.mixed``), as in Hubara et al., 2021 (arXiv:2006.10518). Wide is what the
backend computes in where nothing is quantized: float32 on a CPU, 16 bits where its float is half.

Without a measured latency model the costs are multiply-accumulates, and a tenth of what 8 bits save is given up.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quant.calibrate import Batch
from quant.graph import FloatGraph, QuantizedModel
from quant.latency import Latency, estimated
from quant.methods.smoothquant import Smoothed, smooth
from quant.mixed import Problem, least_cost, least_error
from quant.replaying import calibration_sha256
from quant.scheme import Scheme
from quant.sensitivity import output_errors

METHODS = {"mixed_static": {"family": "static", "bits": ("int8",), "calibrates": True}}

FORMATS = ("int8", "fp32")
_WIDE = FORMATS.index("fp32")
_GIVEN_UP = 0.1
"""The share of what 8 bits save that wide operators may cost where nothing else bounds it."""
_LAST: dict[tuple, Smoothed] = {}


def quantize(
    graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch] = (), wide: Sequence[str] | None = None
) -> QuantizedModel:
    """Return ``graph`` in W8A8 with the operators left wide that give most for a tenth of what 8 bits save.

    Args:
        wide: weights of the operators left wide, where that is chosen already.

    Raises:
        ValueError: there is no calibration data, a value or a weight holds NaN or infinity, or what is to be left wide
            is no operator in 8 bits.
    """
    if wide is None:
        return ranked(graph, scheme, calibration).chosen()
    smoothed = _remembered(graph, scheme, calibration)
    strange = [name for name in wide if name not in smoothed.whole.weights]
    if strange:
        raise ValueError(f"{strange[0]!r} is to be left wide, but is no weight that would be in 8 bits.")
    return smoothed.leaving(wide)


@dataclass(frozen=True)
class Choice:
    """What the integer program chose, and what it foresees.

    wide     weights of the operators that are left wide
    error    of the output, over its norm, that the others cause
    seconds  of the whole model
    """

    wide: list[str]
    error: float
    seconds: float


def choose(
    errors: Mapping[str, float], latency: Latency, max_latency: float | None = None, max_error: float | None = None
) -> Choice:
    """Return which operators to leave wide.

    Args:
        errors: of the output, squared, over its square, by the weight of the operator that alone causes it.
        max_latency: seconds of ``latency`` that the whole model may take, with the least error.
        max_error: error of the output, over its norm, that quantized operators may cause, in the least time.

    Raises:
        ValueError: the model takes longer with all operators in 8 bits.
    """
    program = problem(errors, latency)
    if max_error is not None:
        choices = least_cost(program, max_error**2)
    else:
        choices = least_error(program, _budget(program, latency, max_latency))
    wide = [name for name, choice in zip(errors, choices, strict=True) if choice == _WIDE]
    return Choice(wide, float(np.sqrt(program.total_error(choices))), latency.rest + program.total_cost(choices))


def problem(errors: Mapping[str, float], latency: Latency) -> Problem:
    """Return the integer program: a row for each operator, in the order of ``errors``, a choice for each format."""
    names, wide = list(errors), np.arange(len(FORMATS)) == _WIDE
    table = np.array([[error, 0.0] for error in errors.values()]).reshape(-1, len(FORMATS))
    return Problem(table, latency.of(names, FORMATS), wide=wide, conversions=latency.between(names))


def foreseen(errors: Mapping[str, float], latency: Latency, wide: Collection[str]) -> Choice:
    """Return what the model foresees of leaving ``wide`` as it is."""
    program, choices = problem(errors, latency), np.array([int(name in wide) for name in errors])
    seconds = latency.rest + program.total_cost(choices)
    return Choice(list(wide), float(np.sqrt(program.total_error(choices))), seconds)


@dataclass(frozen=True)
class Ranked:
    """A graph in W8A8, with the squared error of the output, over its square, that each operator alone causes."""

    smoothed: Smoothed
    errors: dict[str, float]

    def chosen(
        self, latency: Latency | None = None, max_latency: float | None = None, max_error: float | None = None
    ) -> QuantizedModel:
        """Return the tables with the operators left wide that :func:`choose` finds; ``latency`` None is estimated."""
        latency = latency or estimated(self.smoothed.whole)
        if not self.errors:
            return self.smoothed.leaving()
        choice = choose(self.errors, latency, max_latency, max_error)
        quantized = self.smoothed.leaving(choice.wide)
        quantized.recipe.update(
            left_float=choice.wide,
            predicted_error=choice.error,
            predicted_latency=choice.seconds,
            measured_on=latency.backend,
        )
        return quantized


def ranked(graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch]) -> Ranked:
    """Return ``graph`` in W8A8 and what each operator costs, from which operators can be chosen at several budgets.

    Raises:
        ValueError: there is no calibration data, or a value or a weight holds NaN or infinity.
    """
    smoothed = _remembered(graph, scheme, calibration)
    return Ranked(smoothed, output_errors(smoothed.whole, calibration))


def _remembered(graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch]) -> Smoothed:
    """Return the graph with smoothed inputs, not made anew where this process did so last: choices come one by one."""
    key = (id(graph), scheme, calibration_sha256(calibration))  # what is remembered keeps the graph, and so its id
    if key not in _LAST:
        _LAST.clear()
        _LAST[key] = smooth(graph, scheme, calibration)
    return _LAST[key]


def _budget(program: Problem, latency: Latency, max_latency: float | None) -> float:
    """Return what the operators may take."""
    narrow, wide = (program.total_cost(np.full(len(program.error), choice)) for choice in range(len(FORMATS)))
    if max_latency is None:
        return narrow + _GIVEN_UP * max(0.0, wide - narrow)
    if max_latency < latency.rest + min(narrow, wide):
        raise ValueError(
            f"the model takes {1e3 * (latency.rest + narrow):.3g} ms on {latency.backend} with all operators in 8 "
            f"bits: a latency of {1e3 * max_latency:.3g} ms is out of reach."
        )
    return max_latency - latency.rest
