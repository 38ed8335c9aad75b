"""W8A8 within a latency on one backend: operators left wide while there is time for them, and the model of that.

What 8 bits cost the output, operator by operator, and what operators take in 8 bits and in float are measured once and
kept in the cache. Every choice is an ordinary case of the method ``mixed_static``. Its time is then taken: where it is
longer than was foreseen, less is left wide.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.layer_latency import measure_static, medians
from benchmarks.matrix import Case
from benchmarks.workshop import Artifact, Workshop, calibration_batches
from fixtures.cache import source_digest
from quant import sensitivity
from quant.backends import Target
from quant.execution import one_thread
from quant.latency import Latency
from quant.methods import Method, method
from quant.methods.mixed_static import FORMATS, Choice, Ranked, choose, foreseen, ranked
from quant.progress import reporting
from quant.replaying import environment
from quant.scheme import parse
from quant.sensitivity import Sensitivity

METHOD, BITS = "mixed_static", FORMATS[0]
SECONDS = 4.0
"""How long what was made is timed, in turns with float."""
_ATTEMPTS = 3
_CRITERION = "quantized alone"
_FILE = "sensitivity.json"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Mixture(Case):
    """A case in W8A8 with the operators of the weights ``wide`` left as they are."""

    wide: tuple[str, ...] = ()

    @cached_property
    def method_entry(self) -> Method:
        return replace(method(METHOD), settings={"wide": list(self.wide)})


@dataclass(frozen=True)
class Made:
    """A choice and its artefact; ``seconds`` of a call, and those of ``float`` in the same rounds."""

    choice: Choice
    artifact: Artifact
    seconds: float
    float_seconds: float


def rank(workshop: Workshop, name: str) -> Ranked:
    """Return a model in W8A8 with what each of its operators costs the output."""
    batches = calibration_batches(workshop.calibration(name))
    with one_thread(), reporting(METHOD, workshop.report):
        return ranked(workshop.prepare(name).graph, parse(BITS, "static"), batches)


class StaticMixer:
    """Chooses which operators of a model stay wide on a backend, and makes what was chosen.

    Args:
        tell: called with a line for whatever comes out.
    """

    def __init__(self, workshop: Workshop, model: str, target: Target, tell: Tell = lambda text: None) -> None:
        self.model, self.target = model, target
        self._workshop, self._tell = workshop, tell
        self._calibration = workshop.calibration(model)

    @cached_property
    def errors(self) -> dict[str, float]:
        """What each operator costs the output where it alone is in 8 bits: the squared error over the square.

        Raises:
            ValueError: no operator of the model can be in 8 bits.
        """
        entry = self._workshop.cache.entry("sensitivities", self._key(), self._measure)
        found = sensitivity.load(entry.path / _FILE, self._workshop.prepare(self.model).graph)
        when = "as an earlier run measured it" if entry.cached else f"measured in {entry.seconds:.0f} s"
        self._tell(f"what 8 bits cost each of {len(found.weights)} operators: {when}")
        return dict(zip(found.weights, found.errors[:, 0].tolist(), strict=True))

    @cached_property
    def latency(self) -> Latency:
        """What the operators take on the backend, measured on this machine now or before.

        Raises:
            ValueError: the backend does not run here, or other programs leave too few cores.
        """
        found = measure_static(self._workshop, self.model, self.target.name)
        narrow, wide = (foreseen(self.errors, found, names) for names in ((), self.errors))
        self._tell(
            f"latency on {found.backend}, {found.conditions['processor']}: {1e3 * narrow.seconds:.3g} ms with all "
            f"operators in 8 bits, {1e3 * wide.seconds:.3g} ms with none"
        )
        return found

    def within(self, seconds: float) -> Choice:
        """Return the choice of least error whose calls take so long at most, as far as can be foreseen.

        Raises:
            ValueError: there is none, or times cannot be taken here.
        """
        return choose(self.errors, self.latency, max_latency=seconds)

    def make(self, choice: Choice) -> Artifact:
        """Return the artefact of a choice."""
        case = Mixture(self.model, METHOD, BITS, self.target.name, tuple(choice.wide))
        tables = self._workshop.quantize(case, self._calibration)
        return self._workshop.compile(case, tables, self._calibration)

    def made_within(self, seconds: float) -> Made:
        """Return the choice of least error whose calls do take so long at most, and its artefact.

        Raises:
            ValueError: there is none, or times cannot be taken here.
        """
        least, allowed = foreseen(self.errors, self.latency, ()), seconds
        for _ in range(_ATTEMPTS):
            made = self._timed(self.within(allowed))
            if made.seconds <= seconds:
                return made
            self._tell(
                f"{len(made.choice.wide)} of {len(self.errors)} operators left wide: a call takes "
                f"{1e3 * made.seconds:.3g} ms, where {1e3 * made.choice.seconds:.3g} ms were foreseen"
            )
            if not made.choice.wide:
                break
            allowed = max(least.seconds, made.choice.seconds - (made.seconds - seconds))
        raise ValueError(
            f"nothing that was made takes {1e3 * seconds:.3g} ms at most, the last took {1e3 * made.seconds:.3g} ms: "
            "allow a little more."
        )

    def _timed(self, choice: Choice) -> Made:
        artifact = self.make(choice)
        self._workshop.report(f"timing {artifact.case}")
        pair = artifact.executable, self._workshop.baseline(artifact.case).executable
        inputs = self._workshop.first_batch(self._calibration)
        calls = [lambda one=one: one(*inputs) for one in pair]
        taken, floats = medians(calls, SECONDS, self._workshop.settings.threads)
        return Made(choice, artifact, float(taken), float(floats))

    def _key(self) -> dict[str, object]:
        return {
            "graph": self._workshop.prepare(self.model).entry.digest,
            "formats": [BITS],
            "criterion": _CRITERION,
            "calibration": self._calibration.digest,
            "source": source_digest("quant.methods.mixed_static"),
            "machine": environment(),
        }

    def _measure(self, folder: Path) -> None:
        graph, errors = self._workshop.prepare(self.model).graph, rank(self._workshop, self.model).errors
        if not errors:
            raise ValueError(f"no operator of {self.model} reads what could be in 8 bits, so none is to be chosen.")
        table = np.array(list(errors.values()))[:, None]
        Sensitivity(_CRITERION, tuple(errors), (BITS,), table, graph.weights_sha256).save(folder / _FILE)
