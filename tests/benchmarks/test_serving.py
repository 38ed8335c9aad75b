import numpy as np
import pytest

from benchmarks import serving
from benchmarks.__main__ import main
from benchmarks.load import Load
from benchmarks.serving import Served
from fixtures.model import Samples
from quant.ladder import Ladder, Response


class World:
    """A clock that sleeping and calls advance."""

    def __init__(self):
        self.now, self.asked = 100.0, []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds

    def rung(self, seconds):
        def call(values):
            self.now += seconds
            self.asked.append(values.tolist())
            return [values]

        return call


SAMPLES = Samples((np.arange(7),), None, np.arange(7))


def test_requests_come_at_the_rate_of_their_phase():
    times = serving.arrivals([10, 50], 100)
    assert (np.diff(times) > 0).all()
    assert np.sum(times < 100) == pytest.approx(1000, rel=0.1)
    assert np.sum(times >= 100) == pytest.approx(5000, rel=0.1)
    assert times[-1] < 200
    assert np.array_equal(times, serving.arrivals([10, 50], 100))


def test_requests_wait_for_their_turn_and_bring_the_samples_in_turn():
    world = World()
    ladder = Ladder([world.rung(0.01)], 1.0, (np.zeros(1),), world.clock)
    world.asked.clear()
    served = serving.serve(ladder, np.array([0.0, 0.004, 0.5]), SAMPLES, clock=world.clock, sleep=world.sleep)
    assert [one.response.latency for one in served] == pytest.approx([0.01, 0.016, 0.01])
    assert world.asked == [[0], [1], [2]]


def test_one_precision_alone_takes_what_serving_with_it_takes():
    world, times = World(), serving.arrivals([60], 5)
    ladder = Ladder([world.rung(0.01)], 1.0, (np.zeros(1),), world.clock)
    served = serving.serve(ladder, times, SAMPLES, clock=world.clock, sleep=world.sleep)
    alone = serving.latencies_alone(times, 0.01)
    assert [one.response.latency for one in served] == pytest.approx(alone.tolist())
    assert {one.sample for one in served} == set(range(7))


@pytest.mark.parametrize("seed", range(5))
def test_the_phases_of_a_load_test_are_held_and_float_is_back_at_the_end(seed):
    """On a simulated clock, with what MiniLM's calls take, at six times a call of float."""
    world, random, services = World(), np.random.default_rng(seed), (0.025, 0.011)

    def rung(seconds):
        return lambda values: world.rung(seconds * random.lognormal(0, 0.1))(values)

    ladder = Ladder([rung(seconds) for seconds in services], 0.15, (np.zeros(1),), world.clock)
    rates = [share / (services[1] if phase == "rush" else services[0]) for phase, share in serving.PHASES]
    times = serving.arrivals(rates, 20, seed)
    responses = [one.response for one in serving.serve(ladder, times, SAMPLES, clock=world.clock, sleep=world.sleep)]
    held = serving.within([response.latency for response in responses], 0.15)
    narrow_alone = serving.within(serving.latencies_alone(times, services[1]), 0.15)
    assert held >= min(0.99, narrow_alone)
    assert serving.within(serving.latencies_alone(times, services[0]), 0.15) < 0.6
    rungs = np.array([response.rung for response in responses])
    assert (rungs[times < 20] == 0).mean() > 0.99
    assert (rungs[(times > 20) & (times < 40)] == 0).mean() > 0.8
    assert (rungs[-50:] == 0).all()


def test_the_table_says_who_answered_when_how_late_and_at_which_loss():
    served = [Served(Response(t, t, t + latency, rung), sample) for t, latency, rung, sample in
              [(0, 0.1, 0, 0), (1, 0.3, 0, 1), (2, 0.1, 1, 0), (3, 0.1, 1, 1)]]  # fmt: skip
    lost = np.array([[0.0, 0.0], [1.0, 0.0]])
    lines = serving.table(served, ["fp32", "int8"], 0.2, lost, every=2, start=0).splitlines()
    assert lines[2].split() == ["0-2", "1.0", "fp32", "100", "%", "300.0", "50.0", "0.00"]
    assert lines[3].split() == ["2-4", "1.0", "int8", "100", "%", "100.0", "100.0", "50.00"]


@pytest.fixture
def quick(monkeypatch):
    """Threads are pinned in a process of the command's own."""
    monkeypatch.setattr("benchmarks.commands.load_test.pin_threads", lambda count: None)


@pytest.mark.usefixtures("quick")
def test_a_load_test_of_a_real_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.serving.PHASES", (("calm", 0.02),))
    command = ["load_test", "digits", "--target", "1s", "--rung", "float-fp32", "--seconds", "1s", "--samples", "20"]
    assert main([*command, "--cache-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "float-fp32 100 %" in shown
    assert "100.0 % of" in shown
    assert "float-fp32 alone" in shown


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("others", "told"), [(1.9, True), (0.0, False)])
def test_a_load_test_on_a_busy_machine_says_so(others, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.serving.PHASES", (("calm", 0.02),))
    monkeypatch.setattr("benchmarks.load.Watch.read", lambda watch: Load(others, free=1, stolen=0.0, seconds=1.0))
    command = ["load_test", "digits", "--target", "1s", "--rung", "float-fp32", "--seconds", "1s", "--samples", "20"]
    main([*command, "--cache-dir", str(tmp_path)])
    assert ("Other programs kept 1.9 cores busy" in capsys.readouterr().out) == told


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["minilm", "--target", "fast"], "'fast' is not a time"),
        (["minilm", "--target", "1s", "--seconds", "0s"], "'0s' is not a time"),
        (["minilm", "--target", "1s", "--samples", "none"], "must be a whole number"),
        (["minilmm", "--target", "1s"], "did you mean minilm"),
        (["minilm", "--target", "1s", "--rung", "rtm-int4"], "did you mean rtn"),
        (["digits", "--target", "1s"], "--rung dynamic-int8: no runtime has a fast convolution kernel"),
        (["minilm", "--target", "1s", "--backend", "coreml", "--rung", "rtn-int4"], "coreml does not run here"),
    ],
)
def test_bad_input_is_one_sentence_and_status_4(arguments, sentence, tmp_path, capsys):
    assert main(["load_test", *arguments, "--cache-dir", str(tmp_path)]) == 4
    shown = capsys.readouterr().err.strip()
    assert sentence in shown
    assert len(shown.splitlines()) == 1
