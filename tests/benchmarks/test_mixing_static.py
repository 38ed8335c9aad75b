import json
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

import quant
from benchmarks import mixing_static
from benchmarks.__main__ import main
from benchmarks.mixing_static import StaticMixer
from benchmarks.mixing_static_text import operators
from benchmarks.workshop import Settings, Workshop, calibration_batches
from fixtures.cache import Cache
from quant.backends import target
from quant.latency import Latency
from quant.methods.mixed_static import FORMATS, foreseen

REST = 1e-3
NARROW, WIDE = 1e-3, 3e-3
"""What every operator takes in these tests; no clock decides them."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Times by the model, and those of what was made: as foreseen, plus what the test puts into ``late``."""
    found = SimpleNamespace(late=[], made=[])

    def measured(workshop, name, backend):
        graph = workshop.prepare(name).graph
        names = tuple(graph.quantizable())
        seconds = np.tile([NARROW, WIDE], (len(names), 1))
        conditions = {"processor": "a processor", "batch": str(workshop.settings.batch)}
        return Latency(backend, conditions, names, FORMATS, seconds, (), REST, graph.weights_sha256)

    def taken(calls, seconds, threads):
        for call in calls:
            call()
        wide = len(found.made[-1].wide)
        return np.array([_seconds(8, wide) + (found.late.pop(0) if found.late else 0), _seconds(8, 8)])

    make = StaticMixer.make

    def noted(self, choice):
        found.made.append(choice)
        return make(self, choice)

    monkeypatch.setattr(mixing_static, "measure_static", measured)
    monkeypatch.setattr(mixing_static, "medians", taken)
    monkeypatch.setattr(StaticMixer, "make", noted)
    monkeypatch.setattr("benchmarks.commands.mixed.pin_threads", lambda count: None)
    return found


def _seconds(count, wide):
    return REST + wide * WIDE + (count - wide) * NARROW


@pytest.fixture
def run(cache, tmp_path, capsys):
    def command(*arguments):
        path = tmp_path / "recipe.json"
        options = ["--backend", "torch", "--cache-dir", str(cache), "-o", str(path)]
        status = main(["mixed", "digits", *options, *arguments])
        shown = capsys.readouterr()
        return status, shown.out, shown.err, json.loads(path.read_text()) if path.exists() else None

    return command


@pytest.fixture
def mixer(cache):
    return StaticMixer(Workshop(Cache(cache), Settings()), "digits", target("torch"))


def test_a_recipe_within_the_latency_replays_bit_for_bit(run, cache, mixer):
    bound = _seconds(8, 3)
    status, out, _, recipe = run("--max-latency", f"{1e3 * bound}ms")
    assert status == 0
    wide = recipe["settings"]["wide"]
    # All take the same, so the three that cost most stay wide.
    assert wide == [name for name in mixer.errors if name in sorted(mixer.errors, key=mixer.errors.get)[-3:]]
    assert recipe["foreseen"]["seconds"] == pytest.approx(bound)
    assert recipe["foreseen"]["error"] == pytest.approx(
        sum(error for name, error in mixer.errors.items() if name not in wide) ** 0.5
    )
    assert "3 of 8 operators left wide. A call takes 15.0 ms (15.0 ms foreseen) and float's 25.0 ms" in out
    assert "fresh samples (accuracy)" in out
    assert {layer["name"]: layer["format"] for layer in recipe["layers"]} == {
        name: FORMATS[name in wide] for name in mixer.errors
    }
    for name in wide:
        assert any(line.split()[:2] == [name, "fp32"] for line in out.splitlines())
    workshop = Workshop(Cache(cache), Settings())
    batches = calibration_batches(workshop.calibration("digits"))
    again = quant.replay(workshop.prepare("digits").graph, recipe, batches)
    assert set(again.weights) == set(mixer.errors) - set(wide)


def test_errors_are_measured_once(run, monkeypatch):
    run("--max-latency", "20ms")
    monkeypatch.setattr(mixing_static, "rank", lambda *arguments: pytest.fail("they were measured before"))
    status, _, err, _ = run("--max-latency", "16ms")
    assert status == 0
    assert "what 8 bits cost each of 8 operators: as an earlier run measured it" in err


def test_what_takes_longer_than_foreseen_is_left_narrower(run, clock):
    clock.late = [3e-3, 1e-3]
    status, _, err, recipe = run("--max-latency", "17ms")
    assert status == 0
    assert [len(choice.wide) for choice in clock.made] == [4, 2]
    assert "4 of 8 operators left wide: a call takes 20 ms, where 17 ms were foreseen" in err
    assert recipe["measured"]["seconds"] <= 17e-3


def test_all_in_8_bits_is_the_last_that_is_tried(run, clock):
    clock.late = [9e-3, 0]
    status, _, _, recipe = run("--max-latency", "12ms")
    assert status == 0
    assert [len(choice.wide) for choice in clock.made] == [1, 0]
    assert recipe["settings"]["wide"] == []


def test_what_never_becomes_as_fast_is_refused(run, clock):
    clock.late = [9e-3] * 9
    status, out, err, recipe = run("--max-latency", "9.5ms")
    assert status == 4
    assert (
        err.splitlines()[-1] == "nothing that was made takes 9.5 ms at most, the last took 18 ms: allow a little more."
    )
    assert recipe is None
    assert out == ""


def test_the_reasons_are_what_a_change_would_bring(mixer):
    made = SimpleNamespace(choice=mixer.within(_seconds(8, 3)))
    rows = operators(mixer, made)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    for row in rows:
        change = f"{100 * row['share']:.2g} %"
        expected = {
            "fp32": f"int8 would save 2.00 ms and add {change} of error",
            "int8": f"fp32 would take 2.00 ms and remove {change}",
        }
        assert row["why"] == expected[row["format"]]


def test_the_choice_is_the_best_of_all(mixer):
    names, bound = list(mixer.errors), _seconds(8, 4)
    best = min(
        found.error
        for flags in product([False, True], repeat=len(names))
        for found in [foreseen(mixer.errors, mixer.latency, [n for n, f in zip(names, flags, strict=True) if f])]
        if found.seconds <= bound * (1 + 1e-9)
    )
    assert mixer.within(bound).error == pytest.approx(best)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-latency", "8"], "'8' is not a time such as 10ms"),
        (["--max-latency", "8ms"], "takes 9 ms on torch with all operators in 8 bits: a latency of 8 ms is out of"),
        (["--max-latency", "20ms", "--criterion", "kl"], "--criterion is about weights alone"),
        (["--max-latency", "20ms", "--batch", "0"], "--batch: '0' must be a whole number"),
        (["--max-latency", "20ms", "--backend", "coreml"], "coreml does not run here, so no time of it can be taken"),
    ],
)
def test_bad_input_is_one_sentence_and_status_4(run, arguments, message):
    status, out, err, recipe = run(*arguments)
    assert status == 4
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert recipe is None


def test_a_model_that_has_nothing_in_8_bits_is_refused(mixer, monkeypatch, tmp_path):
    monkeypatch.setattr(mixing_static, "rank", lambda *arguments: SimpleNamespace(errors={}))
    empty = StaticMixer(Workshop(Cache(tmp_path), Settings()), "digits", target("torch"))
    with pytest.raises(ValueError, match="no operator of digits reads what could be in 8 bits"):
        empty.within(1.0)
