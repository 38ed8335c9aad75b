"""Tuning with executables whose times are given: the clock is turned by the calls themselves."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import timing, tuning
from benchmarks.load import Load
from benchmarks.matrix import Case
from benchmarks.timing import PairedTimes
from benchmarks.tuning import Tuner, choices, quickest_cases, race

CASE = Case("digits", "rtn", "int4", "onnxruntime")
QUIET = Load(others=0.0, free=1, stolen=0.0, seconds=1.0)


class Clock:
    """A clock that only calls turn, by their own time and one part in a hundred of noise."""

    def __init__(self):
        self.now, self._random = 0.0, np.random.default_rng(0)

    def perf_counter(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds * self._random.normal(1, 0.01)


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(tuning, "time", made)
    monkeypatch.setattr(timing, "time", made)
    return made


def test_a_race_tells_how_fast_each_is(clock):
    counts = dict.fromkeys((1.0, 0.5, 2.0), 0)

    def call(seconds):
        def run():
            counts[seconds] += 1
            clock.pass_by(seconds)

        return run

    speeds = race(call(1.0), {"fast": call(0.5), "slow": call(2.0)}, seconds=120)
    assert speeds["fast"].ratio == pytest.approx(2, rel=0.02)
    assert speeds["fast"].interval.low > 1.9
    assert speeds["slow"].ratio == pytest.approx(0.5, rel=0.02)
    assert speeds["slow"].interval.high < 1
    assert counts[2.0] == 2 * tuning.FEWEST_ROUNDS < counts[0.5]


def test_a_race_without_rivals_calls_nothing():
    assert race(lambda: pytest.fail("called"), {}, 1) == {}


def test_what_is_tried_of_a_target():
    found = choices(CASE, threads=6)
    assert list(found["threads"]) == [1, 2, 4, 6]
    assert found["arena"] == (True, False)
    assert "threads" not in choices(CASE, threads=1)
    assert "compiled" not in choices(Case("digits", "float", "fp32", "torch_compile"), threads=1)


def test_of_each_kind_of_numbers_the_quickest_method_is_tuned():
    names = [case.id for case in quickest_cases("digits", ["onnxruntime"], ("fp32", "int8", "int4"))]
    assert names == [
        "digits-float-fp32-onnxruntime",
        "digits-rtn-int8-onnxruntime",
        "digits-rtn-int4-onnxruntime",
        "digits-static_plain-int8-onnxruntime",
    ]


class FakeExecutable:
    """An executable that is a function."""

    untimed_reason = None

    def __init__(self, run, evidence):
        self._run, self.evidence = run, evidence

    def __call__(self, *inputs):
        return self._run(*inputs)


@pytest.fixture
def tuned(clock, monkeypatch):
    """Tunes an artefact whose call takes ``seconds_of(settings)`` and answers ``answer_of(settings)``."""

    def tune(seconds_of, answer_of=lambda settings: 1.0, offered=None, evidence="measured", refusal=None):
        def opened(folder, threads, settings=None):
            settings = {"threads": threads, **(settings or {})}
            if settings.get("arena") == "explodes":
                raise RuntimeError("no such arena\nsecond line")

            def run(*inputs):
                clock.pass_by(seconds_of(settings))
                return [np.full(3, answer_of(settings), np.float32)]

            return FakeExecutable(run, evidence)

        target = SimpleNamespace(
            open=opened, settings={}, constant=lambda name, default: (offered or {}).get(name, default)
        )
        case = SimpleNamespace(
            model="digits",
            method="rtn",
            bits="int4",
            backend="onnxruntime",
            target=target,
            method_entry=SimpleNamespace(name="rtn", family="weight_only", native=False),
        )
        artifact = SimpleNamespace(case=case, entry=SimpleNamespace(path="folder"), executable=opened("folder", 1))
        workshop = SimpleNamespace(
            settings=SimpleNamespace(threads=1, batch=1),
            calibration=lambda model: None,
            quantize=lambda case, calibration: None,
            compile=lambda case, tables, calibration: artifact,
            first_batch=lambda samples: (np.zeros(1, np.float32),),
            report=lambda text: None,
        )

        def compare(models, seconds, threads):
            times = {name: [] for name in models._fields}
            for _ in range(20):
                for name, call in zip(models._fields, models, strict=True):
                    times[name].append(timing.seconds_of(call))
            return PairedTimes(*(np.array(times[name]) for name in ("baseline", "variant", "twin")), QUIET)

        monkeypatch.setattr(timing, "compare", compare)
        monkeypatch.setattr(timing, "refusal", lambda times: refusal)
        return Tuner(workshop, threads=2, seconds=60).tune(case)

    return tune


SETTINGS = {"SETTINGS": {"arena": (True, False), "optimization": ("all", "basic")}}


def test_settings_that_are_faster_together_are_kept(tuned):
    def seconds_of(settings):
        return 1 / (settings["threads"] * (1.2 if settings.get("arena") is False else 1))

    found = tuned(seconds_of, offered=SETTINGS)
    assert found.entry.settings == {"threads": 2, "arena": False}
    assert found.entry.speed == pytest.approx(2.4, rel=0.05)
    assert found.entry.ci95[0] > 2
    assert found.seconds[0] == pytest.approx(1, rel=0.05)
    assert [set(trial.settings) for trial in found.trials] == [{"threads"}, {"arena"}, {"optimization"}]


def test_defaults_that_are_the_best_are_shown_to_be(tuned):
    found = tuned(lambda settings: 1.0 if settings == {"threads": 1} else 1.3, offered=SETTINGS)
    assert found.entry.settings == {}
    assert found.within < 0.03
    assert found.refused is None


def test_a_gain_too_small_to_matter_is_no_setting(tuned):
    found = tuned(lambda settings: 0.99 if settings.get("arena") is False else 1.0, offered=SETTINGS)
    assert found.entry.settings == {}


def test_settings_that_change_the_answer_or_fail_are_refused(tuned):
    offered = {"SETTINGS": {"arena": (True, "explodes"), "optimization": ("all", "basic")}}
    found = tuned(
        lambda settings: 0.5 if "optimization" in settings else 1.0,
        answer_of=lambda settings: 2.0 if "optimization" in settings else 1.0,
        offered=offered,
    )
    assert found.entry.settings == {}
    obstacles = [trial.obstacle for trial in found.trials if trial.obstacle]
    assert obstacles == ["refused: no such arena", "refused: its outputs are off by 1"]


def test_a_busy_machine_keeps_nothing(tuned):
    found = tuned(lambda settings: 1 / settings["threads"], refusal=timing.TOO_BUSY)
    assert found.refused == timing.TOO_BUSY
    assert found.entry.settings == {}


def test_other_numbers_are_raced_and_not_kept(tuned):
    found = tuned(lambda settings: 1.0, offered={"NUMBERS": {"int4": ("int4_g64", "w4a8")}})
    assert set(found.others) == {"int4_g64", "w4a8"}
    assert found.entry.settings == {}


def test_what_is_simulated_is_not_tuned(tuned):
    with pytest.raises(ValueError, match="no kernel here"):
        tuned(lambda settings: 1.0, evidence="simulated")
