import json
from types import SimpleNamespace

import numpy as np
import pytest

import quant
from benchmarks import mixing_latency
from benchmarks.__main__ import main
from benchmarks.workshop import Settings, Workshop, calibration_batches
from fixtures.cache import Cache
from quant.latency import Latency

WORDS = ("int4_g32", "int8_g32", "fp16")
SECONDS = (1e-3, 2e-3, 4e-3)
"""What every operator takes in these tests in each format; no clock decides them."""
REST = 1e-3


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Times by the model; what was made takes as long, and what the test puts into ``late``."""
    found = SimpleNamespace(late=[], foreseen=[])

    def measured(workshop, cases):
        graph = workshop.prepare(cases[0].model).graph
        names, formats = tuple(graph.quantizable()), tuple(case.bits for case in cases)
        conditions = {"processor": "a processor"}
        seconds = np.tile(SECONDS, (len(names), 1))
        return Latency(cases[0].backend, conditions, names, formats, seconds, (), REST, graph.weights_sha256)

    within = mixing_latency.Mixer.within

    def noted(self, budget, cost):
        choice = within(self, budget, cost)
        found.foreseen.append(REST + cost[range(len(choice.chosen)), choice.chosen].sum())
        return choice

    def taken(calls, seconds, threads):
        return np.array([found.foreseen[-1] + (found.late.pop(0) if found.late else 0), 40e-3])

    monkeypatch.setattr(mixing_latency, "measure", measured)
    monkeypatch.setattr(mixing_latency, "medians", taken)
    monkeypatch.setattr(mixing_latency.Mixer, "within", noted)
    monkeypatch.setattr("benchmarks.commands.mixed.pin_threads", lambda count: None)
    return found


@pytest.fixture
def run(cache, tmp_path, capsys):
    def command(latency, backend="onnxruntime"):
        path = tmp_path / "recipe.json"
        options = ["--backend", backend, "--formats", ",".join(WORDS), "--max-latency", latency]
        status = main(["mixed", "digits", *options, "--cache-dir", str(cache), "-o", str(path)])
        shown = capsys.readouterr()
        return status, shown.out, shown.err, json.loads(path.read_text()) if path.exists() else None

    return command


def test_weights_are_as_wide_as_there_is_time_for(run, cache):
    status, out, err, recipe = run("15ms")
    assert status == 0
    assert "all weights take 9.00 ms in int4_g32, 17.0 ms in int8_g32, 33.0 ms in fp16" in err
    seconds = dict(zip(WORDS, SECONDS, strict=True))
    assert REST + sum(seconds[layer["format"]] for layer in recipe["layers"]) == pytest.approx(15e-3)
    assert recipe["foreseen"]["seconds"] == recipe["measured"]["seconds"] == pytest.approx(15e-3)
    assert out.endswith(
        "A call takes 15.0 ms (15.0 ms foreseen) and float's 40.0 ms, 2.67 times as long, taken in turns.\n"
    )
    workshop = Workshop(Cache(cache), Settings())
    batches = calibration_batches(workshop.calibration("digits"))
    again = quant.replay(workshop.prepare("digits").graph, recipe, batches)
    assert again.recipe["formats"] == {layer["name"]: layer["format"] for layer in recipe["layers"]}


def test_what_takes_longer_than_foreseen_is_given_less_time(run, clock):
    clock.late = [2e-3, 0]
    status, _, err, _ = run("15ms")
    assert status == 0
    assert clock.foreseen == pytest.approx([15e-3, 13e-3])
    assert "a call takes 17.0 ms, where 15.0 ms were foreseen" in err


def test_what_cannot_be_is_refused_in_a_sentence(run, clock):
    status, _, err, recipe = run("8ms")
    assert status == 4
    assert "digits takes 9.00 ms on onnxruntime at least" in err
    clock.late = [9e-3] * 3
    assert run("17ms")[2].endswith(
        "nothing that was made takes 17.0 ms at most, the last took 18.0 ms: allow a little more.\n"
    )
    assert recipe is None


@pytest.mark.parametrize(
    ("backend", "sentence"),
    [
        ("torch", "torch has no kernels here for weights in int4_g32, int8_g32, fp16: it computes in float"),
        ("coreml", "coreml does not run here, so no time of it can be taken"),
    ],
)
def test_where_formats_change_no_time_a_sentence_says_so(run, backend, sentence):
    status, out, err, recipe = run("15ms", backend)
    assert (status, out, recipe) == (4, "", None)
    assert sentence in err
