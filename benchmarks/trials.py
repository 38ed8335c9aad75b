"""Quantizers tried: what one costs, and what the model it makes answers on held-out samples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.child import Job
from benchmarks.cost import Child, Cost
from benchmarks.judging import relative_error
from benchmarks.matrix import Case
from quant.backends import target

if TYPE_CHECKING:
    from benchmarks.peers import PeerCase
    from benchmarks.workshop import Workshop

Call = Callable[[Callable[[], Cost]], Cost]
"""Calls a function: directly, or as the subject of a benchmark."""


@dataclass(frozen=True)
class Trial:
    """A quantizer's cost, the outputs of what it made, float32 [n, ...], and their error against float."""

    cost: Cost
    outputs: np.ndarray
    error: float


def _directly(work: Callable[[], Cost]) -> Cost:
    return work()


class Trials:
    """Tries quantizers in processes of their own; never from the cache, and our own methods once a run each."""

    def __init__(self, workshop: "Workshop") -> None:
        self._workshop = workshop
        self._ours: dict[Case, Trial] = {}

    def cost(self, case: Case, call: Call = _directly) -> Cost:
        """Return what the tables of ``case`` cost to make."""
        with Child(self._job(case), self._workshop.report) as child:
            return call(child.quantize)

    def ours(self, case: Case) -> Trial:
        """Return our method's trial on the weights of linear layers."""
        if case not in self._ours:
            self._ours[case] = self._try(case, self._job(case, linear_only=True), _directly)
        return self._ours[case]

    def peer(self, case: "PeerCase", call: Call = _directly) -> Trial:
        return self._try(case, self._job(case, case.library.module, linear_only=True), call)

    def float_outputs(self, model: str) -> np.ndarray:
        """Return float32 [n, ...]: what the float model answers on the evaluation samples."""
        workshop = self._workshop
        return workshop.outputs(workshop.baseline(Case(model, "float", "fp32", "torch")), workshop.evaluation(model))

    def _try(self, case: "Case | PeerCase", job: Job, call: Call) -> Trial:
        workshop = self._workshop
        before, samples = self.float_outputs(case.model), workshop.evaluation(case.model)
        workshop.report(f"trying {case}")
        with Child(job, workshop.report) as child:
            cost = call(child.quantize)
            outputs = child.outputs(workshop.inputs_file(samples.first(len(before))))
        if not np.isfinite(outputs).all():
            raise ValueError(f"{case} gives NaN or infinity: it cannot be compared.")
        return Trial(cost, outputs, relative_error(outputs, before))

    def _job(self, case: "Case | PeerCase", library: str | None = None, linear_only: bool = False) -> Job:
        graph = self._workshop.prepare(case.model).entry.path
        calibration = self._workshop.inputs_file(self._workshop.calibration(case.model))
        return Job(
            library=library,
            method=case.method,
            bits=case.bits,
            granularity=target(case.backend).constant("DYNAMIC_GRANULARITY", "token"),
            model=case.model,
            graph=str(graph),
            calibration=str(calibration),
            linear_only=linear_only,
        )
