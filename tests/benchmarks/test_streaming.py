import numpy as np
import pytest

from benchmarks import streaming, timing
from benchmarks.load import Load
from benchmarks.streaming import BLOCKS, blocks_of, time_stream
from benchmarks.timing import Models, PairedTimes
from fixtures.model import Samples

QUIET = Load(others=0.1, free=1, stolen=0.0, seconds=2.0)


class World:
    """A clock that the models move, by a second for each sample of theirs, and one more where it is asked for."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def model(self, name, seconds):
        def call(values):
            self.calls.append((name, values.tolist()))
            self.now += sum(seconds(value) for value in values)

        return call

    class Benchmark:
        disabled = False

        def __init__(self, world):
            self.world, self.stats = world, type("Outer", (), {"stats": type("Stats", (), {"data": []})()})()

        def pedantic(self, target, args=(), setup=lambda: None, teardown=lambda: None, rounds=1):
            for _ in range(rounds):
                setup()
                start = self.world.now
                target(*args)
                self.stats.stats.data.append(self.world.now - start)
                teardown()


def samples(count):
    return Samples((np.arange(count),), None, np.arange(count))


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (1500, 1), (1500, 16), (47, 1), (100, 7)])
def test_the_stream_is_cut_into_equal_blocks_of_its_batches_in_order(count, batch):
    blocks = blocks_of(samples(count), batch)
    assert len({len(block) for block in blocks}) == 1
    asked = np.concatenate([values for block in blocks for (values,) in block])
    assert np.array_equal(asked, np.arange(count)[: len(asked)])
    assert len(asked) >= 0.5 * count
    assert 1 <= len(blocks) < 2 * BLOCKS


def test_the_ratio_is_that_of_the_whole_streams_time(monkeypatch):
    """The cascade takes 1 s, and 4 s on the tenth of the samples that escalate; float always takes 3 s."""
    world = World(monkeypatch)
    floats = world.model("float", lambda value: 3.0)
    variant = world.model("cascade", lambda value: 5.0 if value % 10 == 0 else 1.0)
    benchmark = World.Benchmark(world)
    monkeypatch.setattr(timing.Watch, "read", lambda watch: QUIET)
    blocks = blocks_of(samples(960), 1)
    times = time_stream(benchmark, Models(variant, floats, floats), blocks, threads=1)
    section = streaming.speed(times)
    assert len(times.variant) == len(blocks) == BLOCKS
    assert section["ratio"] == pytest.approx(3 / 1.4)
    assert section["ci95"][0] <= section["ratio"] <= section["ci95"][1]
    assert section["baseline_p50"] == pytest.approx(3.0)
    assert benchmark.stats.stats.data == times.variant.tolist()
    asked = [values for name, values in world.calls if name == "cascade"]
    assert len(asked) == 960 + len(blocks), "each sample once, and one call before each block"


def test_a_refused_stream_has_no_ratio():
    busy = Load(others=1.5, free=1, stolen=0.0, seconds=2.0)
    section = streaming.speed(PairedTimes(*np.ones((3, 20)), busy))
    assert section["ratio"] is None
    assert section["reason"] == timing.TOO_BUSY


def test_where_timing_is_disabled_the_variant_runs_once(monkeypatch):
    world = World(monkeypatch)
    benchmark = World.Benchmark(world)
    benchmark.disabled = True
    one = world.model("one", lambda value: 1.0)
    assert time_stream(benchmark, Models(one, one, one), blocks_of(samples(10), 2), 1) is None
    assert world.calls == [("one", [0, 1])]
