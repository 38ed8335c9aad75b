"""Mixed precision for one backend: sensitivities measured once, formats chosen, and the models of them made.

What a runtime stores decides the cost: codes of a width it does not have take the next wider one, and a model has other
parts than its weights. Sensitivities are kept in the cache; every choice is an ordinary case of the method ``mixed``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.matrix import Case
from benchmarks.workshop import Artifact, Workshop, calibration_batches
from fixtures.cache import source_digest
from quant import sensitivity
from quant.backends import Target
from quant.methods import Method, method
from quant.methods.mixed import CRITERION, measured
from quant.mixed import Problem, least_error
from quant.offers import Offer, words_of
from quant.progress import reporting
from quant.replaying import environment
from quant.scheme import budget_word
from quant.sensitivity import Sensitivity

METHOD = "mixed"
_ATTEMPTS = 3
_FILE = "sensitivity.json"

Tell = Callable[[str], None]
Choose = Callable[[Problem, float], np.ndarray]


@dataclass(frozen=True)
class Assigned(Case):
    """A case whose weights have the ``formats`` given, as pairs of a weight and a word."""

    formats: tuple[tuple[str, str], ...] = ()

    @cached_property
    def method_entry(self) -> Method:
        return replace(method(METHOD), settings={"formats": dict(self.formats)})


@dataclass(frozen=True)
class Choice:
    """One choice of formats, and what is foreseen of it.

    chosen           int64 [weights], of the words on offer
    error            as the criterion has it, summed over the weights
    bits_per_weight  of the tables, over all parameters
    size             bytes of the artefact
    """

    chosen: np.ndarray
    error: float
    bits_per_weight: float
    size: float


class Mixer:
    """Chooses formats for the weights of a model on a backend, and makes what was chosen.

    Args:
        words: formats on offer; without any, those that the backend stores as they are.
        kept: file that sensitivities are read from, or written to if it does not exist.
        tell: called with a line for whatever comes out.
    """

    def __init__(
        self,
        workshop: Workshop,
        model: str,
        target: Target,
        words: Sequence[str] = (),
        criterion: str = CRITERION,
        kept: Path | None = None,
        tell: Tell = lambda text: None,
    ) -> None:
        self.model, self.target, self.criterion = model, target, criterion
        self._workshop, self._kept, self._tell = workshop, kept, tell
        self._calibration = workshop.calibration(model)
        self._widths = target.constant("WIDTHS")
        self.offer = Offer(workshop.prepare(model).graph, tuple(words) or words_of(self._widths))
        self._made: Artifact | None = None
        self._unforeseen = 0.0

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """What each format costs the model, measured now or before.

        Raises:
            ValueError: the file of them is damaged, or of another model, another criterion or other formats.
        """
        if self._kept and self._kept.exists():
            found = sensitivity.load(self._kept, self.offer.graph)
            if found.criterion != self.criterion:
                raise ValueError(
                    f"{self._kept} was measured by {found.criterion}: write --criterion {found.criterion}."
                )
            found.among(self.offer.weights, self.offer.words)
            self._tell(f"sensitivities: those of {self._kept}")
            return found
        entry = self._workshop.cache.entry("sensitivities", self._key(), self._measure)
        found = sensitivity.load(entry.path / _FILE, self.offer.graph)
        when = "as an earlier run measured them" if entry.cached else f"measured in {entry.seconds:.0f} s"
        count = f"{len(found.weights)} weights in {len(found.formats)} formats by {self.criterion}"
        self._tell(f"sensitivities of {count}: {when}")
        if self._kept:
            found.save(self._kept)
        return found

    @cached_property
    def stored_bits(self) -> np.ndarray:
        """What the backend stores of each weight in each word: float64 [weights, words]."""
        constants = (self.target.constant(name) for name in ("GROUP_BITS", "LOOSE_WIDTHS"))
        return self.offer.bits(self._widths, *constants)

    @cached_property
    def by_size(self) -> Problem:
        """The choice there is where bits in the artefact are what it costs."""
        return self._problem(self.stored_bits)

    def alike(self, word: str) -> Choice:
        """Return one format on offer for all weights."""
        column = self.offer.words.index(word)
        return self._foreseen(self.by_size, np.full(len(self.offer.weights), column))

    def within_bits(self, bits_per_weight: float, choose: Choose = least_error) -> Choice:
        """Return the choice of least error where all parameters together take so many bits each in the tables.

        Raises:
            ValueError: there is none.
        """
        return self._choice(self._problem(self.offer.bits()), self.offer.budget(bits_per_weight), choose)

    def within_size(self, size: float) -> Choice:
        """Return the choice of least error whose artefact takes so many bytes at most, as far as can be foreseen.

        Raises:
            ValueError: there is none.
        """
        if size <= self._beside:
            raise ValueError(f"without its weights the model takes {self._beside / 1e6:.3g} MB already: allow more.")
        return self._choice(self.by_size, 8 * (size - self._beside))

    def made_within_size(self, size: float) -> tuple[Choice, Artifact]:
        """Return the choice of least error whose artefact does take so many bytes at most, and the artefact.

        Raises:
            ValueError: there is none.
        """
        for _ in range(_ATTEMPTS):
            choice = self.within_size(size)
            artifact = self.make(choice)
            if artifact.executable.size_bytes <= size:
                return choice, artifact
            self._unforeseen += artifact.executable.size_bytes - choice.size
        raise ValueError(f"no artefact of at most {size / 1e6:.4g} MB came out: allow a little more.")

    def within(self, budget: float, cost: np.ndarray) -> Choice:
        """Return the choice of least error whose weights together cost ``budget`` at most: float64 [weights, words].

        Raises:
            ValueError: there is none.
        """
        return self._choice(self._problem(cost), budget)

    def cheapest(self, cost: np.ndarray) -> float:
        """Return the least that all weights together can cost, float64 [weights, words]."""
        units = self._problem(cost).units
        return float(np.where(np.isfinite(units.error), units.cost, np.inf).min(1).sum())

    def sizes(self, count: int) -> list[float]:
        """Return so many sizes in bytes, growing by equal factors, from the smallest choice to that of least error."""
        units = self.by_size.units
        least = self.cheapest(self.stored_bits)
        best = np.take_along_axis(units.cost, units.error.argmin(1)[:, None], 1).sum()
        # A budget equal to a sum may be missed by its rounding.
        return [float(bits / 8 + self._beside) for bits in (1 + 1e-6) * np.geomspace(least, max(best, least), count)]

    def make(self, choice: Choice) -> Artifact:
        """Return the artefact of a choice; of all of them one is held at a time."""
        formats = tuple(self.offer.named(choice.chosen).items())
        case = Assigned(self.model, METHOD, budget_word(choice.bits_per_weight), self.target.name, formats)
        if self._made is None or self._made.case != case:
            self._made = None
            tables = self._workshop.quantize(case, self._calibration)
            self._made = self._workshop.compile(case, tables, self._calibration)
        return self._made

    def _problem(self, cost: np.ndarray) -> Problem:
        return self.offer.problem(self.sensitivity.among(self.offer.weights, self.offer.words), cost)

    def _choice(self, problem: Problem, budget: float, choose: Choose = least_error) -> Choice:
        return self._foreseen(problem, choose(problem, budget))

    def _foreseen(self, problem: Problem, chosen: np.ndarray) -> Choice:
        rows = np.arange(len(chosen))
        packed, stored = (float(table[rows, chosen].sum()) for table in (self.offer.bits(), self.stored_bits))
        error = problem.total_error(chosen)
        return Choice(chosen, error, self.offer.bits_per_weight(packed), stored / 8 + self._beside)

    @property
    def _beside(self) -> float:
        """Bytes of an artefact beside its weights: those of float's, and what turned out not to be foreseen."""
        floats = self._workshop.baseline(Case(self.model, METHOD, "mixed_4", self.target.name)).executable.size_bytes
        weights = sum(4 * self.offer.graph.parameters[name].numel() for name in self.offer.weights)
        return floats - weights + self._unforeseen

    def _key(self) -> dict[str, object]:
        return {
            "graph": self._workshop.prepare(self.model).entry.digest,
            "formats": self.offer.words,
            "criterion": self.criterion,
            "calibration": self._calibration.digest,
            "source": source_digest("quant.methods.mixed"),
            "machine": environment(),
        }

    def _measure(self, folder: Path) -> None:
        with reporting("sensitivity", self._workshop.report):
            found = measured(self.offer, calibration_batches(self._calibration), self.criterion)
        found.save(folder / _FILE)
