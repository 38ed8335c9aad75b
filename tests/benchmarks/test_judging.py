import json
import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import judging
from fixtures.model import Metric, Model, Reference, Samples
from reports.record import plain, unpack_outcomes
from reports.statistics import accuracy_interval

CLASSES = 5


def no_samples(*_):
    raise AssertionError("judging must not load data")


MODEL = Model(
    name="toy",
    family="convolutional",
    build=no_samples,
    input_names=("image",),
    dynamic_axes=({0: "batch"},),
    calibration=no_samples,
    evaluation=no_samples,
    evaluation_samples=1,
    metric=Metric("accuracy", "higher"),
)
UNJUDGED = replace(MODEL, metric=None, no_metric_reason="nobody labelled the photographs")


def make_samples(labels, clusters=None):
    count = len(labels)
    clusters = np.arange(count) if clusters is None else np.asarray(clusters)
    return Samples((np.zeros((count, 2), np.float32),), np.asarray(labels), clusters)


def accuracy(model, reference, baseline, outputs, samples):
    return judging.accuracy(model, judging.outcomes(model, reference, baseline, outputs, samples), samples)


def fidelity(model, reference, baseline, outputs):
    samples = make_samples(np.zeros(len(outputs), int))
    return judging.fidelity(judging.outcomes(model, reference, baseline, outputs, samples))


def scores(model, reference, outputs, samples):
    return judging.scores(judging.outcomes(model, reference, outputs, outputs, samples), outputs, samples)


