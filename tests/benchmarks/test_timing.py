import gc
import inspect
import itertools
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import timing
from benchmarks.load import Load
from benchmarks.timing import (
    FEWEST_ROUNDS,
    KEPT_ROUNDS,
    MOST_ROUNDS,
    NOT_EQUAL,
    PROTOCOL,
    TOO_BUSY,
    Interleaver,
    Models,
    PairedTimes,
    compare,
    refusal,
    rounds_within,
    samples,
    time_paired,
)
from quant.hardware import pages
from reports.record import SECTIONS, plain, unpack_outcomes

ROOT = Path(__file__).parents[2]
QUIET = Load(others=0.1, free=1, stolen=0.0, seconds=2.0)
BUSY = Load(others=1.5, free=1, stolen=0.0, seconds=2.0)


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
        assert self.rounds is None, "a fixture runs once"
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


class Loads:
    """The load that each attempt sees, the last one for ever."""

    def __init__(self):
        self.ahead, self.threads = [QUIET], []

    def __call__(self, threads):
        self.threads.append(threads)
        seen = self.ahead.pop(0) if len(self.ahead) > 1 else self.ahead[0]
        return SimpleNamespace(read=lambda: seen)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=clock))
    return clock


@pytest.fixture
def loads(monkeypatch):
    loads = Loads()
    monkeypatch.setattr(timing, "Watch", loads)
    return loads


@pytest.fixture
def calls():
    return []


@pytest.fixture
def models(clock, loads, calls):
    """The variant B, float A and its twin T."""
    return Models(
        *(FakeModel(name, clock, calls, seconds) for name, seconds in (("B", 0.01), ("A", 0.03), ("T", 0.03)))
    )


CYCLE = "TTAABB" + "TTBBAA" + "BBAATT" + "AATTBB" + "AABBTT" + "BBTTAA"


def test_each_follows_each_of_the_others_equally_often_and_none_itself():
    """An untimed call is of the same model as the timed one after it, which is no other in a row."""
    calls = CYCLE[::2] * 2
    pairs = Counter(zip(calls, calls[1:] + calls[:1], strict=True))
    assert pairs == dict.fromkeys(itertools.permutations("BAT", 2), 6)


def test_the_variant_is_between_float_models_as_its_order_says_with_an_untimed_call_before_each(clock, models, calls):
    interleaver = Interleaver(models)
    setup, teardown = interleaver.setup, interleaver.teardown
    FakeBenchmark(clock).pedantic(models.variant, setup=setup, teardown=teardown, rounds=8)
    assert "".join(calls) == CYCLE + CYCLE[:12]
    assert interleaver.baseline == pytest.approx([0.03] * 8)
    assert interleaver.twin == pytest.approx([0.03] * 8)


def test_what_the_variant_leaves_behind_slows_float_and_its_twin_alike(clock, loads, calls):
    class Haunted(FakeModel):
        def __call__(self):
            before = next((name for name in reversed(self.calls) if name != self.name), None)
            self.seconds = 0.05 if before == "B" else 0.03
            super().__call__()

    times = compare(Models(*(Haunted(name, clock, calls, 0.03) for name in "BAT")), seconds=0.0, threads=1)
    assert times.baseline.sum() == pytest.approx(times.twin.sum())
    assert np.mean(times.baseline > 0.04) == np.mean(times.twin > 0.04) == 0.5


def test_rounds_without_pytest_benchmark_are_the_same_rounds(models, calls):
    interleaver = Interleaver(models)
    assert interleaver.run(3) == pytest.approx([0.01] * 3)
    assert "".join(calls) == CYCLE[:18]
    assert len(interleaver.baseline) == len(interleaver.twin) == 3


def test_times_of_one_position_are_neighbours(clock, loads):
    """A machine that slows down with every call must be seen by both halves of a pair, and by both pairs."""
    slowing = iter(range(1, 10_000))

    def slower():
        clock.now += next(slowing)

    times = compare(Models(slower, slower, slower), seconds=0.0, threads=1)
    for distances in (times.baseline - times.variant, times.twin - times.baseline):
        assert np.abs(distances).max() == 4
        assert distances.sum() == 0


