"""Weights alone within a latency on one backend: formats that lose least for the time operators take in them.

Each operator is timed alone in every format on offer, and the whole model with all its weights in each; what was chosen
is made and timed in turns with float, and allowed less where it takes longer than was foreseen.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from benchmarks.layer_latency import measure, medians
from benchmarks.matrix import Case
from benchmarks.mixing import Assigned, Choice, Mixer, Tell
from benchmarks.mixing_static import SECONDS
from benchmarks.workshop import Artifact, Workshop
from quant.latency import Latency
from quant.offers import HALF
from quant.scheme import budget_word
from reports.tables import three_digits

_ROUNDING = "rtn"
"""What times are measured with: they depend on the formats, not on the codes."""
_ATTEMPTS = 3


@dataclass(frozen=True)
class Timed:
    """A choice and its artefact; ``seconds`` of a call, foreseen and measured, and float's in the same rounds."""

    choice: Choice
    artifact: Artifact
    foreseen: float
    seconds: float
    float_seconds: float

    def __str__(self) -> str:
        return (
            f"A call takes {_time(self.seconds)} ({_time(self.foreseen)} foreseen) and float's "
            f"{_time(self.float_seconds)}, {self.float_seconds / self.seconds:.2f} times as long, taken in turns."
        )


class LatencyMixer:
    """Chooses formats by what they take, among those that ``mixer`` has on offer.

    Args:
        tell: called with a line for whatever comes out.
    """

    def __init__(self, workshop: Workshop, mixer: Mixer, tell: Tell = lambda text: None) -> None:
        self.mixer, self._workshop, self._tell = mixer, workshop, tell

    @cached_property
    def latency(self) -> Latency:
        """What the operators take on the backend in each format, measured on this machine now or before.

        Raises:
            ValueError: the backend does not run here or has no kernels for these formats, or other programs leave too
                few cores.
        """
        target, words = self.mixer.target, self.mixer.offer.words
        if not target.runs_here:
            raise ValueError(f"{target.name} does not run here, so no time of it can be taken: choose where it runs.")
        calibration, cases = self._workshop.calibration(self.mixer.model), [self._alike(word) for word in words]
        made = (self._workshop.compile(case, self._workshop.quantize(case, calibration), calibration) for case in cases)
        if not any(artifact.executable.coverage()["operators_native"] for artifact in made):
            raise ValueError(
                f"{target.name} has no kernels here for weights in {', '.join(words)}: it computes in float, and takes "
                "as long in each. Bound the size instead, or leave --formats out to choose between 8 bits and float."
            )
        found = replace(measure(self._workshop, cases), formats=words)
        totals = dict(zip(words, found.seconds.sum(0) + found.rest, strict=True))
        taken = ", ".join(f"{_time(seconds)} in {word}" for word, seconds in totals.items())
        self._tell(f"latency on {found.backend}, {found.conditions['processor']}: all weights take {taken}")
        return found

    def made_within(self, seconds: float) -> Timed:
        """Return the choice of least error whose calls do take so long at most, and its artefact.

        Raises:
            ValueError: there is none, or times cannot be taken here.
        """
        if seconds < self.fastest:
            raise ValueError(
                f"{self.mixer.model} takes {_time(self.fastest)} on {self.mixer.target.name} at least, in formats of "
                f"{', '.join(self.mixer.offer.words)}: a latency of {_time(seconds)} is out of reach."
            )
        allowed = seconds
        for _ in range(_ATTEMPTS):
            timed = self._timed(allowed)
            if timed.seconds <= seconds:
                return timed
            self._tell(f"a call takes {_time(timed.seconds)}, where {_time(timed.foreseen)} were foreseen")
            if allowed == self.fastest:
                break
            allowed = max(self.fastest, timed.foreseen - (timed.seconds - seconds))
        raise ValueError(
            f"nothing that was made takes {_time(seconds)} at most, the last took {_time(timed.seconds)}: allow a "
            "little more."
        )

    @property
    def fastest(self) -> float:
        """The seconds foreseen of a call with every weight in its fastest format."""
        return self.mixer.cheapest(self._cost) + self.latency.rest

    @property
    def _cost(self) -> np.ndarray:
        return self.latency.of(self.mixer.offer.weights, self.mixer.offer.words)

    def _timed(self, seconds: float) -> Timed:
        cost, rest = self._cost, self.latency.rest
        # A budget equal to a sum may be missed by its rounding.
        choice = self.mixer.within((seconds - rest) * (1 + 1e-9), cost)
        foreseen = float(cost[range(len(choice.chosen)), choice.chosen].sum() + rest)
        artifact = self.mixer.make(choice)
        self._workshop.report(f"timing {artifact.case}")
        pair = artifact.executable, self._workshop.baseline(artifact.case).executable
        inputs = self._workshop.first_batch(self._workshop.calibration(self.mixer.model))
        calls = [lambda one=one: one(*inputs) for one in pair]
        return Timed(choice, artifact, foreseen, *map(float, medians(calls, SECONDS, self._workshop.settings.threads)))

    def _alike(self, word: str) -> Case:
        """Return the case of all weights in one format."""
        model, backend = self.mixer.model, self.mixer.target.name
        if word != HALF:
            return Case(model, _ROUNDING, word, backend)
        formats = tuple((name, HALF) for name in self.mixer.offer.weights)
        return Assigned(model, "mixed", budget_word(16), backend, formats)


def _time(seconds: float) -> str:
    return f"{three_digits(1e3 * seconds)} ms"
