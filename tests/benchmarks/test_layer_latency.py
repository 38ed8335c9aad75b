from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import layer_latency
from benchmarks.layer_latency import measure, measure_static, medians
from benchmarks.matrix import Case
from benchmarks.workshop import Settings, Workshop
from fixtures.cache import Cache


class Quiet:
    """A machine on which nothing else runs; ``busy`` says how often it looks otherwise first."""

    busy = 0

    def __init__(self, threads):
        pass

    def read(self):
        Quiet.busy -= 1
        return SimpleNamespace(too_high=Quiet.busy >= 0)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(layer_latency, "Watch", Quiet)
    monkeypatch.setattr(layer_latency, "SECONDS", 0.0)
    monkeypatch.setattr(Quiet, "busy", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def workshop(folder):
    return Workshop(Cache(folder), Settings(batch=2))


def test_operators_and_whole_add_up(workshop, monkeypatch):
    wholes = []

    def whole(self, mixtures):
        wholes.append(_whole(self, mixtures))
        return np.array([0.04, 0.09, *[0.08] * len(mixtures)])

    monkeypatch.setattr(layer_latency._Measurement, "_whole", whole)
    latency = measure_static(workshop, "digits", "torch")
    assert latency.formats == ("int8", "fp32")
    assert latency.conditions["batch"] == "2"
    static = workshop.quantize(Case("digits", "smoothquant", "int8", "torch"), workshop.calibration("digits"))
    assert set(latency.weights) == set(static.quantized.weights)
    np.testing.assert_allclose(latency.seconds.sum(0) + latency.rest, [0.04, 0.09])
    assert (wholes[0] > 0).all()
    # A mixture that takes longer than its operators shows what conversions take.
    assert sum(seconds for _, _, seconds in latency.conversions) > 0.01
    monkeypatch.setattr(layer_latency, "medians", _never)
    again = measure_static(Workshop(workshop.cache, Settings(batch=2)), "digits", "torch")
    np.testing.assert_array_equal(again.seconds, latency.seconds)


_whole = layer_latency._Measurement._whole


def _never(*_):
    raise AssertionError("times that are known were taken again")


def test_formats_of_weights_alone_are_timed_too(workshop):
    words = ("int8", "int4_g32", "int2_g32")
    latency = measure(workshop, [Case("digits", "rtn", word, "torch") for word in words])
    assert latency.formats == words
    assert latency.of(latency.weights, words).shape == (len(latency.weights), 3)
    assert latency.conversions == ()


def test_operators_that_were_timed_before_a_stop_are_not_timed_again(tmp_path, monkeypatch):
    calls = []

    def stopped(*arguments):
        if len(calls) == 5:
            raise ValueError("other programs left too few cores")
        calls.append(arguments)
        return medians(*arguments)

    monkeypatch.setattr(layer_latency, "medians", stopped)
    with pytest.raises(ValueError, match="too few cores"):
        measure_static(Workshop(Cache(tmp_path), Settings(batch=2)), "digits", "torch")
    again = []
    monkeypatch.setattr(layer_latency, "medians", lambda *arguments: again.append(arguments) or medians(*arguments))
    measure_static(Workshop(Cache(tmp_path), Settings(batch=2)), "digits", "torch")
    assert len(calls) == 5
    distinct = len(calls) + len(again)
    calls.clear()
    monkeypatch.setattr(layer_latency, "medians", lambda *arguments: calls.append(arguments) or medians(*arguments))
    measure_static(Workshop(Cache(tmp_path / "anew"), Settings(batch=2)), "digits", "torch")
    assert len(calls) == distinct


def test_calls_are_timed_in_turns():
    order = []
    calls = [lambda name=name: order.append(name) for name in "ab"]
    assert medians(calls, 0.0, 1).shape == (2,)
    # Each once to warm up; then every timed call follows one that is not.
    assert "".join(order[:14]) in ("ab" + "aabb" + rounds for rounds in ("aabb" * 2, "bbaa" * 2))


def test_a_busy_machine_is_given_a_second_chance(monkeypatch):
    monkeypatch.setattr(Quiet, "busy", 1)
    assert medians([lambda: None], 0.0, 1).shape == (1,)
    monkeypatch.setattr(Quiet, "busy", 2)
    with pytest.raises(ValueError, match="too few cores"):
        medians([lambda: None], 0.0, 1)


def test_what_does_not_run_here_is_not_timed(workshop, monkeypatch):
    reason = "its runtime exists only on macOS."
    artifact = SimpleNamespace(executable=SimpleNamespace(untimed_reason=reason))
    monkeypatch.setattr(workshop, "compile", lambda *_: artifact)
    with pytest.raises(ValueError, match="no time of torch can be taken: its runtime exists only on macOS"):
        measure_static(workshop, "digits", "torch")
