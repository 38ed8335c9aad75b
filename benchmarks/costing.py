"""What quantizers cost: the records of the kinds ``quantize`` and ``peer``."""

import importlib.metadata
from dataclasses import asdict
from typing import TYPE_CHECKING

from benchmarks import judging
from benchmarks.cost import Cost
from benchmarks.matrix import Case
from reports.record import SCHEMA, plain

if TYPE_CHECKING:
    from benchmarks.peers import PeerCase
    from benchmarks.trials import Trial, Trials
    from benchmarks.workshop import Workshop

_OTHERS = ("artifact", "accuracy", "fidelity", "parity", "size", "coverage", "speed", "memory", "scores")
_NOT_MEASURED = {section: {"reason": "the case measures what its quantizer costs"} for section in _OTHERS}


class CostMeasurement:
    """Collects what a quantizer costs, and how a peer's compares; :meth:`record` returns it in the record's schema."""

    def __init__(self, case: "Case | PeerCase", kind: str, workshop: "Workshop", benchmark) -> None:
        self.case, self.kind = case, kind
        self._workshop, self._benchmark = workshop, benchmark
        self._sections: dict[str, dict] = {}

    def quantize(self, trials: "Trials") -> None:
        """Quantize the case's model."""
        self._sections["cost"] = self._cost(trials.cost(self.case, self._benchmark.pedantic))

    def compare(self, trials: "Trials") -> None:
        """Try the peer and all our methods of the same kind, and choose which of ours answers it."""
        trial = trials.peer(self.case, self._benchmark.pedantic)
        ours = {case.method: trials.ours(case) for case in self.case.rivals()}
        name = self.case.model
        before, samples = trials.float_outputs(name), self._workshop.evaluation(name)
        model, reference = self._workshop.model(name), self._workshop.reference(name)
        outcomes = judging.outcomes(model, reference, before, trial.outputs, samples)
        self._sections |= {
            "cost": self._cost(trial.cost),
            "accuracy": judging.accuracy(model, outcomes, samples),
            "fidelity": judging.fidelity(outcomes),
            "scores": judging.scores(outcomes, trial.outputs, samples),
            "peer": self._comparison(trial, ours),
        }

    def record(self) -> dict[str, object]:
        """Return the record, in plain JSON types."""
        graph = self._workshop.prepare(self.case.model).graph
        return plain(
            {
                "schema": SCHEMA,
                "kind": self.kind,
                "evidence": "measured",
                "case": {axis: getattr(self.case, axis) for axis in ("model", "method", "bits", "backend")},
                "model": {
                    "family": self._workshop.model(self.case.model).family,
                    "parameters": graph.parameter_count,
                    "weights_sha256": graph.weights_sha256,
                },
                "scheme": self.case.scheme.as_dict(),
                **_NOT_MEASURED,
                **self._sections,
            }
        )

    def _cost(self, cost: Cost) -> dict[str, object]:
        float_bytes = 4 * self._workshop.prepare(self.case.model).graph.parameter_count
        return {**asdict(cost), "float_bytes": float_bytes, "cached": False}

    def _comparison(self, trial: "Trial", ours: "dict[str, Trial]") -> dict[str, object]:
        library = self.case.library.constants.get("DISTRIBUTION", self.case.library.name)
        answer = answer_to(trial, ours)
        return {
            "library": f"{library} {importlib.metadata.version(library)}",
            "ours": {name: {**asdict(tried.cost), "error": tried.error} for name, tried in ours.items()},
            "answer": answer,
            "ratio": trial.cost.seconds / ours[answer].cost.seconds,
        }


def answer_to(peer: "Trial", ours: "dict[str, Trial]") -> str:
    """Return which of ours is the fastest at no worse error than the peer's; where none is, that of least error."""

    def rank(name: str) -> tuple[float, float]:
        loses = ours[name].error > peer.error
        return (ours[name].error, 0.0) if loses else (peer.error, ours[name].cost.seconds)

    return min(ours, key=rank)