def random_case(count=60, noise=0.7, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    baseline = random.normal(size=(count, CLASSES)).astype(np.float32)
    baseline[np.arange(count), labels] += 2
    outputs = baseline + noise * random.normal(size=baseline.shape).astype(np.float32)
    return baseline, outputs, make_samples(labels)


def softmax(values):
    powers = [[math.exp(value) for value in row] for row in values.tolist()]
    return [[power / sum(row) for power in row] for row in powers]


def test_relative_error_is_norm_of_difference_over_norm():
    baseline, outputs, _ = random_case()
    difference = [float(a) - float(b) for a, b in zip(outputs.flat, baseline.flat, strict=True)]
    expected = math.sqrt(math.fsum(d * d for d in difference)) / math.sqrt(
        math.fsum(float(b) ** 2 for b in baseline.flat)
    )
    assert judging.relative_error(outputs, baseline) == pytest.approx(expected, rel=1e-12)


def test_relative_error_is_computed_in_double_precision():
    expected = np.full((1, 4), 1e30, np.float32)
    assert judging.relative_error(2 * expected, expected) == pytest.approx(1)
    tiny = np.full((1, 4), 1e-30, np.float32)
    assert judging.relative_error(3 * tiny, tiny) == pytest.approx(2)


def test_relative_error_of_more_dimensions_stacks_everything():
    random = np.random.default_rng(1)
    expected, outputs = random.normal(size=(2, 3, 4, 5)).astype(np.float32)
    assert judging.relative_error(outputs, expected) == pytest.approx(
        judging.relative_error(outputs.reshape(1, -1), expected.reshape(1, -1)), rel=1e-12
    )


@pytest.mark.parametrize(("value", "error"), [(0.0, 0.0), (1e-20, 1.0), (3.0, 1.0)])
def test_relative_error_to_zero_is_none_or_all(value, error):
    zeros = np.zeros((3, 2), np.float32)
    assert judging.relative_error(np.full((3, 2), value, np.float32), zeros) == error


def test_accuracy_is_the_share_of_right_answers():
    baseline, outputs, samples = random_case()
    section = accuracy(MODEL, None, baseline, outputs, samples)
    right_before = [
        max(range(CLASSES), key=row.__getitem__) == label for row, label in zip(baseline, samples.labels, strict=True)
    ]
    right_after = [
        max(range(CLASSES), key=row.__getitem__) == label for row, label in zip(outputs, samples.labels, strict=True)
    ]
    pairs = list(zip(right_before, right_after, strict=True))
    assert section["baseline"] == pytest.approx(sum(right_before) / 60)
    assert section["value"] == pytest.approx(sum(right_after) / 60)
    assert section["delta"] == pytest.approx((sum(right_after) - sum(right_before)) / 60)
    assert section["flips"] == {"regressed": pairs.count((True, False)), "fixed": pairs.count((False, True))}
    assert section["flips"]["regressed"] > section["flips"]["fixed"] > 0
    assert (section["metric"], section["better"], section["n"], section["truncated"]) == (
        "accuracy",
        "higher",
        60,
        False,
    )
    assert section["ci95"][0] < section["delta"] < section["ci95"][1]


def test_p_value_of_independent_samples_is_the_exact_binomial():
    baseline, outputs, samples = random_case()
    section = accuracy(MODEL, None, baseline, outputs, samples)
    regressed, fixed = section["flips"]["regressed"], section["flips"]["fixed"]
    n = regressed + fixed
    tail = sum(math.comb(n, k) for k in range(min(regressed, fixed) + 1)) / 2**n
    assert section["p_value"] == pytest.approx(min(1, 2 * tail))


def test_clusters_widen_the_interval_and_weaken_the_evidence():
    baseline, outputs, samples = random_case(count=40, noise=1.5)
    repeated = [np.repeat(values, 5, axis=0) for values in (baseline, outputs, samples.labels)]
    clusters = np.repeat(np.arange(40), 5)
    apart = accuracy(MODEL, None, *repeated[:2], make_samples(repeated[2]))
    together = accuracy(MODEL, None, *repeated[:2], make_samples(repeated[2], clusters))
    assert together["delta"] == pytest.approx(apart["delta"])
    assert together["p_value"] > apart["p_value"]
    assert together["ci95"][1] - together["ci95"][0] > apart["ci95"][1] - apart["ci95"][0]
    right = [np.argmax(values, axis=1) == repeated[2] for values in repeated[:2]]
    assert together["ci95"] == list(accuracy_interval(*right, clusters)[:2])


def test_equal_outputs_change_nothing_but_prove_little():
    baseline, _, samples = random_case(count=30)
    section = accuracy(MODEL, None, baseline, baseline, samples)
    assert (section["delta"], section["p_value"], section["flips"]) == (0, 1, {"regressed": 0, "fixed": 0})
    assert section["ci95"][0] < 0 < section["ci95"][1]
    section = fidelity(MODEL, None, baseline, baseline)
    assert (section["error"], section["agreement"], section["kl"]) == (0, 1, 0)
    assert section["cosine"] == pytest.approx(1)
    assert section["sqnr_db"] is None
    assert section["reason"]


def test_constant_outputs_are_judged_as_the_first_class():
    samples = make_samples([0, 0, 1, 2])
    constant = np.ones((4, 3), np.float32)
    section = accuracy(MODEL, None, constant, constant, samples)
    assert section["value"] == 0.5
    assert fidelity(MODEL, None, constant, constant)["kl"] == 0


def test_one_sample():
    samples = make_samples([1])
    baseline, outputs = np.array([[0.0, 1.0]], np.float32), np.array([[1.0, 0.0]], np.float32)
    section = accuracy(MODEL, None, baseline, outputs, samples)
    assert (section["n"], section["baseline"], section["value"], section["delta"]) == (1, 1, 0, -1)
    assert section["p_value"] == 1
    assert -1 <= section["ci95"][0] < section["ci95"][1] <= 1
    section = fidelity(MODEL, None, baseline, outputs)
    assert section["agreement"] == 0
    assert section["cosine"] == 0


def test_one_cluster_of_many_samples():
    baseline, outputs, samples = random_case(count=20, noise=2)
    section = accuracy(MODEL, None, baseline, outputs, make_samples(samples.labels, [7] * 20))
    assert section["p_value"] == 1
    assert section["ci95"][0] < 0 < section["ci95"][1]


@pytest.mark.parametrize("n", [1, 17, 59])
def test_fewer_outputs_than_samples_are_judged_on_the_prefix(n):
    baseline, outputs, samples = random_case()
    section = accuracy(MODEL, None, baseline[:n], outputs[:n], samples)
    whole = accuracy(MODEL, None, baseline[:n], outputs[:n], samples.first(n))
    assert section == {**whole, "truncated": True}
    assert section["n"] == n
    packed = scores(MODEL, None, outputs[:n], samples)["packed"]
    assert unpack_outcomes(packed, n).mean() == pytest.approx(section["value"])


def test_without_a_metric_the_model_says_why():
    baseline, outputs, samples = random_case()
    assert accuracy(UNJUDGED, None, baseline, outputs, samples) == {"reason": "nobody labelled the photographs"}


def test_without_labels_there_is_a_reason():
    baseline, outputs, samples = random_case()
    unlabelled = replace(samples, labels=None)
    for model in (MODEL, UNJUDGED):
        assert list(accuracy(model, None, baseline, outputs, unlabelled)) == ["reason"]
        section = scores(model, None, outputs, unlabelled)
        assert section["packed"] is None
        assert section["reason"]
        assert section["dataset_sha256"] == unlabelled.digest
    assert "label" in accuracy(MODEL, None, baseline, outputs, unlabelled)["reason"]


def test_fidelity_against_plain_arithmetic():
    baseline, outputs, _ = random_case(noise=0.3)
    section = fidelity(MODEL, None, baseline, outputs)
    cosines, divergences, agreements = [], [], []
    for before, after in zip(baseline.tolist(), outputs.tolist(), strict=True):
        dot = math.fsum(a * b for a, b in zip(before, after, strict=True))
        cosines.append(dot / math.hypot(*before) / math.hypot(*after))
        agreements.append(before.index(max(before)) == after.index(max(after)))
    for before, after in zip(softmax(baseline), softmax(outputs), strict=True):
        divergences.append(math.fsum(p * math.log(p / q) for p, q in zip(before, after, strict=True)))
    assert section["error"] == pytest.approx(judging.relative_error(outputs, baseline))
    assert section["sqnr_db"] == pytest.approx(-20 * math.log10(section["error"]))
    assert section["cosine"] == pytest.approx(math.fsum(cosines) / 60)
    assert section["agreement"] == pytest.approx(sum(agreements) / 60)
    assert section["kl"] == pytest.approx(math.fsum(divergences) / 60)
    assert section["n"] == 60
    assert "reason" not in section


def test_divergence_is_finite_for_extreme_scores():
    baseline, outputs = np.array([[1e4, -1e4]], np.float32), np.array([[-1e4, 1e4]], np.float32)
    assert fidelity(MODEL, None, baseline, outputs)["kl"] == pytest.approx(2e4)


def test_scores_that_are_no_logits_have_no_divergence():
    baseline, outputs, _ = random_case()
    section = fidelity(replace(MODEL, logits=False), None, baseline, outputs)
    assert section["kl"] is None
    assert section["reason"]


def test_a_zero_baseline_is_judged_without_nan():
    zeros, samples = np.zeros((3, 2), np.float32), make_samples([0, 0, 1])
    for outputs in (zeros, np.ones((3, 2), np.float32)):
        section = fidelity(MODEL, None, zeros, outputs)
        assert section["error"] == float(outputs.any())
        assert all(math.isfinite(value) for value in section.values() if isinstance(value, float))
        assert accuracy(MODEL, None, zeros, outputs, samples)["delta"] == 0


def test_the_scores_of_a_model_decide_not_its_outputs():
    reference = Reference(np.eye(2, dtype=np.float32), np.array([0, 1]))
    model = replace(MODEL, logits=False, scores=lambda outputs, reference: -outputs @ reference.outputs.T)
    baseline, outputs = np.array([[0, 1], [1, 0]], np.float32), np.array([[0, 1], [0, 1]], np.float32)
    samples = make_samples([0, 1])
    section = accuracy(model, reference, baseline, outputs, samples)
    assert (section["baseline"], section["value"]) == (1, 0.5)
    assert fidelity(model, reference, baseline, outputs)["agreement"] == 0.5
    assert unpack_outcomes(scores(model, reference, outputs, samples)["packed"], 2).tolist() == [True, False]


def test_packed_scores_are_the_outcomes_of_each_sample():
    _, outputs, samples = random_case(count=13)
    section = scores(MODEL, None, outputs, samples)
    right = outputs.argmax(axis=1) == samples.labels
    assert unpack_outcomes(section["packed"], 13).tolist() == right.tolist()
    assert section["dataset_sha256"] == samples.digest


def test_sections_survive_json():
    baseline, outputs, samples = random_case()
    sections = [
        accuracy(MODEL, None, baseline, outputs, samples),
        fidelity(MODEL, None, baseline, outputs),
        scores(MODEL, None, outputs, samples),
    ]
    assert json.loads(json.dumps(plain(sections), allow_nan=False)) == plain(sections)


def test_judging_leaves_its_inputs_alone():
    baseline, outputs, samples = random_case()
    copies = baseline.copy(), outputs.copy()
    accuracy(MODEL, None, baseline, outputs, samples)
    fidelity(MODEL, None, baseline, outputs)
    assert np.array_equal(baseline, copies[0])
    assert np.array_equal(outputs, copies[1])
