"""A cascade of a real model: digits, whose convolutions stay float and whose linear layers are int8."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import cascading
from benchmarks.adapting import AdaptiveMeasurement
from benchmarks.cascading import certifying_samples, decisions
from benchmarks.decisions import NoCascade
from benchmarks.matrix import Case, matrix
from benchmarks.measurement import Measurement
from benchmarks.workshop import Settings, Workshop
from fixtures.cache import Cache
from quant.methods import methods, quantize
from reports.record import validate

ADAPTIVE = Case("digits", "adaptive", "int8", "torch")
SAMPLES = 60


class UntimedBenchmark:
    """pytest-benchmark where it is switched off."""

    disabled = True

    def pedantic(self, target, args=()):
        target(*args)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def workshop(folder):
    return Workshop(Cache(folder), Settings(evaluation_samples=SAMPLES, batch=16, max_drop=0.02))


def make(workshop, case):
    calibration = workshop.calibration(case.model)
    return workshop.compile(case, workshop.quantize(case, calibration), calibration)


@pytest.fixture
def record(workshop):
    artifact, baseline, samples = make(workshop, ADAPTIVE), workshop.baseline(ADAPTIVE), workshop.evaluation("digits")
    measurement = AdaptiveMeasurement(ADAPTIVE, "inference", workshop, UntimedBenchmark(), seconds=0.01)
    measurement.judge(artifact, baseline, samples)
    measurement.time(artifact, baseline, samples)
    measurement.memory(artifact, baseline, samples)
    return measurement.record() | {"seconds": 1.0}


def test_the_record_is_valid_and_tells_of_the_guarantee(record):
    assert validate(record) == []
    section = record["adaptive"]
    assert (section["first"], section["stronger"]) == ("dynamic-int8", "float-fp32")
    assert (section["max_drop"], section["confidence"]) == (0.02, 0.95)
    assert section["sources"] >= 149
    assert section["difference"] == pytest.approx(record["accuracy"]["delta"])
    assert section["resplits"]["count"] == 20
    assert record["scheme"]["stronger"] == "float-fp32"
    (note,) = [note for note in record["coverage"]["notes"] if "confidence" in note]
    assert "float-fp32 answered" in note


def test_a_damaged_section_is_refused(record):
    section = record["adaptive"]
    broken = {**record, "adaptive": {**section, "escalated": 1.5}}
    assert [problem for problem in validate(broken) if problem.startswith("adaptive.escalated")]
    assert [problem for problem in validate({**record, "adaptive": {}}) if problem.startswith("adaptive.")]


def test_outputs_are_the_first_models_where_it_is_sure_and_floats_elsewhere(workshop):
    artifact, samples = make(workshop, ADAPTIVE), workshop.evaluation("digits")
    first, stronger = (workshop.outputs(part, samples) for part in artifact.parts)
    found = decisions(workshop, *artifact.parts, samples)
    median = float(np.median(found.sureness))
    for threshold in (-np.inf, median, np.inf):
        both = replace(artifact, executable=artifact.executable.with_threshold(threshold))
        batches = [samples.between(start, start + 16).inputs for start in range(0, SAMPLES, 16)]
        outputs = np.concatenate([both.executable(*inputs)[0] for inputs in batches])
        unsure = ~(found.sureness >= threshold)
        assert np.array_equal(outputs[~unsure], first[~unsure])
        np.testing.assert_allclose(outputs[unsure], stronger[unsure], rtol=1e-4, atol=1e-4)
        assert both.executable.escalated == unsure.sum()


def test_what_certifies_is_not_evaluated(workshop):
    held_out, evaluated = certifying_samples(workshop, "digits"), workshop.evaluation("digits")
    assert not set(held_out.clusters) & set(evaluated.clusters)
    assert len(held_out) + len(evaluated) <= 60 + cascading.CERTIFYING_SAMPLES


def test_a_second_run_decides_nothing_again(workshop, monkeypatch):
    make(workshop, ADAPTIVE)
    again = Workshop(workshop.cache, workshop.settings)
    again.cache._verified.clear()
    monkeypatch.setattr(cascading, "compared", lambda *arguments: pytest.fail("it was decided before"))
    assert make(again, ADAPTIVE).executable.certificate == make(workshop, ADAPTIVE).executable.certificate


def test_after_the_cap_the_threshold_is_certified_on_what_there_is(workshop, monkeypatch):
    monkeypatch.setattr(cascading, "PIECE", 200)
    workshop.settings = replace(workshop.settings, case_seconds=0.0)
    assert make(workshop, ADAPTIVE).executable.certificate.sources <= 200


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"evaluation_samples": 10_000}, "no samples beyond"),
        ({"max_drop": 0.001}, "to show a loss within 0.1 points takes 2995, so lower --eval-samples"),
    ],
)
def test_too_few_samples_are_named_with_the_remedy(workshop, settings, sentence):
    workshop.settings = replace(workshop.settings, **settings)
    with pytest.raises(NoCascade, match=sentence):
        make(workshop, ADAPTIVE)


def test_a_model_without_classes_has_no_cascade(workshop):
    model = replace(workshop.model("digits"), scores=None)
    with pytest.raises(NoCascade, match="are no classes"):
        cascading.scores_of(model, None)


def test_a_cascade_is_a_case_of_every_backend_that_runs_its_first_model():
    cases = set(matrix()[0])
    wanted = {replace(case, method="adaptive") for case in cases if (case.method, case.bits) == ("dynamic", "int8")}
    assert {case for case in cases if case.method == "adaptive"} == wanted
    assert Case("minilm", "adaptive", "int8", "onnxruntime") in wanted
    assert Case("minilm", "adaptive", "int8", "onnxruntime").first == Case("minilm", "dynamic", "int8", "onnxruntime")
    assert Case("minilm", "rtn", "int4", "torch").first == Case("minilm", "rtn", "int4", "torch")


def test_a_cascade_makes_no_tables_of_its_own(workshop):
    assert not methods()["adaptive"].has_tables
    with pytest.raises(ValueError, match="cascade of two models: quantize with 'dynamic'"):
        quantize(workshop.prepare("digits").graph, "adaptive", "int8")


def test_other_cases_have_no_section_of_it(workshop):
    case = ADAPTIVE.baseline
    artifact, samples = workshop.baseline(case), workshop.evaluation("digits")
    measurement = Measurement(case, "inference", workshop, UntimedBenchmark(), seconds=0.01)
    measurement.judge(artifact, artifact, samples)
    assert "adaptive" not in measurement.record()
