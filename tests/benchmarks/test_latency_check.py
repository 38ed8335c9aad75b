import numpy as np
import pytest

from benchmarks import latency_check
from benchmarks.latency_check import report
from benchmarks.workshop import Settings, Workshop
from fixtures.cache import Cache
from quant.latency import Latency
from quant.methods.mixed_static import FORMATS

NARROW, WIDE, REST = 1e-3, 3e-3, 2e-3


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A workshop in which every operator takes the same, and a call tells how many are wide instead of running."""

    def measured(workshop, name, backend):
        graph = workshop.prepare(name).graph
        names = tuple(graph.quantizable())
        seconds = np.tile([NARROW, WIDE], (len(names), 1))
        return Latency(backend, {"batch": "1"}, names, FORMATS, seconds, (), REST, graph.weights_sha256)

    def call(workshop, name, backend, quantized):
        return lambda: 8 - len(quantized.weights)

    monkeypatch.setattr(latency_check, "measure_static", measured)
    monkeypatch.setattr(latency_check, "_call", call)
    return Workshop(Cache(tmp_path), Settings())


def test_mixtures_are_compared_with_what_was_foreseen(workshop, monkeypatch):
    wide = []

    def as_foreseen(calls, seconds, threads):
        wide[:] = [call() for call in calls]
        return REST + 8 * NARROW + (WIDE - NARROW) * np.array(wide)

    monkeypatch.setattr(latency_check, "medians", as_foreseen)
    text = report(workshop, "digits", "torch", 4)
    assert "Spearman's rank correlation: 1.000" in text
    assert text.count("+0.0 %") == 6
    assert wide[0] == 0
    assert wide[-1] == 8
    assert all(0 < count < 8 for count in wide[1:-1])
    assert "classifier.weight" in text
    assert "all else: 2.00 ms" in text


def test_a_prediction_that_is_the_wrong_way_round_shows(workshop, monkeypatch):
    monkeypatch.setattr(latency_check, "medians", lambda calls, *_: 1 / (1 + np.array([call() for call in calls])))
    assert "Spearman's rank correlation: -1.000" in report(workshop, "digits", "torch", 4)
