"""Which settings of a runtime are the fastest for a case on this machine, found by racing them.

One setting after the other: its values are timed in turns with the settings found so far, each after an untimed call,
and what is clearly slower is dropped on the way. The best is taken over where its interval lies above 1. At the end all
that was taken over is timed against the defaults in fresh rounds, with the rules of ``benchmarks/timing.py``: the best
of several chances looks better than it is.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks import timing
from benchmarks.judging import relative_error
from benchmarks.matrix import Case, matrix
from benchmarks.tuned import Entry, numbers_of, settings_text, speed_text
from benchmarks.workshop import Artifact, Workshop
from quant.backends import Executable
from quant.hardware import processor
from reports.statistics import SpeedRatio, speed_ratio

FEWEST_ROUNDS = 8
MOST_ROUNDS = 400
ROUNDS_BETWEEN_LOOKS = 4
LEAST_GAIN = 1.02
"""What is not at least so much faster than the defaults is not worth a setting."""
LARGEST_ERROR = 0.05
"""Distance of the outputs to those of the defaults: settings change roundings, and nothing else."""

_QUICKEST = ("float", "rtn", "static_plain", "dynamic", "palette")
"""Of each family the method that is quickest to make; all make tables of the same kind."""

Tell = Callable[[str], None]
Settings = dict[str, object]


@dataclass(frozen=True)
class Trial:
    """What became of one value of a setting: its speed over that of what it was raced with, or why there is none."""

    settings: Settings
    speed: SpeedRatio | None = None
    obstacle: str | None = None

    def __str__(self) -> str:
        outcome = self.obstacle or speed_text(*self.speed)
        return f"{settings_text(self.settings)}: {outcome}"


@dataclass(frozen=True)
class Tuned:
    """What was found for a case.

    entry    the best settings; none where the defaults are the best
    seconds  of a call with the defaults, and with those settings
    trials   all that was tried
    others   words for numbers like the case's -> their speed over that of the case, both with its best settings
    refused  why the gain could not be measured, or None
    """

    case: Case
    entry: Entry
    seconds: tuple[float, float]
    trials: tuple[Trial, ...]
    others: dict[str, SpeedRatio] = field(default_factory=dict)
    refused: str | None = None

    @property
    def within(self) -> float:
        """How much faster than the defaults any value may be that was tried beside them, as a share."""
        known = [trial.speed.interval.high for trial in self.trials if trial.speed and trial.speed.interval]
        return max(0.0, max(known, default=1.0) - 1)


def choices(case: Case, threads: int) -> dict[str, Sequence[object]]:
    """Return the settings to try for a case and their values, the default first."""
    target, counts = case.target, [1]
    while counts[-1] * 2 <= threads:
        counts.append(counts[-1] * 2)
    every = {"threads": sorted({*counts, threads}), **target.constant("SETTINGS", {})}
    return {name: values for name, values in every.items() if len(values) > 1 and name not in target.settings}


def usable_threads() -> int:
    """Return how many threads this process may use."""
    here = processor()
    return max(1, math.floor(min(filter(None, (here.allowed, here.quota)), default=1)))


def quickest_cases(model: str, backends: Sequence[str], words: Sequence[str]) -> list[Case]:
    """Return the cases of a model with these ``words`` for bits, one for each kind of numbers."""
    exist = set(matrix()[0])
    made = (Case(model, method, word, backend) for backend in backends for method in _QUICKEST for word in words)
    return [case for case in made if case in exist]


class Tuner:
    """Tunes cases one by one; ``seconds`` are those of one race."""

    def __init__(self, workshop: Workshop, threads: int, seconds: float, tell: Tell = lambda text: None) -> None:
        self._workshop, self._threads, self._seconds, self._tell = workshop, threads, seconds, tell

    def tune(self, case: Case) -> Tuned:
        """Return the best settings of a case.

        Raises:
            ValueError: it cannot be made, or its time means nothing.
        """
        artifact = self._made(case)
        executable = artifact.executable
        if executable.untimed_reason or executable.evidence != "measured":
            raise ValueError(executable.untimed_reason or "no kernel here computes in these numbers.")
        inputs = self._workshop.first_batch(self._workshop.calibration(case.model))
        best, trials = self._descend(artifact, inputs)
        tuned = self._verified(artifact, best, trials, inputs)
        others = self._others(artifact, tuned.entry.settings, inputs)
        return replace(tuned, others=others)

    def _descend(self, artifact: Artifact, inputs: tuple[np.ndarray, ...]) -> tuple[Settings, tuple[Trial, ...]]:
        """Return the settings that won, and all trials."""
        best: Settings = {}
        current, expected = artifact.executable, artifact.executable(*inputs)[0]
        trials: list[Trial] = []
        for name, values in choices(artifact.case, self._threads).items():
            self._workshop.report(f"{artifact.case}: {name}")
            rivals: dict[object, Executable] = {}
            for value in values[1:]:
                opened = self._opened(artifact, {**best, name: value}, inputs, expected)
                if isinstance(opened, str):
                    trials.append(Trial({name: value}, obstacle=opened))
                    self._tell(f"  {trials[-1]}")
                else:
                    rivals[value] = opened
            calls = {value: _call(rival, inputs) for value, rival in rivals.items()}
            speeds = race(_call(current, inputs), calls, self._seconds)
            for value, speed in speeds.items():
                trials.append(Trial({name: value}, speed))
                self._tell(f"  {trials[-1]}")
            winner = max(speeds, key=lambda value: speeds[value].ratio, default=None)
            if winner is not None and speeds[winner].interval.low > 1:
                best, current = {**best, name: winner}, rivals[winner]
        return best, tuple(trials)

    def _verified(
        self, artifact: Artifact, best: Settings, trials: tuple[Trial, ...], inputs: tuple[np.ndarray, ...]
    ) -> Tuned:
        """Time the settings that won against the defaults in fresh rounds; keep them where they are faster there."""
        case, batch = artifact.case, self._workshop.settings.batch
        entry = Entry(case.model, numbers_of(case), case.backend, batch, {}, 1.0, (1.0, 1.0))
        seconds = timing.seconds_of(_call(artifact.executable, inputs))
        if not best:
            return Tuned(case, entry, (seconds, seconds), trials)
        self._workshop.report(f"{case}: timing {settings_text(best)} against the defaults")
        rival, twin = (self._open(artifact, settings) for settings in (best, {}))
        models = timing.Models(_call(rival, inputs), _call(artifact.executable, inputs), _call(twin, inputs))
        times = timing.compare(models, self._seconds, int(best.get("threads", 1)))
        speed, refused = speed_ratio(times.baseline, times.variant), timing.refusal(times)
        medians = float(np.median(times.baseline)), float(np.median(times.variant))
        if refused or speed.interval.low < 1 or speed.ratio < LEAST_GAIN:
            return Tuned(case, entry, (medians[0], medians[0]), trials, refused=refused)
        entry = replace(entry, settings=best, speed=speed.ratio, ci95=speed.interval[:2])
        return Tuned(case, entry, medians, trials)

    def _others(self, artifact: Artifact, settings: Settings, inputs: tuple[np.ndarray, ...]) -> dict[str, SpeedRatio]:
        """Race numbers like the case's, which a kernel may be faster with, under its settings."""
        case, rivals = artifact.case, {}
        for word in case.target.constant("NUMBERS", {}).get(case.bits, ()):
            method = case.method if word.startswith(case.bits) else "dynamic"
            self._workshop.report(f"{case}: {word}")
            other = self._made(Case(case.model, method, word, case.backend))
            if other.executable.evidence == "measured":
                rivals[word] = _call(self._open(other, settings), inputs)
        own = self._open(artifact, settings) if rivals else artifact.executable
        return race(_call(own, inputs), rivals, self._seconds)

    def _made(self, case: Case) -> Artifact:
        calibration = self._workshop.calibration(case.model)
        return self._workshop.compile(case, self._workshop.quantize(case, calibration), calibration)

    def _open(self, artifact: Artifact, settings: Settings) -> Executable:
        return artifact.case.target.open(artifact.entry.path, self._workshop.settings.threads, settings)

    def _opened(
        self, artifact: Artifact, settings: Settings, inputs: tuple[np.ndarray, ...], expected: np.ndarray
    ) -> Executable | str:
        """Return the artefact with ``settings``, or why they are out of the question."""
        try:
            opened = self._open(artifact, settings)
            error = relative_error(opened(*inputs)[0], expected)
        except Exception as error:  # whatever a runtime raises: other settings go on
            return f"refused: {next(iter(str(error).splitlines()), type(error).__name__)}"
        return opened if error <= LARGEST_ERROR else f"refused: its outputs are off by {error:.2g}"


