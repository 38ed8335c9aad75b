import inspect
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import timing
from benchmarks.timing import FEWEST_ROUNDS, MOST_ROUNDS, PROTOCOL, Interleaver, PairedTimes, rounds_within, time_paired
from reports.record import SECTIONS, plain

ROOT = Path(__file__).parents[2]


class Clock:
    """A clock that only the fake models move."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class FakeModel:
    """Takes ``seconds`` on the clock, and writes its name down."""

    def __init__(self, name, clock, calls, seconds):
        self.name, self.clock, self.calls, self.seconds = name, clock, calls, seconds

    def __call__(self):
        self.calls.append(self.name)
        self.clock.now += self.seconds


class FakeBenchmark:
    """What pytest-benchmark's fixture does in pedantic mode, on the fake clock."""

    def __init__(self, clock, disabled=False):
        self.clock, self.disabled = clock, disabled
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))
        self.rounds = None

    def pedantic(self, target, setup=None, teardown=None, rounds=1):
        self.rounds = rounds
        if self.disabled:
            return target()
        for _ in range(rounds):
            assert setup() is None
            start = self.clock()
            target()
            self.stats.stats.data.append(self.clock() - start)
            teardown()
        return None


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=clock))
    return clock


@pytest.fixture
def models(clock):
    """Float A and variant B, and the list of their calls."""
    calls = []
    return FakeModel("B", clock, calls, 0.010), FakeModel("A", clock, calls, 0.030), calls


def test_the_order_is_a_b_b_a_with_an_untimed_call_before_each(clock, models):
    variant, baseline, calls = models
    interleaver = Interleaver(variant, baseline)
    FakeBenchmark(clock).pedantic(variant, setup=interleaver.setup, teardown=interleaver.teardown, rounds=4)
    assert "".join(calls) == "AABB" + "BBAA" + "AABB" + "BBAA"
    assert interleaver.times == pytest.approx([0.030] * 4)


def test_an_odd_number_of_rounds_is_paired_too(clock, models):
    variant, baseline, calls = models
    interleaver = Interleaver(variant, baseline)
    FakeBenchmark(clock).pedantic(variant, setup=interleaver.setup, teardown=interleaver.teardown, rounds=3)
    assert "".join(calls) == "AABB" + "BBAA" + "AABB"
    assert len(interleaver.times) == 3


def test_times_of_one_position_are_neighbours(clock, models):
    """A machine that slows down with every call must be seen by both halves of a pair."""
    variant, baseline, calls = models
    interleaver, benchmark = Interleaver(variant, baseline), FakeBenchmark(clock)
    slowing = iter(range(1, 1000))

    def slower(model):
        def call():
            calls.append(model.name)
            clock.now += next(slowing)

        return call

    interleaver = Interleaver(slower(variant), slower(baseline))
    benchmark.pedantic(slower(variant), setup=interleaver.setup, teardown=interleaver.teardown, rounds=20)
    distances = np.array(interleaver.times) - np.array(benchmark.stats.stats.data)
    assert np.abs(distances).max() == 2
    assert distances.sum() == 0


def test_time_paired_returns_the_times_of_both(clock, models):
    variant, baseline, _ = models
    benchmark = FakeBenchmark(clock)
    times = time_paired(benchmark, variant, baseline, seconds=2.0)
    assert times.variant == pytest.approx([0.010] * benchmark.rounds)
    assert times.baseline == pytest.approx([0.030] * benchmark.rounds)
    assert times.variant.dtype == times.baseline.dtype == np.float64
    assert FEWEST_ROUNDS < benchmark.rounds < MOST_ROUNDS


@pytest.mark.parametrize("seconds", [1.0, 2.0, 5.0])
def test_the_rounds_take_about_the_time_given(clock, models, seconds):
    variant, baseline, _ = models
    time_paired(FakeBenchmark(clock), variant, baseline, seconds)
    assert seconds * 0.8 < clock.now < seconds * 1.2


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, FEWEST_ROUNDS), (1e-9, FEWEST_ROUNDS), (1e9, MOST_ROUNDS)])
def test_rounds_stay_within_bounds(models, seconds, rounds):
    variant, baseline, _ = models
    assert rounds_within(seconds, variant, baseline) == rounds


