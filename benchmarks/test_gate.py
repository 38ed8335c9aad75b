"""The gate's own test: what it calls a loss where there is none, and what it misses. It runs only by ``-m gate``.

Limits, cases and the least effect that must be seen are fixed here, before any run. What computes is imported by the
tests, so that listing them imports no runtime.
"""

from itertools import combinations

import pytest

from benchmarks.matrix import Case

pytestmark = pytest.mark.gate

COMPARISONS = 400
DETECTIONS = 200
SLOWED_PAIRS = 60
LARGEST_FALSE_ALARM_RATE = 0.02
LARGEST_REFUSAL_RATE = 0.1
LEAST_DETECTION_RATE = 0.95

LIMITS = ["accuracy:0.5pp", "agreement:1pp", "error:10%"]
SPEED_LIMIT = "speed:5%"
MINIMUM_DETECTABLE = {"accuracy": 3.0, "agreement": 4.0, "error": 25.0, "speed": 8.5}
"""The least true loss, in points or percent, that has to be seen: the limit plus what 3.6 standard errors of the
comparison come to at the sizes of the evaluation sets here (3.6 is for a level of 5 % two-sided at a power of 95 %)."""

SEEDS = 8
CALIBRATED = [
    Case("digits", "gptq", "int4", "torch"),
    Case("digits", "gptq", "int3", "torch"),
    Case("digits", "awq", "int4", "torch"),
    Case("digits", "static", "int8", "torch"),
]
BROKEN = {
    "scale off by 5 %": Case("digits", "static", "int8", "torch"),
    "zero point dropped": Case("minilm", "rtn", "int4", "torch"),
    "channels swapped": Case("digits", "static", "int8", "torch"),
    "depthwise per tensor": Case("digits", "rtn", "int8", "torch"),
}


@pytest.fixture(scope="module")
def draws(workshop):
    """Outcomes of each calibrated case from several independent draws of half its calibration data."""
    from benchmarks.reliability.subjects import Subject

    subjects = [Subject(workshop, case) for case in CALIBRATED]
    return [(subject, [subject.outcomes(subject.quantized(seed)) for seed in range(SEEDS)]) for subject in subjects]


@pytest.mark.parametrize("loss", [0.0, 0.0025])
def test_runs_without_a_loss_pass(draws, loss, publish):
    """Two draws of the calibration data, exchanged at random: whatever is called a loss is a false alarm.

    A loss of half the limit, on top, is a true one that the limit allows: it may seldom be called.
    """
    import numpy as np

    from benchmarks.reliability.campaigns import false_alarms
    from benchmarks.reliability.populations import comparison

    random = np.random.default_rng(0)
    limits = LIMITS if not loss else LIMITS[:1]

    def drawn():
        pairs = list(combinations(range(SEEDS), 2))
        for _ in range(COMPARISONS):
            first, second = pairs[random.integers(len(pairs))]
            populations = [subject.population(outcomes[first], outcomes[second]) for subject, outcomes in draws]
            yield comparison(populations, random, exchanged=True, loss=loss)

    what = "nothing lost" if not loss else f"{100 * loss:g} points of accuracy lost, half the limit"
    rate = publish(false_alarms(f"false alarms: {what}", drawn(), limits), limits=limits, cases=len(draws))
    assert rate.high <= LARGEST_FALSE_ALARM_RATE


@pytest.mark.parametrize("fault", BROKEN)
def test_a_planted_fault_is_caught(fault, workshop, publish):
    from benchmarks.reliability.faults import FAULTS
    from benchmarks.reliability.subjects import Subject

    subject = Subject(workshop, BROKEN[fault])
    sound = subject.quantized()
    population = subject.population(subject.outcomes(sound), subject.outcomes(FAULTS[fault](sound)))
    losses = {measure: population.true_loss(measure) for measure in ("accuracy", "agreement", "error")}
    _must_be_caught(f"caught: {fault}", population, losses, publish)


def test_corrupted_labels_are_caught(draws, publish):
    """Labels that changed behind an unchanged digest look like a loss of the model, float's own included."""
    from benchmarks.reliability.populations import mislabelled

    subject, outcomes = draws[0]
    population = mislabelled(subject.population(outcomes[0], outcomes[0]), share=0.05)
    losses = {"accuracy": population.true_loss("accuracy")}
    _must_be_caught("caught: 5 % of the labels wrong", population, losses, publish)


def _must_be_caught(name, population, losses, publish):
    import numpy as np

    from benchmarks.reliability.campaigns import detections
    from benchmarks.reliability.populations import comparison

    random = np.random.default_rng(1)
    drawn = (comparison([population], random) for _ in range(DETECTIONS))
    rate = publish(detections(name, drawn, LIMITS), limits=LIMITS, case=str(population.case), losses=losses)
    assert any(loss > MINIMUM_DETECTABLE[measure] for measure, loss in losses.items()), losses
    assert rate.hits / rate.trials >= LEAST_DETECTION_RATE


def test_an_edited_method_is_caught_with_a_warm_cache(tmp_path, publish):
    """The cache answers for the code it was filled by: a method edited on disk is run again, and judged."""
    from benchmarks.reliability import sessions
    from benchmarks.reliability.campaigns import detections

    before, after = sessions.edited_method(tmp_path)
    rate = publish(detections("caught: a method edited on disk", [(before, after)], ["error:10%"]))
    assert rate.hits == 1


def test_repeated_runs_have_the_same_speed(tmp_path, publish):
    """Whole runs, each in a process of its own, compared in pairs; every case of a pair is a comparison."""
    from benchmarks.reliability import sessions
    from benchmarks.reliability.campaigns import refusals

    runs = sessions.repeated(tmp_path, sessions.PAIRS * 2)
    pairs = list(zip(runs[::2], runs[1::2], strict=True))
    alarms = publish(sessions.case_alarms("false alarms: speed", pairs, SPEED_LIMIT), limits=[SPEED_LIMIT])
    refused = publish(refusals("refused: speed", runs))
    assert alarms.trials >= COMPARISONS
    assert alarms.high <= LARGEST_FALSE_ALARM_RATE
    assert refused.hits / refused.trials <= LARGEST_REFUSAL_RATE


def test_a_slower_kernel_is_caught(workshop, publish, pytestconfig):
    """Each side is timed for as long as any case is: half a second has four rounds of this one, too few for 10 %."""
    from benchmarks.reliability import sessions
    from benchmarks.reliability.campaigns import detections

    case = Case("minilm", "dynamic", "int8", "onnxruntime")
    pairs = sessions.slowed(workshop, case, 0.1, SLOWED_PAIRS, pytestconfig.getoption("time_budget"))
    judged = [pair for pair in pairs if not any(run.records[0]["speed"]["refused"] for run in pair)]
    assert len(judged) >= (1 - LARGEST_REFUSAL_RATE) * len(pairs)
    name = "caught: kernel 10 % slower"
    rate = publish(detections(name, judged, [SPEED_LIMIT]), limits=[SPEED_LIMIT], case=str(case))
    assert rate.hits / rate.trials >= LEAST_DETECTION_RATE
