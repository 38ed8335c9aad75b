from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import prices, timing
from benchmarks.load import Load
from benchmarks.prices import Price, by_price, price
from benchmarks.timing import PairedTimes
from fixtures.cache import Cache
from fixtures.model import Samples
from quant import hardware

SAMPLES = Samples((np.zeros((2, 3), np.float32),), None, np.arange(2))


def timed(seconds, size=10, width=0.05, float_seconds=10.0):
    return Price(size, seconds, seconds * (1 - width), seconds * (1 + width), float_seconds / seconds, float_seconds)


def order(**found):
    return [name for name, _ in by_price(list(found.items()))]


def test_what_is_faster_than_float_comes_before_what_is_small():
    assert order(small=Price(1, reason="simulated"), slow=timed(20.0, size=2), fast=timed(5.0), faster=timed(3.0)) == [
        "faster",
        "fast",
        "small",
        "slow",
    ]


def test_what_cannot_be_told_apart_in_time_is_ordered_by_size():
    assert order(first=timed(5.0, size=30), second=timed(5.2, size=20), third=timed(7.0, size=10)) == [
        "second",
        "first",
        "third",
    ]


def test_faster_than_its_own_slow_float_is_not_fast():
    assert order(mine=timed(15.0, size=9, float_seconds=30.0), other=timed(12.0, size=5, float_seconds=10.0)) == [
        "other",
        "mine",
    ]


def test_without_any_time_the_smallest_comes_first():
    assert order(large=Price(3), small=Price(1), middle=Price(2)) == ["small", "middle", "large"]
    assert by_price([]) == []


class FakeWorkshop:
    """A workshop whose artefacts do nothing; ``times`` are what timing them gives, one by one."""

    def __init__(self, folder):
        self.cache = Cache(folder)
        self.settings = SimpleNamespace(batch=1, threads=1)
        self.report = lambda text: None

    def artifact(self, evidence="measured", untimed_reason=None, digest="own"):
        executable = SimpleNamespace(size_bytes=1000, evidence=evidence, untimed_reason=untimed_reason)
        return SimpleNamespace(case="case", executable=executable, entry=SimpleNamespace(digest=digest, path=Path()))

    def baseline(self, case):
        return self.artifact(digest="float")

    def twin(self, baseline):
        return baseline.executable

    def first_batch(self, samples):
        return samples.inputs


@pytest.fixture
def workshop(tmp_path):
    return FakeWorkshop(tmp_path)


@pytest.fixture
def attempts(monkeypatch):
    """What each timing gives, a busy machine or a quiet one; grows by what was asked for."""
    made = []

    def compare(models, seconds, threads):
        made.append(seconds)
        load = Load(others=3.0 if attempts.busy else 0.0, free=1, stolen=0.0, seconds=2.0)
        ones = np.ones(20)
        return PairedTimes(2e-3 * ones, 1e-3 * ones, 2e-3 * ones, load)

    attempts = SimpleNamespace(made=made, busy=False)
    monkeypatch.setattr(timing, "compare", compare)
    chip = replace(hardware.processor(), name="a chip")
    monkeypatch.setattr(prices.hardware, "processor", lambda: chip)
    return attempts


def test_a_time_is_taken_once(workshop, attempts):
    found = price(workshop, workshop.artifact(), SAMPLES)
    assert (found.seconds, found.speed, found.float_seconds, found.size) == (1e-3, pytest.approx(2.0), 2e-3, 1000)
    assert found.low == found.high == pytest.approx(1e-3)
    again = FakeWorkshop(workshop.cache.folder)
    assert price(again, again.artifact(), SAMPLES) == found
    assert len(attempts.made) == 1


def test_a_refused_time_is_told_and_not_kept(workshop, attempts):
    attempts.busy = True
    found = price(workshop, workshop.artifact(), SAMPLES)
    assert found.seconds is None
    assert found.refused
    assert str(found).startswith("0.001 MB, not timed: other programs left too few cores")
    attempts.busy = False
    assert price(workshop, workshop.artifact(), SAMPLES).seconds == 1e-3


def test_on_a_busy_machine_only_known_times_are_told(workshop, attempts):
    assert price(workshop, workshop.artifact(), SAMPLES, busy=True).refused
    assert not attempts.made
    known = price(workshop, workshop.artifact(), SAMPLES)
    assert price(FakeWorkshop(workshop.cache.folder), workshop.artifact(), SAMPLES, busy=True) == known


@pytest.mark.parametrize("kind", [{"evidence": "simulated"}, {"evidence": "evaluated", "untimed_reason": "elsewhere"}])
def test_what_is_not_measured_has_a_size_alone(workshop, attempts, kind):
    found = price(workshop, workshop.artifact(**kind), SAMPLES)
    assert (found.seconds, found.size) == (None, 1000)
    assert found.reason
    assert not attempts.made