def test_rounds_are_judged_by_warm_calls(clock, models):
    variant, baseline, calls = models
    first = {"A": True, "B": True}

    def cold(model):
        def call():
            if first.pop(model.name, False):
                clock.now += 100
            model()

        return call

    assert rounds_within(8.0, cold(variant), cold(baseline)) == pytest.approx(100, abs=1)
    assert sorted(calls) == ["A", "A", "B", "B"]


def test_a_model_faster_than_the_clock_gets_the_most_rounds(models):
    variant, baseline, _ = models
    variant.seconds = baseline.seconds = 0.0
    assert rounds_within(1.0, variant, baseline) == MOST_ROUNDS


def test_a_disabled_benchmark_runs_the_variant_once_and_times_nothing(clock, models):
    variant, baseline, calls = models
    assert time_paired(FakeBenchmark(clock, disabled=True), variant, baseline, seconds=2.0) is None
    assert calls == ["B"]


def test_pytest_benchmark_itself_pairs_every_round(pytester, monkeypatch):
    """The fakes above stand for pytest-benchmark; here is the real one."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # pytest-benchmark takes a process that inherits this variable for an xdist worker, and disables itself.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    pytester.makepyfile(
        """
        from benchmarks.timing import FEWEST_ROUNDS, time_paired

        def test_order(benchmark):
            calls = []
            times = time_paired(benchmark, lambda: calls.append("B"), lambda: calls.append("A"), seconds=0.0)
            assert len(times.variant) == len(times.baseline) == FEWEST_ROUNDS
            assert "".join(calls).endswith("AABBBBAA" * (FEWEST_ROUNDS // 2))
            assert (times.variant > 0).all() and (times.baseline > 0).all()
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:xdist").assert_outcomes(passed=1)


def paired(rounds, seed=0):
    random = np.random.default_rng(seed)
    variant = 0.010 * random.lognormal(sigma=0.1, size=rounds)
    return PairedTimes(variant * 3 * random.lognormal(sigma=0.05, size=rounds), variant)


def test_speed_is_the_median_ratio_of_pairs():
    times = paired(101)
    section = timing.speed(times)
    ratios = sorted(b / v for b, v in zip(times.baseline, times.variant, strict=True))
    assert section["ratio"] == pytest.approx(ratios[50])
    assert section["ci95"][0] < section["ratio"] < section["ci95"][1]
    assert section["p50"] == pytest.approx(sorted(times.variant)[50])
    assert section["baseline_p50"] == pytest.approx(sorted(times.baseline)[50])
    assert section["p50"] < section["p90"]
    assert section["rounds"] == 101
    assert section["protocol"] == PROTOCOL


def test_a_faster_variant_has_a_ratio_above_one():
    assert timing.speed(PairedTimes(np.full(20, 2.0), np.full(20, 1.0)))["ratio"] == pytest.approx(2)


@pytest.mark.parametrize("rounds", [FEWEST_ROUNDS, 199])
def test_the_99th_percentile_needs_200_rounds(rounds):
    section = timing.speed(paired(rounds))
    assert section["p99"] is None
    assert "200" in section["reason"]


def test_200_rounds_have_a_99th_percentile():
    section = timing.speed(paired(200))
    assert section["p90"] < section["p99"] <= max(paired(200).variant)
    assert "reason" not in section


@pytest.mark.parametrize("rounds", [FEWEST_ROUNDS, 200])
def test_speed_has_every_figure_of_the_record(rounds):
    section = plain(timing.speed(paired(rounds)))
    assert set(SECTIONS["speed"]) <= set(section)
    assert all(math.isfinite(section[name]) for name in ("ratio", "p50", "p90", "baseline_p50"))


def test_a_fake_benchmark_takes_what_the_real_one_takes():
    from pytest_benchmark.fixture import BenchmarkFixture

    real = inspect.signature(BenchmarkFixture.pedantic).parameters
    assert set(inspect.signature(FakeBenchmark.pedantic).parameters) <= set(real)
