"""The memory of artefacts, measured in processes of their own; fakes stand for what is measured elsewhere."""

import io
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import footprint
from benchmarks.footprint import BATCHES, Footprint, Request
from benchmarks.matrix import Case
from benchmarks.measurement import Measurement
from benchmarks.process import Process, ProcessError
from benchmarks.workshop import Settings, Workshop
from fixtures.cache import Cache
from reports.record import SECTIONS, validate

MEGABYTE = 1_000_000
FLOAT, RTN = Case("digits", "float", "fp32", "torch"), Case("digits", "rtn", "int4", "torch")
EVALUATED = Case("digits", "rtn", "int4", "coreml")

ECHO = """
import json, os, sys
from benchmarks.process import answers

def main():
    channel = answers()
    print("a library that prints")
    os.system("echo a program that prints")
    for line in sys.stdin:
        print(json.dumps({"progress": "at work"}), file=channel)
        said = {"said": json.loads(line), "threads": os.environ["OMP_NUM_THREADS"]}
        print(json.dumps(said), file=channel, flush=True)
"""


class FakeRuntime:
    """A backend whose artefacts need memory that is known; it notes what it is asked for."""

    def __init__(self, loaded=40, called=100, batches=None):
        self.sizes, self.batches = (loaded, called), batches if batches is not None else []

    def version(self):
        return "fake 1"

    def load(self, folder, threads, device):
        held = np.ones(self.sizes[0] * MEGABYTE // 8)

        def executable(*inputs):
            self.batches.append([array.shape for array in inputs])
            return [np.ones(self.sizes[1] * MEGABYTE // 8)[:1] + held[:1]]

        return executable


class _Target:
    """The one target of a runtime."""

    def __init__(self, runtime):
        self._runtime = runtime

    def load(self):
        return self._runtime

    def open(self, folder, threads, settings):
        assert settings == {}
        return self._runtime.load(folder, threads, None)


@pytest.fixture
def request_for(tmp_path):
    def make(samples=50, batch=8):
        np.savez(tmp_path / "inputs.npz", np.zeros((samples, 3), np.float32), np.zeros((samples, 2), np.int64))
        return Request("fake", str(tmp_path), str(tmp_path / "inputs.npz"), batch, threads=1)

    return make


def serve_here(monkeypatch, runtime, request):
    monkeypatch.setattr(footprint, "target", lambda name: _Target(runtime))
    channel = io.StringIO()
    footprint.serve(io.StringIO(json.dumps(asdict(request)) + "\n"), channel)
    (line,) = channel.getvalue().splitlines()
    return Footprint(**json.loads(line)["memory"])


def test_growth_is_that_of_loading_and_of_running(monkeypatch, request_for):
    measured = serve_here(monkeypatch, FakeRuntime(loaded=40, called=100), request_for())
    assert measured.growth_bytes >= 130 * MEGABYTE
    assert measured.peak_bytes > measured.growth_bytes


@pytest.mark.parametrize(
    ("samples", "batch", "sizes"), [(50, 8, [8] * BATCHES), (10, 8, [8, 2]), (1, 8, [1]), (50, 1, [1] * BATCHES)]
)
def test_the_first_batches_are_run(monkeypatch, request_for, samples, batch, sizes):
    runtime = FakeRuntime(loaded=0, called=0)
    serve_here(monkeypatch, runtime, request_for(samples, batch))
    assert runtime.batches == [[(size, 3), (size, 2)] for size in sizes]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    settings = Settings(evaluation_samples=20, memory=True)
    return Workshop(Cache(tmp_path_factory.mktemp("cache")), settings)


def make(workshop, case):
    calibration = workshop.calibration(case.model)
    return workshop.compile(case, workshop.quantize(case, calibration), calibration)


def memory_of(workshop, case):
    """The memory section that a case gets."""
    measurement = Measurement(case, "inference", workshop, SimpleNamespace(), seconds=0.01)
    measurement.memory(make(workshop, case), workshop.baseline(case), workshop.evaluation("digits"))
    return measurement.record()["memory"]


def test_a_real_artefact_is_measured_in_a_process_of_its_own(workshop):
    measured = workshop.footprint(make(workshop, FLOAT), workshop.evaluation("digits"))
    assert 0 < measured.growth_bytes < measured.peak_bytes
    assert measured.peak_bytes > 50 * MEGABYTE  # an interpreter with torch


def test_an_artefact_that_does_not_load_is_one_sentence(tmp_path, request_for):
    with pytest.raises(ProcessError) as raised:
        footprint.measure(replace(request_for(), backend="torch"))
    assert str(raised.value).startswith(f"{tmp_path} does not run on torch by itself: ")
    assert "\n" not in str(raised.value)


def fake_measures(monkeypatch, *measured):
    """Give these footprints one after another, and list the folders that were measured."""
    asked, ahead = [], list(measured)
    monkeypatch.setattr(footprint, "measure", lambda request: asked.append(request.folder) or ahead.pop(0))
    return asked


def test_memory_is_compared_with_floats_on_the_same_backend(workshop, monkeypatch):
    monkeypatch.setattr(workshop, "_footprints", {})
    asked = fake_measures(monkeypatch, Footprint(300, 60), Footprint(420, 180))
    section = memory_of(workshop, RTN)
    assert section == {
        "peak_bytes": 300,
        "growth_bytes": 60,
        "baseline_peak_bytes": 420,
        "baseline_growth_bytes": 180,
        "ratio": pytest.approx(1 / 3),
    }
    assert set(section) == set(SECTIONS["memory"])
    assert len(asked) == 2
    assert memory_of(workshop, RTN) == section
    assert memory_of(workshop, FLOAT)["ratio"] == 1
    assert len(asked) == 2, "each artefact is measured once a run"


def test_there_is_no_ratio_to_nothing(workshop, monkeypatch):
    monkeypatch.setattr(workshop, "_footprints", {})
    fake_measures(monkeypatch, Footprint(300, 60), Footprint(240, 0))
    section = memory_of(workshop, RTN)
    assert section["ratio"] is None
    assert section["reason"]


def test_what_is_evaluated_elsewhere_has_no_memory(workshop, monkeypatch):
    asked = fake_measures(monkeypatch)
    artifact = make(workshop, EVALUATED)
    if artifact.executable.untimed_reason is None:
        pytest.skip("Core ML runs here")
    assert memory_of(workshop, EVALUATED) == {"reason": artifact.executable.untimed_reason}
    assert asked == []


def test_without_the_option_nothing_is_measured(workshop, monkeypatch):
    asked = fake_measures(monkeypatch)
    plain = Workshop(workshop.cache, Settings(evaluation_samples=20))
    assert memory_of(plain, RTN) == {"reason": "memory is measured with --memory"}
    assert asked == []


def test_a_case_with_memory_is_a_valid_record(workshop, monkeypatch):
    class Untimed:
        disabled = True

        def pedantic(self, target):
            target()

    monkeypatch.setattr(workshop, "_footprints", {})
    fake_measures(monkeypatch, Footprint(300, 60), Footprint(240, 0))
    measurement = Measurement(RTN, "inference", workshop, Untimed(), seconds=0.01)
    subjects = make(workshop, RTN), workshop.baseline(RTN), workshop.evaluation("digits")
    for step in (measurement.judge, measurement.time, measurement.memory):
        step(*subjects)
    assert validate(measurement.record()) == []


def test_a_process_pins_its_threads_and_hears_no_library(tmp_path, monkeypatch):
    (tmp_path / "echo.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    progress = []
    with Process("echo", threads=3, progress=progress.append) as process:
        process.tell({"a": 1})
        assert process.hear("said") == {"a": 1}
        process.tell("again")
        assert process.hear("threads") == "3"
    assert progress == ["at work", "at work"]