def race(current: timing.Call, rivals: Mapping[object, timing.Call], seconds: float) -> dict[object, SpeedRatio]:
    """Return the speed of each rival over that of ``current``, timed in turns for about ``seconds``.

    A rival is out as soon as its interval lies below 1.
    """
    if not rivals:
        return {}
    order: list[object] = [None, *rivals]
    calls = {None: current, **rivals}
    times: dict[object, list[float]] = {name: [] for name in order}
    with timing.garbage_kept():
        end, running, last = time.perf_counter() + seconds, set(rivals), None
        random = np.random.default_rng(0)
        for number in range(MOST_ROUNDS):
            enough = number >= FEWEST_ROUNDS
            if enough and number % ROUNDS_BETWEEN_LOOKS == 0:
                running = {name for name in running if _speed(times, name).interval.high >= 1}
            if not running or (enough and time.perf_counter() > end):
                break
            for name in timing.in_turn([name for name in order if name is None or name in running], last, random):
                times[name].append(timing.seconds_of(calls[name]))
                last = name
    return {name: _speed(times, name) for name in rivals}


def _speed(times: Mapping[object, Sequence[float]], name: object) -> SpeedRatio:
    rounds = len(times[name])
    return speed_ratio(np.array(times[None][:rounds]), np.array(times[name]))


def _call(executable: Executable, inputs: tuple[np.ndarray, ...]) -> timing.Call:
    return lambda: executable(*inputs)