def test_time_paired_returns_the_times_of_all(clock, models):
    benchmark = FakeBenchmark(clock)
    times = time_paired(benchmark, models, seconds=4.0, threads=1)
    assert times.variant == pytest.approx([0.010] * benchmark.rounds)
    assert times.baseline == pytest.approx([0.030] * benchmark.rounds)
    assert times.twin == pytest.approx([0.030] * benchmark.rounds)
    assert times.variant.dtype == times.baseline.dtype == times.twin.dtype == np.float64
    assert times.load is QUIET
    assert FEWEST_ROUNDS < benchmark.rounds < MOST_ROUNDS


@pytest.mark.parametrize("seconds", [2.0, 3.0, 5.0])
def test_the_rounds_take_about_the_time_given(clock, models, seconds):
    time_paired(FakeBenchmark(clock), models, seconds, threads=1)
    assert seconds * 0.8 < clock.now < seconds * 1.2


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, FEWEST_ROUNDS), (1e-9, FEWEST_ROUNDS), (1e9, MOST_ROUNDS)])
def test_rounds_stay_within_bounds(models, seconds, rounds):
    assert rounds_within(seconds, models) == rounds


def test_rounds_are_judged_by_warm_calls(clock, models, calls):
    first = {"A", "B", "T"}

    def cold(model):
        def call():
            if model.name in first:
                first.remove(model.name)
                clock.now += 100
            model()

        return call

    assert rounds_within(14.0, Models(*map(cold, models))) == pytest.approx(100, abs=3)
    assert sorted(calls) == ["A", "A", "B", "B", "T", "T"]


def test_a_model_faster_than_the_clock_gets_the_most_rounds(models):
    for model in models:
        model.seconds = 0.0
    assert rounds_within(1.0, models) == MOST_ROUNDS


def test_a_disabled_benchmark_runs_the_variant_once_and_times_nothing(clock, models, calls, loads):
    assert time_paired(FakeBenchmark(clock, disabled=True), models, seconds=2.0, threads=1) is None
    assert calls == ["B"]
    assert loads.threads == []


def test_the_collector_is_off_in_every_call_and_then_as_before(clock, loads):
    seen = []

    def call():
        seen.append(gc.isenabled())
        clock.now += 0.01

    benchmark = FakeBenchmark(clock)
    loads.ahead = [BUSY]
    assert gc.isenabled()
    time_paired(benchmark, Models(call, call, call), seconds=0.0, threads=1)
    warming = 6
    assert len(seen) == warming + 2 * FEWEST_ROUNDS * 6
    assert not any(seen[warming:])
    assert gc.isenabled()


def test_the_collector_comes_back_after_an_error(loads):
    counted = iter(range(20))

    def fails():
        if next(counted) == 15:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        compare(Models(fails, int, int), seconds=0.0, threads=1)
    assert gc.isenabled()


def test_a_quiet_machine_takes_no_second_attempt(clock, models, loads):
    time_paired(FakeBenchmark(clock), models, seconds=0.0, threads=3)
    assert loads.threads == [3]


def test_a_second_attempt_has_rounds_of_its_own(clock, models, loads, calls):
    """What the first saw is forgotten, in pytest-benchmark's figures too."""
    loads.ahead = [BUSY, QUIET]
    models.variant.seconds = 0.02
    benchmark = FakeBenchmark(clock)
    pedantic = benchmark.pedantic

    def then_faster(*arguments, **options):
        pedantic(*arguments, **options)
        models.variant.seconds = 0.01

    benchmark.pedantic = then_faster
    times = time_paired(benchmark, models, seconds=0.0, threads=1)
    assert times.load is QUIET
    assert times.variant == pytest.approx([0.01] * FEWEST_ROUNDS)
    assert benchmark.stats.stats.data == pytest.approx([0.01] * FEWEST_ROUNDS)
    assert len(calls) == 6 + 2 * 6 * FEWEST_ROUNDS
    assert timing.speed(times)["refused"] is False


