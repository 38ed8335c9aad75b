"""The search for what to ship: candidates priced, raced from the cheapest on, and the first that holds verified.

Every rung (``benchmarks/candidates.py``) is priced with the method that is quickest to make. They are raced in order of
price. Where a rung cheaper than the best found has failed, its next method is tried if there is hope for it; what takes
minutes to make is tried only while nothing holds at all. Losses are those of the artefacts on their own runtimes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from benchmarks.candidates import Rung
from benchmarks.losses import Losses, outcome_text
from benchmarks.matrix import Case
from benchmarks.prices import Price, by_price, price
from benchmarks.workshop import Artifact, Workshop, calibration_batches
from quant.replaying import recipe_of
from quant.scheme import Scheme
from quant.search import COMES_AFTER, Loss, OutOfTime, Race, Step, race

_QUICK_WAVES = 2
"""How many methods of a rung are tried although something dearer holds already."""
_MOST_REFUSALS = 3
"""Times that may be refused before the machine is taken to be too busy for any."""
_LEAST_LEFT = 0.4
"""No method leaves less of the error of the quickest one: at 4 bits in groups of 128, 0.13 of 0.31."""
SAME_NUMBERS = "the same numbers failed as"
_LOSSY = "loses too much"
_FAILED = (_LOSSY, "not shown", "did not hold")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Bounds:
    """What running a candidate may cost: bytes of its artefact and seconds of a call, None for any."""

    size: float | None = None
    latency: float | None = None

    def obstacle(self, found: Price) -> str | None:
        """Return why a candidate of this price is out of the question, or None."""
        if self.size is not None and found.size > self.size:
            return f"too large: {found.size / 1e6:.3g} MB"
        if self.latency is None or found.high <= self.latency:
            return None
        if found.seconds is None:
            return f"no time is known: {found.reason}"
        return f"too slow: {1e3 * found.seconds:.3g} ms, at most {1e3 * found.high:.3g}"


@dataclass(frozen=True)
class Chosen:
    """The candidate that holds: what it costs and lost, and the recipe of its tables."""

    case: Case
    price: Price
    verified: Loss
    recipe: dict[str, object]
    artifact_sha256: str
    runtime: str


@dataclass
class Found:
    """What a search came to know.

    priced      the rungs within the bounds with their prices, the cheapest first
    refused     first case of each other rung -> what is against it
    prices      case -> what it costs itself, of those that were made
    steps       case -> what became of it
    chosen      None where nothing was shown to hold
    over        whether time ended it
    answered    how many samples candidates and float answered
    exhaustive  how many they would if every candidate within the bounds were judged on all samples
    """

    priced: list[tuple[Rung, Price]] = field(default_factory=list)
    refused: dict[Case, str] = field(default_factory=dict)
    prices: dict[Case, Price] = field(default_factory=dict)
    steps: dict[Case, Step[Case]] = field(default_factory=dict)
    chosen: Chosen | None = None
    over: bool = False
    answered: int = 0
    exhaustive: int = 0

    @property
    def closest(self) -> Step[Case] | None:
        """Of what was judged the candidate whose loss may be the smallest."""
        return Race(list(self.steps.values())).closest

    def price_of(self, case: Case) -> Price:
        """Return what a case costs to run: what the first of its rung does, unless it was made itself."""
        return self.prices.get(case) or self.priced[self.place_of(case)][1]

    def place_of(self, case: Case) -> int:
        """Return the place of a case's rung in the order of prices."""
        return next(place for place, (rung, _) in enumerate(self.priced) if case in rung.cases)


