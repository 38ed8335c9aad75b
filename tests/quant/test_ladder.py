import math

import numpy as np
import pytest

from quant.ladder import CALM, WINDOW, Controller, Ladder, Response, expected

TARGET = 0.2


class Simulation:
    """A clock that calls advance: rungs take their seconds, times how slow the machine is at the moment."""

    def __init__(self, services, jitter=0.05):
        self.now, self.slowness, self._random = 0.0, 1.0, np.random.default_rng(0)
        self.current = []  # the rung after each answer
        self.rungs = [self._rung(service, jitter) for service in services]

    def _rung(self, service, jitter):
        def call(values):
            self.now += self.slowness * service * self._random.lognormal(0, jitter)
            return [values]

        return call

    def clock(self):
        return self.now

    def ladder(self, target=TARGET):
        return Ladder(self.rungs, target, (np.zeros(1),), self.clock)

    def serve(self, ladder, rate, seconds, seed=0):
        """Answer Poisson arrivals, in the order of their arrival, and return the responses."""
        random, arrival, end, found = np.random.default_rng(seed), self.now, self.now + seconds, []
        while (arrival := arrival + random.exponential(1 / rate)) < end:
            self.now = max(self.now, arrival)
            outputs, response = ladder.answer(arrival, np.ones(1))
            assert outputs[0].tolist() == [1.0]
            found.append(response)
            self.current.append(ladder.controller.rung)
        return found


def within(responses):
    return np.mean([response.latency <= TARGET for response in responses])


def share(responses, rung):
    return np.mean([response.rung == rung for response in responses])


def test_a_light_load_is_answered_by_the_widest():
    world = Simulation([0.020, 0.010])
    responses = world.serve(world.ladder(), rate=15, seconds=60)
    assert share(responses, 0) == 1.0
    assert within(responses) == 1.0


def test_a_load_that_only_the_narrow_can_answer_takes_it_there_and_a_light_one_back():
    world = Simulation([0.020, 0.010])
    ladder = world.ladder()
    calm, rush, after = (world.serve(ladder, rate, 60, seed) for seed, rate in enumerate((15, 65, 15)))
    assert share(calm, 0) == 1.0
    assert share(rush, 1) > 0.9
    assert share(after, 0) > 0.8
    assert share(after[-100:], 0) == 1.0
    for phase in (calm, rush, after):
        assert within(phase) >= 0.99
    # The widest alone would have been late nearly always: it can answer 50 a second.
    assert 65 * 0.020 > 1


def test_it_holds_the_target_when_the_machine_slows_down():
    world = Simulation([0.020, 0.010])
    ladder = world.ladder()
    before = world.serve(ladder, 15, 30)
    world.slowness = 2.2
    slow = world.serve(ladder, 15, 60, seed=1)
    world.slowness = 1.0
    after = world.serve(ladder, 15, 60, seed=2)
    assert share(before, 0) == 1.0
    assert share(slow, 1) > 0.1
    late = [response for response in slow if response.started - response.arrived > 0.6 * TARGET]
    assert {response.rung for response in late} <= {1}
    assert share(after[-100:], 0) == 1.0
    assert within([*before, *slow, *after]) >= 0.99


def test_three_rungs_are_climbed_one_by_one():
    world = Simulation([0.040, 0.020, 0.010])
    ladder = world.ladder(target=0.4)
    rush, after = world.serve(ladder, 65, 40), world.serve(ladder, 8, 200, seed=1)
    assert share(rush[-100:], 0) < 0.2
    assert max(response.latency for response in rush[-1000:]) < 0.4
    assert after[-1].rung == 0
    assert all(abs(step) <= 1 for step in np.diff(world.current))


def test_near_the_border_it_tries_the_wide_one_more_and_more_seldom():
    """The wider one seems to fit, by what calls took side by side, but does not: something else has slowed it."""
    world = Simulation([0.020, 0.010])
    ladder = world.ladder()
    world.rungs[0] = ladder._executables[0] = world._rung(0.95 * TARGET, 0.0)
    rungs = np.array([response.rung for response in world.serve(ladder, 15, 300)])
    ascents = np.flatnonzero(np.diff(world.current) == -1)
    assert len(ascents) >= 3
    assert (np.diff(ascents)[1:] >= 1.5 * np.diff(ascents)[:-1]).all()
    assert np.mean(rungs == 0) < 0.02


