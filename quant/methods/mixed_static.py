"""Static W8A8 in which single operators stay wide: those whose rounding hurts most for the time that it saves.

The tables are those of ``smoothquant``. What an operator costs the output when it alone is quantized
(``quant.sensitivity``) and what it takes in 8 bits and in float (``quant.latency``), with the conversions between
neighbours, make an integer program (``quant.mixed``), as in Hubara et al., 2021 (arXiv:2006.10518). Wide is what the
backend computes in where nothing is quantized: float32 on a CPU, 16 bits where its float is half.

Without a measured latency model the costs are multiply-accumulates, and a tenth of what 8 bits save is given up.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quant.calibrate import Batch
from quant.graph import FloatGraph, QuantizedModel
from quant.latency import Latency, estimated
from quant.methods.smoothquant import Smoothed, smooth
from quant.mixed import Problem, least_cost, least_error
from quant.scheme import Scheme
from quant.sensitivity import output_errors

METHODS = {"mixed_static": {"family": "static", "bits": ("int8",), "calibrates": True}}

FORMATS = ("int8", "fp32")
_WIDE = FORMATS.index("fp32")
_GIVEN_UP = 0.1
"""The share of what 8 bits save that wide operators may cost where nothing else bounds it."""


def quantize(graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch] = ()) -> QuantizedModel:
    """Return ``graph`` in W8A8 with the operators left wide that give most for a tenth of what 8 bits save.

    Raises:
        ValueError: there is no calibration data, or a value or a weight holds NaN or infinity.
    """
    return ranked(graph, scheme, calibration).chosen()


@dataclass(frozen=True)
class Ranked:
    """A graph in W8A8, with the squared error of the output, over its square, that each operator alone causes."""

    smoothed: Smoothed
    errors: dict[str, float]

    def problem(self, latency: Latency) -> Problem:
        """Return the integer program: a row for each operator, in the order of ``errors``, a choice for each format."""
        names = list(self.errors)
        errors = np.array([[error, 0.0] for error in self.errors.values()])
        wide = np.arange(len(FORMATS)) == _WIDE
        return Problem(errors, latency.of(names, FORMATS), wide=wide, conversions=latency.between(names))

    def chosen(
        self, latency: Latency | None = None, max_latency: float | None = None, max_error: float | None = None
    ) -> QuantizedModel:
        """Return the tables with the operators left wide that the program chooses.

        Args:
            latency: what operators take; estimated if it is None.
            max_latency: seconds of ``latency`` that the whole model may take, with the least error.
            max_error: error of the output, over its norm, that quantized operators may cause, in the least time.
        """
        latency = latency or estimated(self.smoothed.whole)
        if not self.errors:
            return self.smoothed.leaving()
        problem = self.problem(latency)
        if max_error is not None:
            choices = least_cost(problem, max_error**2)
        else:
            choices = least_error(problem, self._budget(problem, latency, max_latency))
        names = [name for name, choice in zip(self.errors, choices, strict=True) if choice == _WIDE]
        quantized = self.smoothed.leaving(names)
        quantized.recipe.update(
            left_float=names,
            predicted_error=float(np.sqrt(problem.total_error(choices))),
            predicted_latency=latency.rest + problem.total_cost(choices),
            measured_on=latency.backend,
        )
        return quantized

    def _budget(self, problem: Problem, latency: Latency, max_latency: float | None) -> float:
        """Return what the operators may take.

        Raises:
            ValueError: the model takes more with all of them in 8 bits.
        """
        narrow, wide = (problem.total_cost(np.full(len(self.errors), choice)) for choice in range(len(FORMATS)))
        if max_latency is None:
            return narrow + _GIVEN_UP * max(0.0, wide - narrow)
        if max_latency < latency.rest + min(narrow, wide):
            raise ValueError(
                f"the model takes {1e3 * (latency.rest + narrow):.3g} ms on {latency.backend} with all operators in 8 "
                f"bits: a latency of {1e3 * max_latency:.3g} ms is out of reach."
            )
        return max_latency - latency.rest


def ranked(graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch]) -> Ranked:
    """Return ``graph`` in W8A8 and what each operator costs, from which operators can be chosen at several budgets.

    Raises:
        ValueError: there is no calibration data, or a value or a weight holds NaN or infinity.
    """
    smoothed = smooth(graph, scheme, calibration)
    return Ranked(smoothed, output_errors(smoothed.whole, calibration))