class Search:
    """One search. ``tell`` is called with a line for whatever comes out."""

    def __init__(
        self, workshop: Workshop, losses: Losses, rungs: Sequence[Rung], bounds: Bounds, tell: Tell = lambda text: None
    ) -> None:
        self.drop = losses.drop
        self._workshop, self._losses, self._rungs, self._bounds, self._tell = workshop, losses, rungs, bounds, tell
        self._calibration = workshop.calibration(rungs[0].first.model)
        self._prices: dict[Case, Price] = {}
        self._errors: dict[tuple[str, Scheme], float] = {}
        self._made: Artifact | None = None
        self._refusals = 0

    def run(self) -> Found:
        """Return what was found, all of it or until time was over."""
        found = Found(prices=self._prices)
        try:
            self._price_all(found)
        except OutOfTime:
            found.over = True
        found.priced = by_price(found.priced)
        for wave in count():
            ahead = [rung for rung in _ahead(found) if len(rung.cases) > wave]
            if found.over or not ahead or (found.chosen and wave >= _QUICK_WAVES):
                break
            self._race(found, [rung.cases[wave] for rung in ahead])
        cases = sum(len(rung.cases) for rung, _ in found.priced)
        backends = len({rung.first.backend for rung, _ in found.priced})
        found.answered = self._losses.answered
        found.exhaustive = (cases + backends) * sum(map(len, self._losses.parts))
        return found

    def _price_all(self, found: Found) -> None:
        for position, rung in enumerate(self._rungs):
            self._workshop.report(f"pricing {rung.first}, {position + 1} of {len(self._rungs)}")
            try:
                cost = self._price(rung.first)
            except ValueError as error:
                obstacle = f"failed: {error}"
            else:
                obstacle = self._bounds.obstacle(cost)
            before = next((case for case, reason in found.refused.items() if reason == obstacle), None)
            if obstacle:
                found.refused[rung.first] = obstacle
            else:
                found.priced.append((rung, cost))
            self._tell(f"{rung.first}: {f'as {before}' if before else obstacle or cost}")

    def _race(self, found: Found, cases: Sequence[Case]) -> None:
        def judge(case: Case, samples: int) -> Loss:
            obstacle = self._bounds.obstacle(self._price(case)) or self._dearer(found, case)
            if obstacle:
                raise ValueError(obstacle)
            artifact = self._artifact(case)
            with _refusing():
                loss = self._losses.seen(artifact, samples)
            self._errors[_numbers(case)] = self._losses.error(artifact)
            return loss

        def verify(case: Case) -> Loss:
            artifact = self._artifact(case)
            with _refusing():
                return self._losses.verified(artifact)

        def told(step: Step[Case]) -> None:
            found.steps[step.candidate] = step
            if step.reason != COMES_AFTER:
                self._tell(f"{step.candidate}: {outcome_text(step, self.drop.unit)}")

        tolerated, looks = self.drop.limit.amount, self._losses.looks
        run = race(cases, judge, verify, tolerated, looks, lambda case: self._hopeless(found, case), told)
        found.over = run.is_over
        if run.winner:
            found.chosen = self._chosen(run.winner)

    def _dearer(self, found: Found, case: Case) -> str | None:
        """Return why a case is no better than what holds already, though the first of its rung would be."""
        if found.chosen is None:
            return None
        known = [(rung.first, cost) for rung, cost in found.priced if rung.first not in (case, found.chosen.case)]
        rivals = [(found.chosen.case, found.chosen.price), (case, self._price(case)), *known]
        order = [one for one, _ in by_price(rivals)]
        dearer = order.index(case) > order.index(found.chosen.case)
        return f"itself no better than {found.chosen.case}" if dearer else None

    def _hopeless(self, found: Found, case: Case) -> str | None:
        """Return why a case need not be judged: what is known of others leaves no hope for it."""
        failed = {other: step.outcome for other, step in found.steps.items() if step.outcome in _FAILED}
        for other in failed:
            if _numbers(other) == _numbers(case):
                return f"{SAME_NUMBERS} {other}"
        first = found.priced[found.place_of(case)][0].first
        lossy = [other for other, outcome in failed.items() if outcome == _LOSSY and other.scheme != case.scheme]
        if case == first or _numbers(first) not in self._errors or not lossy:
            return None
        worse = min(lossy, key=lambda other: self._errors[_numbers(other)])
        expected, enough = _LEAST_LEFT * self._errors[_numbers(first)], self._errors[_numbers(worse)]
        if expected < enough:
            return None
        return f"its outputs would be off by {expected:.2g} at best, and {worse}, off by {enough:.2g}, {_LOSSY}"

    def _chosen(self, step: Step[Case]) -> Chosen:
        case, artifact = step.candidate, self._artifact(step.candidate)
        batches = calibration_batches(self._calibration) if case.method_entry.calibrates else ()
        granularity = case.target.constant("DYNAMIC_GRANULARITY", "token")
        recipe = recipe_of(artifact.tables.quantized, batches, granularity)
        runtime = case.target.load().version()
        return Chosen(case, self._price(case), step.verified, recipe, artifact.entry.content_sha256, runtime)

    def _price(self, case: Case) -> Price:
        if case not in self._prices:
            artifact = self._artifact(case)
            with _refusing():
                found = price(self._workshop, artifact, self._losses.parts.race, self._refusals >= _MOST_REFUSALS)
            self._refusals += found.refused
            self._prices[case] = found
        return self._prices[case]

    def _artifact(self, case: Case) -> Artifact:
        """Return the case's artefact; of all of them one is held at a time."""
        if self._made is None or self._made.case != case:
            self._made = None
            with _refusing():
                tables = self._workshop.quantize(case, self._calibration)
                self._made = self._workshop.compile(case, tables, self._calibration)
        return self._made


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn whatever a runtime or its exporter raises into a ValueError of one line: other candidates go on.

    Raises:
        ValueError: with what was said.
    """
    try:
        yield
    except (OutOfTime, ValueError):
        raise
    except Exception as error:
        said = next(iter(str(error).splitlines()), "")
        named = isinstance(error, LookupError) or not said  # whose text is a key alone
        raise ValueError(f"{type(error).__name__}: {said}".rstrip(": ") if named else said) from error


def _numbers(case: Case) -> tuple[str, Scheme]:
    """Return what decides a case's integers, which all backends share."""
    return case.method, case.scheme


def _ahead(found: Found) -> list[Rung]:
    """Return the rungs that are cheaper than that of the best found, or all."""
    place = len(found.priced) if found.chosen is None else found.place_of(found.chosen.case)
    return [rung for rung, _ in found.priced[:place]]
