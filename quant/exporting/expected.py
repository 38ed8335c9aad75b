"""What an artefact must compute: the simulation of its tables on samples, run once for all formats."""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch

from quant.exporting import Layout
from quant.graph import FloatGraph, QuantizedModel, simulate, simulate_perturbed

Scores = Callable[[np.ndarray], np.ndarray]
"""From outputs [n, ...] to a score of each class [n, ..., classes]."""
Metric = Callable[[np.ndarray, np.ndarray], dict[str, object]]
"""From the simulation's outputs and an artefact's on the first n samples to a metric of both, in plain JSON types."""


class Expected:
    """A quantized model with the samples it is checked on, one at a time.

    samples  one array [n, ...] per input; the graph's examples where none are given
    scores   what outputs say of classes; None where they say nothing of any
    metric   what else is found out about outputs, where there are labels
    step     how a decoder goes on with a text (see :mod:`quant.generation`); None of models that do not
    """

    def __init__(
        self,
        quantized: QuantizedModel,
        samples: Sequence[np.ndarray] | None = None,
        scores: Scores | None = lambda outputs: outputs,
        metric: Metric | None = None,
        step: FloatGraph | None = None,
    ) -> None:
        self.quantized, self.scores, self.metric, self.step = quantized, scores, metric, step
        examples = quantized.graph.examples["forward"]
        self.samples = [value.numpy() for value in examples] if samples is None else list(samples)
        self._check()

    def __len__(self) -> int:
        return len(self.samples[0])

    @property
    def layouts(self) -> dict[str, Layout]:
        return {
            name: Layout(tuple(weight.codes.shape), weight.format.bits, weight.format.signed)
            for name, weight in self.quantized.weights.items()
        }

    @cached_property
    def outputs(self) -> np.ndarray:
        """float32 [n, ...]: the first output on every sample."""
        return self._run(simulate(self.quantized))

    @cached_property
    def perturbed(self) -> np.ndarray | None:
        """The same of :func:`quant.graph.simulate_perturbed`: so much may two correct implementations differ.

        None where activations are not quantized.
        """
        return self._run(simulate_perturbed(self.quantized)) if self.quantized.activations else None

    def _run(self, module: torch.nn.Module) -> np.ndarray:
        batches = zip(*(torch.from_numpy(values).split(1) for values in self.samples), strict=True)
        with torch.inference_mode():
            return np.concatenate([module(*batch)[0].numpy() for batch in batches])

    def _check(self) -> None:
        names = self.quantized.graph.graphs["forward"].inputs
        if len(self.samples) != len(names):
            raise ValueError(f"the model takes {len(names)} inputs ({', '.join(names)}), not {len(self.samples)}.")
        lengths = {len(values) for values in self.samples}
        if lengths == {0} or len(lengths) > 1:
            raise ValueError(f"samples need one array of the same length per input ({', '.join(names)}), not empty.")