@pytest.mark.parametrize(("scatter", "times_as_many"), [(0.0, 1), (0.01, 1), (0.5, 3)])
def test_rounds_that_scatter_are_followed_by_more(clock, models, loads, calls, scatter, times_as_many):
    """The variant takes so much longer in every second round; each has an untimed call and a timed one."""
    variant = models.variant
    lengths = itertools.cycle([0.01, 0.01, 0.01 * (1 + scatter), 0.01 * (1 + scatter)])

    def scattering():
        variant.seconds = next(lengths)
        return variant()

    benchmark = FakeBenchmark(clock)
    times = time_paired(benchmark, models._replace(variant=scattering), seconds=0.0, threads=1)
    assert len(times.variant) == len(times.baseline) == len(times.twin) == times_as_many * FEWEST_ROUNDS
    assert "".join(calls[6:]) == CYCLE * (times_as_many * FEWEST_ROUNDS // 6)
    assert benchmark.stats.stats.data == list(times.variant)
    assert len(loads.threads) == 1


def test_there_is_no_third_attempt(clock, models, loads):
    loads.ahead = [BUSY]
    times = time_paired(FakeBenchmark(clock), models, seconds=0.0, threads=1)
    assert len(loads.threads) == 2
    assert refusal(times) == TOO_BUSY


def test_pytest_benchmark_itself_pairs_every_round(pytester, monkeypatch):
    """The fakes above stand for pytest-benchmark; here is the real one, with a second attempt."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # pytest-benchmark takes a process that inherits this variable for an xdist worker, and disables itself.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    pytester.makepyfile(
        """
        import gc
        from types import SimpleNamespace
        from benchmarks import timing
        from benchmarks.load import Load
        from benchmarks.timing import FEWEST_ROUNDS, Models, time_paired

        def test_order(benchmark, monkeypatch):
            busy = Load(others=2.0, free=1, stolen=0.0, seconds=1.0)
            monkeypatch.setattr(timing, "Watch", lambda threads: SimpleNamespace(read=lambda: busy))
            monkeypatch.setattr(timing, "WIDE", 100.0)  # Calls that do nothing scatter beyond all bounds.
            calls, collecting = [], []

            def call(name):
                def run():
                    calls.append(name)
                    collecting.append(gc.isenabled())
                return run

            times = time_paired(benchmark, Models(*map(call, "BAT")), seconds=0.0, threads=1)
            assert len(times.variant) == len(times.baseline) == len(times.twin) == FEWEST_ROUNDS
            cycle = "TTAABB" + "TTBBAA" + "BBAATT" + "AATTBB" + "AABBTT" + "BBTTAA"
            assert "".join(calls[6:]) == cycle * (2 * FEWEST_ROUNDS // 6)
            assert not any(collecting[6:])
            assert benchmark.stats.stats.data == list(times.variant)
            assert benchmark.stats.stats.median == sorted(times.variant)[5:7][0] / 2 + sorted(times.variant)[5:7][1] / 2
            assert (times.variant > 0).all() and (times.baseline > 0).all()
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:xdist").assert_outcomes(passed=1)


def paired(rounds, seed=0, null=1.0, load=QUIET):
    """Rounds in which the variant is three times as fast, and float takes ``1 / null`` of its own time."""
    random = np.random.default_rng(seed)
    variant = 0.010 * random.lognormal(sigma=0.1, size=rounds)
    baseline = variant * 3 * random.lognormal(sigma=0.05, size=rounds)
    return PairedTimes(baseline, variant, baseline / null * random.lognormal(sigma=0.02, size=rounds), load)


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
    assert section["refused"] is False
    assert section["load"] == {"others": 0.1, "free": 1, "stolen": 0.0}


def test_the_null_is_float_against_float():
    times = paired(101)
    section = timing.speed(times)
    assert section["null"]["ratio"] == pytest.approx(np.median(times.baseline / times.twin))
    assert section["null"]["ci95"][0] < 1 < section["null"]["ci95"][1]


def test_a_faster_variant_has_a_ratio_above_one():
    slow, fast = np.full(20, 2.0), np.full(20, 1.0)
    assert timing.speed(PairedTimes(slow, fast, slow, QUIET))["ratio"] == pytest.approx(2)


@pytest.mark.parametrize(
    ("null", "rounds", "refused"),
    [
        (1.0, 200, False),
        (1.01, 1000, False),
        (0.99, 1000, False),
        (1.02, 1000, True),
        (1.06, 200, True),
        (0.94, 200, True),
    ],
)
def test_float_far_from_float_is_refused(null, rounds, refused, monkeypatch):
    """A difference within the tolerance is not, however sure it is; neither is a large one that may be none."""
    monkeypatch.setattr(pages, "in_use", lambda: True)
    assert refusal(paired(rounds, null=null)) == (NOT_EQUAL if refused else None)


def test_where_pages_are_small_the_refusal_says_how_to_have_huge_ones(monkeypatch):
    monkeypatch.setattr(pages, "in_use", lambda: False)
    assert refusal(paired(200, null=1.06)) == f"{NOT_EQUAL}, or with GLIBC_TUNABLES=glibc.malloc.hugetlb=1"


def test_a_null_that_tells_nothing_is_no_reason_to_refuse():
    times = paired(FEWEST_ROUNDS)
    noisy = times.baseline * np.tile([1.5, 0.9, 0.6, 1.2], FEWEST_ROUNDS // 4)
    assert refusal(PairedTimes(times.baseline, times.variant, noisy, QUIET)) is None


@pytest.mark.parametrize(
    "times",
    [paired(200, load=BUSY), paired(200, null=1.1), paired(FEWEST_ROUNDS, load=BUSY)],
    ids=["load", "null", "few"],
)
def test_what_is_refused_is_null_with_the_reason_beside_what_shows_it(times):
    section = timing.speed(times)
    assert section["refused"] is True
    for name in ("ratio", "ci95", "p50", "p90", "p99", "baseline_p50", "samples"):
        assert section[name] is None
    assert section["reason"] == refusal(times)
    assert section["null"]["ratio"] > 0
    assert section["load"]["others"] == times.load.others


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


@pytest.mark.parametrize("rounds", [12, 13, KEPT_ROUNDS - 1, KEPT_ROUNDS, KEPT_ROUNDS + 1, 777, MOST_ROUNDS])
def test_kept_rounds_stay_balanced_in_their_orders(rounds):
    numbers = np.arange(1.0, rounds + 1)
    kept = samples(PairedTimes(numbers, -numbers, numbers, QUIET))
    baseline, variant = (unpack_outcomes(kept[name], kept["rounds"]) for name in ("baseline", "variant"))
    assert np.array_equal(baseline, -variant)
    assert len(baseline) == min(rounds - rounds % 6, KEPT_ROUNDS)
    cycles = baseline.reshape(-1, 6)
    assert np.array_equal(cycles, cycles[:, :1] + np.arange(6))
    assert (cycles[:, 0] % 6 == 1).all()  # counted from one: each begins with a round of the first order
    assert cycles[0, 0] == 1
    assert cycles[-1, -1] > rounds - 6
    gaps = np.diff(cycles[:, 0])
    assert gaps.max() - gaps.min() <= 6


def test_a_stream_of_few_blocks_keeps_them_all():
    numbers = np.arange(1.0, 5)
    assert samples(PairedTimes(numbers, numbers, numbers, QUIET))["rounds"] == 4


def test_what_runs_in_turn_never_follows_itself():
    random, last, firsts = np.random.default_rng(0), None, Counter()
    for _ in range(300):
        order = timing.in_turn("abc", last, random)
        assert sorted(order) == ["a", "b", "c"]
        assert order[0] != last
        last = order[-1]
        firsts[order[0]] += 1
    assert min(firsts.values()) > 70
    assert timing.in_turn("a", "a", random) == ["a"]


def test_a_fake_benchmark_takes_what_the_real_one_takes():
    from pytest_benchmark.fixture import BenchmarkFixture

    real = inspect.signature(BenchmarkFixture.pedantic).parameters
    assert set(inspect.signature(FakeBenchmark.pedantic).parameters) <= set(real)