def test_a_burst_costs_those_that_waited_precision_and_leaves_the_rung():
    world = Simulation([0.020, 0.010], jitter=0.0)
    ladder = world.ladder()
    arrival = world.now
    burst = [ladder.answer(arrival, np.ones(1))[1] for _ in range(9)]
    assert [response.rung for response in burst] == [0] * 5 + [1] * 4  # a sixth call would end at 0.6 of the target
    assert max(response.latency for response in burst) < TARGET
    assert ladder.controller.rung == 0
    assert ladder.answer(world.now, np.ones(1))[1].rung == 0


def test_answers_of_a_lower_rung_count_as_slower_ones_before_an_ascent():
    """What took long enough alone must not look quick because the narrow one answered it."""
    controller = Controller([0.04, 0.02, 0.01], 0.1)
    for position in range(2):
        controller.observe(Response(position, position, position + 0.1, 0))
    assert controller.rung == 1
    for position in range(2 * WINDOW):  # 35 a second: rung 0 would be busy for 1.4 of its time
        arrived = 2 + position / 35
        controller.observe(Response(arrived, arrived, arrived + 0.01, 2))
    assert controller.rung == 1


def test_one_hiccup_moves_nothing_and_two_do():
    def fed(controller, latencies):
        for position, latency in enumerate(latencies):
            controller.observe(Response(position, position, position + latency, controller.rung))
        return controller.rung

    slow = 2 * TARGET
    assert fed(Controller([0.02, 0.01], TARGET), [0.02] * 50 + [slow] + [0.02] * 49) == 0
    assert fed(Controller([0.02, 0.01], TARGET), [0.02] * 50 + [slow, slow]) == 1
    assert fed(Controller([0.02, 0.01], TARGET), [slow] * 5) == 1  # what the last rung was given is not held to it
    assert fed(Controller([0.02], TARGET), [slow] * 300) == 0


def test_it_goes_up_after_some_calm_responses_and_not_before():
    controller = Controller([0.02, 0.01], TARGET)
    for position in range(2):
        controller.observe(Response(position, position, position + TARGET, 0))
    assert controller.rung == 1
    for position in range(CALM):
        assert controller.rung == 1
        controller.observe(Response(2 + position, 2 + position, 2 + position + 0.01, 1))
    assert controller.rung == 0


def test_what_the_narrowest_could_not_hold_does_not_keep_it_there():
    controller = Controller([0.02, 0.01], TARGET)
    for position in range(2 + WINDOW):
        controller.observe(Response(position / 100, position / 100, position / 100 + 2 * TARGET, controller.rung))
    assert controller.rung == 1
    for position in range(CALM):
        controller.observe(Response(2 + position, 2 + position, 2 + position + 0.01, 1))
        assert controller.rung == 1 or position > CALM // 2
    assert controller.rung == 0


def test_a_rung_whose_own_call_nears_the_target_is_left_alone():
    world = Simulation([0.9 * TARGET, 0.010])
    rungs = [response.rung for response in world.serve(world.ladder(), 5, 200)]
    assert rungs.index(1) <= 2
    assert set(rungs[rungs.index(1) :]) == {1}


def test_what_is_expected_of_slower_calls_is_what_they_take():
    """Against a simulated queue: the 99th percentile to about a quarter, the busy share to a few per cent."""

    def queue(service, rate, count=40_000):
        random, arrival, free, found = np.random.default_rng(1), 0.0, 0.0, []
        for _ in range(count):
            arrival += random.exponential(1 / rate)
            started = max(arrival, free)
            free = started + service
            found.append(Response(arrival, started, free, 0))
        return found

    latency, busy = expected(queue(0.010, 30), 2.0)
    truth = np.quantile([response.latency for response in queue(0.020, 30)], 0.99)
    assert latency == pytest.approx(truth, rel=0.25)
    assert busy == pytest.approx(0.6, rel=0.03)
    assert expected(queue(0.010, 60, 2000), 2.0)[0] == math.inf


@pytest.mark.parametrize(
    ("services", "target", "sentence"),
    [
        ([0.02, 0.01], 0.005, "the narrowest precision takes 10 ms a call"),
        ([0.02, 0.03], 0.1, "leave out what is no faster"),
        ([0.02], -1.0, "the target must be a positive number"),
        ([0.02], math.nan, "the target must be a positive number"),
    ],
)
def test_bad_input_is_one_sentence(services, target, sentence):
    with pytest.raises(ValueError, match=sentence):
        Controller(services, target)


def test_a_ladder_without_rungs_is_refused():
    with pytest.raises(ValueError, match="at least one executable"):
        Ladder([], TARGET, ())
