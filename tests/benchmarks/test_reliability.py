import json

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from benchmarks import judging
from benchmarks.matrix import Case, models
from benchmarks.reliability.campaigns import Rate, detections, false_alarms, refusals
from benchmarks.reliability.faults import FAULTS
from benchmarks.reliability.populations import Population, comparison, mislabelled
from fixtures.model import DataOptions, Samples
from quant.graph import simulate
from quant.methods import quantize
from quant.tracing import capture
from reports.reliability import rates_of, reliability_table
from reports.runs import Run, RunError
from reports.scores import scores_of

CASE = Case("digits", "rtn", "int4", "torch")


@pytest.fixture(scope="module")
def digits():
    return models()["digits"].load().load(DataOptions())


@pytest.fixture(scope="module")
def graph(digits):
    examples = tuple(torch.from_numpy(values[:2].copy()) for values in digits.calibration().inputs)
    return capture(digits.build(), examples, digits.dynamic_axes)


def population(digits, wrong_before=0, wrong_after=0, n=200, size=1):
    """``n`` samples in clusters of ``size`` of which the first so many are answered wrong on either side."""
    labels = np.arange(n) % 10
    samples = Samples((np.zeros((n, 1), np.float32),), labels, np.arange(n) // size)
    right = np.eye(10, dtype=np.float32)[labels]
    sides = []
    for wrong in (wrong_before, wrong_after):
        outputs = right.copy()
        outputs[:wrong] = np.roll(outputs[:wrong], 1, axis=1)
        sides.append(judging.outcomes(digits, None, right, outputs + np.float32(0.01), samples))
    return Population(CASE, digits, samples, *sides)


@pytest.mark.parametrize(("hits", "trials"), [(0, 400), (3, 400), (199, 200), (200, 200), (1, 1)])
def test_the_bounds_of_a_rate_are_clopper_and_pearsons(hits, trials):
    rate = Rate("x", hits, trials)
    expected = binomtest(hits, trials).proportion_ci(0.9, method="exact")
    assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high))


def test_three_alarms_in_four_hundred_are_just_few_enough():
    assert Rate("x", 3, 400).high < 0.02 < Rate("x", 4, 400).high


def test_a_planted_loss_is_caught_and_none_is_not(digits):
    random = np.random.default_rng(0)
    lossy = population(digits, wrong_after=40)
    assert lossy.true_loss("accuracy") == pytest.approx(20)
    caught = detections("x", (comparison([lossy], random) for _ in range(20)), ["accuracy:1pp"])
    assert caught == Rate("x", 20, 20)
    exchanged = (comparison([lossy], random, exchanged=True) for _ in range(40))
    assert false_alarms("x", exchanged, ["accuracy:1pp"]).hits <= 3


def test_a_stated_loss_is_the_loss_on_average(digits):
    random = np.random.default_rng(0)
    drawn = [comparison([population(digits, n=400)], random, loss=0.05) for _ in range(50)]
    losses = [base.records[0]["accuracy"]["value"] - head.records[0]["accuracy"]["value"] for base, head in drawn]
    assert np.mean(losses) == pytest.approx(0.05, abs=0.006)


def test_clusters_are_drawn_whole(digits):
    base, _ = comparison([population(digits, wrong_before=50, n=200, size=4)], np.random.default_rng(0))
    scores = scores_of(base.records[0])
    right, clusters = scores.contributions["accuracy"].numerators, scores.clusters
    assert len(right) == 200
    assert np.bincount(clusters).tolist() == [4] * 50
    # The first 12 clusters are all wrong, and one is half so.
    shares = {float(right[clusters == cluster].mean()) for cluster in range(50)}
    assert shares <= {0.0, 0.5, 1.0}


def test_wrong_labels_take_right_answers_alone(digits):
    spoiled = mislabelled(population(digits, n=1000), share=0.1)
    assert spoiled.true_loss("accuracy") == pytest.approx(10, abs=3)
    assert spoiled.true_loss("error") == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_changes_what_the_model_answers(fault, graph, digits):
    bits = "int8" if "depthwise" in fault else "int4"
    sound = quantize(graph, "rtn", bits)
    image = torch.from_numpy(digits.calibration().inputs[0][:16])
    if fault == "zero point dropped" and all(weight.zero_point is None for weight in sound.weights.values()):
        with pytest.raises(ValueError, match="asymmetric"):
            FAULTS[fault](sound)
        return
    broken = FAULTS[fault](sound)
    before, after = (simulate(quantized)(image)[0] for quantized in (sound, broken))
    assert float((after - before).norm() / before.norm()) > 1e-3
    untouched = [name for name in sound.weights if broken.weights[name] is sound.weights[name]]
    assert (len(untouched) == 0) == (fault == "scale off by 5 %")


def test_refused_ratios_are_counted(make_record):
    refused = {"reason": "not timed", "ratio": None, "refused": True}
    runs = [Run(None, [make_record(), make_record(speed=refused), make_record(speed={"reason": "disabled"})])]
    assert refusals("x", runs) == Rate("x", 1, 2)


def test_rates_are_read_and_shown(tmp_path):
    rates = [
        Rate("false alarms: speed", 0, 400).as_dict(),
        {**Rate("caught: x", 200, 200).as_dict(), "limits": ["a:1%"]},
    ]
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"benchmarks": [{"extra_info": {"reliability": rates}}, {}]}))
    shown = reliability_table(rates_of(path))
    assert "0/400    ≤ 0.7 %" in shown
    assert "200/200  ≥ 98.5 %  a:1%" in shown
    path.write_text('{"benchmarks": []}')
    with pytest.raises(RunError, match="holds no rates of the gate; measure them"):
        rates_of(path)
