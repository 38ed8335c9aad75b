"""What is compared: cases quantized from other draws of the calibration data, or broken on purpose, and judged."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks import judging
from benchmarks.answers import answers_of_module
from benchmarks.judging import Outcomes
from benchmarks.matrix import Case
from benchmarks.reliability.populations import Population
from benchmarks.workshop import CALIBRATION_BATCH, Workshop, calibration_batches
from fixtures.model import Samples
from quant.graph import QuantizedModel, simulate
from quant.methods import quantize


@dataclass(frozen=True)
class Subject:
    """A case, quantized and judged in the simulation that every backend is held to."""

    workshop: Workshop
    case: Case

    def quantized(self, seed: int | None = None) -> QuantizedModel:
        """Return the case's tables: from all calibration data, or from half of their clusters, drawn by ``seed``."""
        samples = self.workshop.calibration(self.case.model)
        if seed is not None:
            samples = _half(samples, np.random.default_rng(seed))
        graph, batches = self.workshop.prepare(self.case.model).graph, calibration_batches(samples)
        return quantize(graph, self.case.method, self.case.bits, batches)

    def outcomes(self, quantized: QuantizedModel) -> Outcomes:
        """Return what the tables answer on the evaluation samples, beside float."""
        name, samples = self.case.model, self._samples
        model, reference = self.workshop.model(name), self.workshop.reference(name)
        before = self._run(self.workshop.prepare(name).graph.module())
        return judging.outcomes(model, reference, before, self._run(simulate(quantized)), samples)

    def population(self, before: Outcomes, after: Outcomes) -> Population:
        return Population(self.case, self.workshop.model(self.case.model), self._samples, before, after)

    @property
    def _samples(self) -> Samples:
        return self.workshop.evaluation(self.case.model)

    def _run(self, module: Callable) -> np.ndarray:
        return answers_of_module(module, self._samples, CALIBRATION_BATCH)


def _half(samples: Samples, random: np.random.Generator) -> Samples:
    names = random.permutation(np.unique(samples.clusters))
    return samples.where(np.isin(samples.clusters, names[: (len(names) + 1) // 2]))
