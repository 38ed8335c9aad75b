import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import workshop as module
from benchmarks.answers import Answers
from benchmarks.ingredients import training_of
from benchmarks.matrix import Case
from benchmarks.measurement import Measurement
from benchmarks.workshop import Settings, Workshop, calibration_batches
from fixtures.cache import Cache, CacheWarning
from fixtures.model import Metric
from quant import training
from quant.graph import simulate
from reports.record import unpack_outcomes, validate
from reports.scores import scores_of

FLOAT = Case("digits", "float", "fp32", "torch")
RTN = Case("digits", "rtn", "int4", "torch")
STATIC = Case("digits", "static", "int8", "torch")
NATIVE = Case("digits", "native", "int4", "torch")
QAT = Case("digits", "qat", "int4", "torch")
SAMPLES = 20


class UntimedBenchmark:
    """pytest-benchmark where it is switched off."""

    disabled = True

    def __init__(self):
        self.calls = 0

    def pedantic(self, target, args=()):
        self.calls += 1
        target(*args)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One cache for all tests of this file, as runs share one."""
    return tmp_path_factory.mktemp("cache")


def open_workshop(folder, **settings):
    return Workshop(Cache(folder), Settings(**{"evaluation_samples": SAMPLES, **settings}))


@pytest.fixture
def workshop(folder):
    return open_workshop(folder)


def make(workshop, case):
    calibration = workshop.calibration(case.model)
    return workshop.compile(case, workshop.quantize(case, calibration), calibration)


def measure(workshop, case):
    evaluation = workshop.evaluation(case.model)
    measurement = Measurement(case, "inference", workshop, UntimedBenchmark(), seconds=0.01)
    artifact, baseline = make(workshop, case), workshop.baseline(case)
    measurement.judge(artifact, baseline, evaluation)
    measurement.time(artifact, baseline, evaluation)
    return measurement.record()


@pytest.mark.parametrize("combination", [FLOAT, RTN, STATIC], ids=str)
def test_nothing_is_made_twice_by_two_runs(folder, combination):
    first, second = open_workshop(folder), open_workshop(folder)
    made, found = make(first, combination), make(second, combination)
    outputs = first.outputs(made, first.evaluation("digits"))
    assert second.prepare("digits").entry.cached
    assert found.entry.cached
    assert found.tables.entry.cached
    assert found.entry.content_sha256 == made.entry.content_sha256
    assert np.array_equal(second.outputs(found, second.evaluation("digits")), outputs)


def test_backends_share_the_tables_of_one_scheme(workshop):
    calibration = workshop.calibration("digits")
    backends = ("torch", "onnxruntime", "mlx", "coreml")
    for method, bits in (("rtn", "int4"), ("static", "int8")):
        made = {workshop.quantize(Case("digits", method, bits, name), calibration).entry.path for name in backends}
        assert len(made) == 1


def test_cases_differ_in_their_tables(workshop):
    calibration = workshop.calibration("digits")
    cases = [FLOAT, RTN, STATIC, replace(RTN, bits="int8"), replace(RTN, bits="int3")]
    assert len({workshop.quantize(case, calibration).entry.path for case in cases}) == len(cases)


def test_a_runtimes_own_quantizer_has_no_tables(workshop):
    assert workshop.quantize(NATIVE, workshop.calibration("digits")) is None
    assert make(workshop, NATIVE).tables is None


def test_calibration_decides_the_tables_of_calibrating_methods_alone(workshop):
    whole = workshop.calibration("digits")
    half = whole.first(len(whole) // 2)
    assert workshop.quantize(STATIC, whole).entry.path != workshop.quantize(STATIC, half).entry.path
    assert workshop.quantize(RTN, whole).entry.path == workshop.quantize(RTN, half).entry.path


def test_calibration_and_evaluation_share_no_cluster(workshop):
    calibration, evaluation = workshop.calibration("digits"), workshop.evaluation("digits")
    assert not set(calibration.clusters) & set(evaluation.clusters)


@pytest.mark.parametrize(
    ("edited", "rebuilt"),
    [
        ("quant.methods.rtn", {"tables", "artifact"}),
        ("quant.backends.torch", {"artifact", "template"}),
        ("fixtures.zoo.digits", {"graph", "tables", "artifact", "template"}),
        ("quant.methods.static", set()),
        ("quant.backends.coreml", set()),
    ],
)
def test_an_edit_is_never_answered_from_the_cache(folder, monkeypatch, edited, rebuilt):
    def keys():
        workshop = open_workshop(folder)
        made = make(workshop, RTN)
        return {
            "graph": workshop.prepare("digits").entry.digest,
            "tables": made.tables.entry.digest,
            "artifact": made.entry.digest,
            "template": workshop._template(workshop.prepare(RTN.model), RTN).digest,
        }

    before, really = keys(), module.source_digest
    monkeypatch.setattr(module, "source_digest", lambda *names: really(*names) + "edited" * (edited in names))
    after = keys()
    assert {name for name in before if before[name] != after[name]} == rebuilt


def test_trained_tables_are_made_once_and_anew_for_another_recipe(folder, monkeypatch):
    calibration = open_workshop(folder).calibration("digits")

    def made(case, **settings):
        workshop = open_workshop(folder)
        model = workshop.model("digits")
        training = model.training()
        recipe = replace(training.recipe, steps=3, validate_every=2, **settings)
        monkeypatch.setitem(
            workshop._models, "digits", replace(model, training=lambda: replace(training, recipe=recipe))
        )
        return workshop.quantize(case, calibration)

    first, found = made(QAT), made(QAT)
    assert not first.entry.cached
    assert found.entry.cached
    assert found.quantized.recipe["training"]["steps"] == 3
    assert made(QAT, seed=1).entry.path != first.entry.path
    assert not list((folder / "training").glob("*")), "a finished training leaves no checkpoint"


def test_a_killed_training_goes_on_where_it_was(folder, monkeypatch):
    workshop = open_workshop(folder)
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    model = workshop.model("digits")
    data = model.training()
    data = replace(data, recipe=replace(data.recipe, steps=4, seed=2))
    losses, really = [], data.loss

    def killed(outputs, labels):
        losses.append(1)
        if len(losses) == 3:
            raise KeyboardInterrupt
        return really(outputs, labels)

    for loss in (killed, lambda *given: losses.append(1) or really(*given)):
        chosen = replace(model, training=lambda loss=loss: replace(data, loss=loss, validation=None))
        monkeypatch.setitem(workshop._models, "digits", chosen)
        if loss is killed:
            with pytest.raises(KeyboardInterrupt):
                workshop.quantize(QAT, workshop.calibration("digits"))
            assert len(list((folder / "training").glob("*.pt"))) == 1
        else:
            workshop.quantize(QAT, workshop.calibration("digits"))
    assert len(losses) == 3 + 2, "two steps were made, the third was killed, and two were left"


def test_a_model_without_training_data_learns_from_float_on_its_calibration(workshop):
    calibration = calibration_batches(workshop.calibration("digits").first(32))
    found = training_of(replace(workshop.model("digits"), training=None), calibration)
    assert found.loss is None
    assert found.recipe.distance == "kl"
    assert len(found.loader.tensors[0]) == 28
    unlike = replace(workshop.model("digits"), training=None, logits=False)
    assert training_of(unlike, calibration).recipe.distance == "mse"


def test_a_damaged_table_is_built_again_with_the_same_numbers(folder):
    workshop = open_workshop(folder)
    before = make(workshop, RTN)
    outputs = before.executable(*workshop.first_batch(workshop.evaluation("digits")))[0]
    file = before.tables.entry.path / "tables.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    again = open_workshop(folder)
    with pytest.warns(CacheWarning, match="built again"):
        after = make(again, RTN)
    assert not after.tables.entry.cached
    assert after.entry.cached
    assert file.read_bytes() == content
    assert np.array_equal(after.executable(*again.first_batch(again.evaluation("digits")))[0], outputs)


def test_outputs_are_those_of_the_executable_one_batch_at_a_time(workshop):
    artifact, evaluation = make(workshop, RTN), workshop.evaluation("digits")
    outputs = workshop.outputs(artifact, evaluation)
    assert outputs.shape == (SAMPLES, 10)
    assert outputs.dtype == np.float32
    for row, image in zip(outputs, evaluation.inputs[0], strict=True):
        assert np.array_equal(row, artifact.executable(image[None])[0][0])


def test_a_batch_that_does_not_divide_the_samples_loses_none(folder, workshop):
    batched = open_workshop(folder, batch=7)
    evaluation = batched.evaluation("digits")
    outputs = batched.outputs(make(batched, RTN), evaluation)
    assert len(outputs) == SAMPLES
    np.testing.assert_allclose(outputs, workshop.outputs(make(workshop, RTN), evaluation), rtol=1e-4, atol=1e-4)
    assert [len(array) for array in batched.first_batch(evaluation)] == [7]


def test_a_batch_larger_than_the_samples(folder):
    workshop = open_workshop(folder, batch=64)
    evaluation = workshop.evaluation("digits")
    assert len(workshop.outputs(make(workshop, RTN), evaluation)) == SAMPLES
    assert [len(array) for array in workshop.first_batch(evaluation)] == [SAMPLES]


def test_outputs_are_not_shared_by_other_batches_threads_or_samples(folder):
    settings = [{}, {"batch": 5}, {"threads": 2}, {"evaluation_samples": 9}]
    calls = []
    for chosen in settings * 2:
        workshop = open_workshop(folder, **{"evaluation_samples": 10, **chosen})
        artifact = make(workshop, FLOAT)
        counting = replace(artifact, executable=CountingExecutable(artifact.executable))
        workshop.outputs(counting, workshop.evaluation("digits"))
        calls.append(counting.executable.calls)
    torch.set_num_threads(1)
    assert calls == [10, 2, 10, 9, 0, 0, 0, 0]


class CountingExecutable:
    def __init__(self, executable):
        self.executable, self.calls = executable, 0

    def __call__(self, *inputs):
        self.calls += 1
        return self.executable(*inputs)


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (None, 599), (10_000, 599)])
def test_the_number_of_evaluation_samples(folder, asked, given):
    evaluation = open_workshop(folder, evaluation_samples=asked).evaluation("digits")
    assert len(evaluation) == given
    first = open_workshop(folder, evaluation_samples=1).evaluation("digits")
    assert np.array_equal(evaluation.inputs[0][:1], first.inputs[0])


def test_a_time_cap_stops_the_evaluation_and_is_not_remembered(folder):
    lengths = []
    for seconds in (0.0, 0.0, 60.0, 0.0):
        workshop = open_workshop(folder, evaluation_samples=11, case_seconds=seconds)
        lengths.append(len(workshop.outputs(make(workshop, RTN), workshop.evaluation("digits"))))
    assert lengths == [1, 1, 11, 11]


def test_the_simulation_is_that_of_the_tables(workshop):
    artifact, evaluation = make(workshop, STATIC), workshop.evaluation("digits")
    with torch.inference_mode():
        meant = simulate(artifact.tables.quantized)(torch.from_numpy(evaluation.inputs[0]))[0].numpy()
    np.testing.assert_allclose(workshop.simulated(artifact, evaluation), meant, rtol=1e-4, atol=1e-4)


def test_a_perturbed_simulation_leaves_the_parameters_that_other_cases_share_alone(tmp_path):
    workshop = open_workshop(tmp_path)
    artifact, evaluation = make(workshop, STATIC), workshop.evaluation("digits").first(4)
    parameters = workshop.prepare("digits").graph.parameters
    before = {name: value.clone() for name, value in parameters.items()}
    assert not np.array_equal(
        workshop.simulated(artifact, evaluation, perturbed=True), workshop.simulated(artifact, evaluation)
    )
    assert [name for name, value in parameters.items() if not torch.equal(value, before[name])] == []


def test_only_models_that_need_one_have_a_reference(workshop):
    assert workshop.reference("digits") is None


@pytest.mark.parametrize(("combination", "tolerance"), [(FLOAT, 1e-5), (RTN, 1e-3), (STATIC, 2e-2)], ids=str)
def test_a_record_is_valid_and_agrees_with_the_simulation(workshop, combination, tolerance):
    record = measure(workshop, combination)
    assert validate(record) == []
    assert record["parity"]["error"] <= tolerance
    assert record["accuracy"]["n"] == record["fidelity"]["n"] == SAMPLES
    assert record["accuracy"]["truncated"] is False
    assert record["speed"] == {"reason": "timing is disabled in this run", "batch": 1}


def test_a_twin_is_the_baseline_loaded_once_more(workshop):
    baseline, evaluation = workshop.baseline(RTN), workshop.evaluation("digits")
    twin = workshop.twin(baseline)
    assert twin is not baseline.executable
    assert twin is workshop.twin(workshop.baseline(RTN))
    inputs = workshop.first_batch(evaluation)
    np.testing.assert_array_equal(twin(*inputs)[0], baseline.executable(*inputs)[0])


def test_another_backends_float_has_a_twin_of_its_own(workshop):
    first = workshop.twin(workshop.baseline(RTN))
    other = workshop.twin(workshop.baseline(Case("digits", "rtn", "int4", "coreml")))
    assert type(other) is not type(first)
    assert workshop.twin(workshop.baseline(RTN)) is not first


def test_one_sample_makes_a_valid_record(folder):
    record = measure(open_workshop(folder, evaluation_samples=1), RTN)
    assert validate(record) == []
    assert record["accuracy"]["n"] == record["fidelity"]["n"] == record["parity"]["n"] == 1


def test_a_runtimes_own_quantizer_has_a_valid_record(workshop):
    record = measure(workshop, NATIVE)
    assert validate(record) == []
    assert record["parity"]["error"] is None
    assert record["parity"]["reason"]
    assert record["scheme"]["quantizer"]


def test_float_against_itself_differs_in_nothing(workshop):
    record = measure(workshop, FLOAT)
    assert record["fidelity"]["error"] == 0
    assert record["accuracy"]["delta"] == 0
    assert record["accuracy"]["flips"] == {"regressed": 0, "fixed": 0}


@pytest.mark.parametrize("combination", [FLOAT, RTN, NATIVE], ids=str)
def test_the_size_is_that_of_the_artefact_without_what_the_cache_adds(workshop, combination):
    artifact = make(workshop, combination)
    files = [file for file in artifact.entry.path.rglob("*") if file.is_file() and file.name != "manifest.json"]
    assert artifact.executable.size_bytes == sum(file.stat().st_size for file in files)


def test_the_record_of_a_few_bits_is_smaller(workshop):
    large, small = measure(workshop, FLOAT), measure(workshop, RTN)
    assert small["size"]["bytes"] < 0.25 * large["size"]["bytes"]
    assert large["size"]["bits_per_weight"] == pytest.approx(32)
    assert 4 < small["size"]["bits_per_weight"] < 6
    assert small["size"]["float_bytes"] == large["size"]["bytes"]
    assert small["size"]["baseline_bytes"] == 4 * small["model"]["parameters"]


def test_a_truncated_case_is_compared_on_the_common_prefix(folder):
    whole = open_workshop(folder, evaluation_samples=12)
    baseline = whole.outputs(make(whole, FLOAT), whole.evaluation("digits"))
    hasty = open_workshop(folder, evaluation_samples=12, case_seconds=0.0)
    record = measure(hasty, RTN)
    labels = whole.evaluation("digits").labels
    assert validate(record) == []
    assert record["accuracy"]["truncated"] is True
    assert record["accuracy"]["n"] == record["fidelity"]["n"] == record["parity"]["n"] == 1
    assert record["accuracy"]["baseline"] == float(baseline[0].argmax() == labels[0])
    assert len(unpack_outcomes(record["scores"]["packed"], 1)) == 1


def test_a_truncated_case_without_labels_is_marked_too(folder):
    hasty = open_workshop(folder, evaluation_samples=13, case_seconds=0.0)
    unjudged = replace(hasty.model("digits"), metric=None, no_metric_reason="nobody labelled the photographs")
    hasty._models["digits"] = unjudged
    record = measure(hasty, RTN)
    assert validate(record) == []
    assert record["accuracy"]["reason"] == "nobody labelled the photographs"
    assert record["fidelity"]["n"] == 1
    assert any(section.get("truncated") for section in record.values() if isinstance(section, dict))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_refused(workshop, monkeypatch, value):
    artifact, baseline, evaluation = make(workshop, RTN), workshop.baseline(RTN), workshop.evaluation("digits")
    broken = workshop.outputs(baseline, evaluation).copy()
    broken[3:5, 1] = value
    whole = workshop.outputs(baseline, evaluation)
    monkeypatch.setattr(workshop, "answers", lambda made, samples: Answers(broken if made is artifact else whole))
    measurement = Measurement(RTN, "inference", workshop, UntimedBenchmark(), seconds=0.01)
    with pytest.raises(ValueError, match=r"^digits-rtn-int4-torch gives NaN or infinity on 2 of 20 samples"):
        measurement.judge(artifact, baseline, evaluation)


def test_a_float_model_that_is_not_finite_is_refused_by_name(workshop, monkeypatch):
    artifact, baseline, evaluation = make(workshop, RTN), workshop.baseline(RTN), workshop.evaluation("digits")
    whole = workshop.outputs(artifact, evaluation)
    broken = np.full_like(whole, np.nan)
    monkeypatch.setattr(workshop, "answers", lambda made, samples: Answers(broken if made is baseline else whole))
    measurement = Measurement(RTN, "inference", workshop, UntimedBenchmark(), seconds=0.01)
    with pytest.raises(ValueError, match=r"digits-float-fp32-torch gives NaN or infinity"):
        measurement.judge(artifact, baseline, evaluation)


def summed_losses(outputs, samples, reference):
    """As perplexity has it: a sum and a weight of each sample."""
    losses = np.log(np.exp(outputs.astype(np.float64)).sum(1)) - outputs[np.arange(len(outputs)), samples.labels]
    return losses, np.full(len(losses), 2.0)


def streaming(folder, kept, **settings):
    """Digits judged as language models are: outputs of the first samples, losses of all."""
    workshop = open_workshop(folder, **settings)
    metric = Metric("perplexity", "lower", summed_losses, "exp_mean")
    workshop._models["digits"] = replace(workshop.model("digits"), metric=metric, fidelity_samples=kept)
    return workshop


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_outputs_are_kept_of_the_first_samples_and_contributions_of_all(folder, batch):
    whole, part = streaming(folder, None, batch=batch), streaming(folder, 7, batch=batch)
    evaluation = part.evaluation("digits")
    outputs = whole.outputs(make(whole, RTN), evaluation)
    assert whole.answers(make(whole, RTN), evaluation).contributions is None
    for answers in (part.answers(make(part, RTN), evaluation) for part in (part, streaming(folder, 7, batch=batch))):
        assert np.array_equal(answers.outputs, outputs[:7])
        losses, weights = summed_losses(outputs, evaluation, None)
        np.testing.assert_allclose(answers.contributions.numerators, losses, rtol=1e-12)
        assert np.array_equal(answers.contributions.denominators, weights)
        assert answers.contributions.form == "exp_mean"


def test_the_record_of_a_streamed_model_judges_all_samples_and_compares_the_first(folder):
    whole, part = measure(streaming(folder, None), RTN), measure(streaming(folder, 7), RTN)
    assert validate(whole) == validate(part) == []
    assert part["accuracy"] == whole["accuracy"]
    assert part["accuracy"]["n"] == part["scores"]["n"] == SAMPLES
    assert part["fidelity"]["n"] == part["scores"]["n_fidelity"] == 7
    assert not part["fidelity"]["truncated"]
    few = measure(streaming(folder, None, evaluation_samples=7), RTN)
    assert part["fidelity"]["error"] == few["fidelity"]["error"]
    lengths = {name: len(found) for name, found in scores_of(part).contributions.items()}
    assert lengths == {"accuracy": SAMPLES, **dict.fromkeys(("agreement", "cosine", "kl", "error", "sqnr_db"), 7)}


def test_streamed_outputs_beyond_those_kept_are_part_of_their_digest(folder, monkeypatch):
    workshop = streaming(folder, 7)
    before = measure(workshop, RTN)["scores"]["outputs_sha256"]
    answer = workshop.answers

    def changed(artifact, samples):
        found = answer(artifact, samples)
        numerators = found.contributions.numerators.copy()
        numerators[-1] += 1
        return replace(found, contributions=replace(found.contributions, numerators=numerators))

    monkeypatch.setattr(workshop, "answers", changed)
    assert measure(workshop, RTN)["scores"]["outputs_sha256"] != before


def test_a_streamed_loss_that_is_not_finite_is_refused(folder, monkeypatch):
    workshop = streaming(folder, 7)
    answer = workshop.answers

    def broken(artifact, samples):
        found = answer(artifact, samples)
        found.contributions.numerators[12] = np.nan
        return found

    monkeypatch.setattr(workshop, "answers", broken)
    with pytest.raises(ValueError, match="gives NaN or infinity on 1 of 20 samples"):
        measure(workshop, RTN)


def test_a_truncated_streamed_case_is_marked_and_not_cached(folder):
    record = measure(streaming(folder, 7, case_seconds=0.0, evaluation_samples=15), RTN)
    assert validate(record) == []
    assert record["accuracy"]["n"] == 1
    assert record["accuracy"]["truncated"]
    assert record["fidelity"]["truncated"]
    assert measure(streaming(folder, 7, evaluation_samples=15), RTN)["accuracy"]["n"] == 15


def test_a_long_step_says_what_it_does(folder):
    said = []
    workshop = Workshop(Cache(folder / "aloud"), Settings(evaluation_samples=2), said.append)
    artifact = make(workshop, RTN)
    workshop.outputs(artifact, workshop.evaluation("digits"))
    assert [text.split()[0] for text in said] == [
        "loading",
        "exporting",
        "quantizing",
        "exporting",
        "compiling",
        "starting",
        "evaluating",
        "evaluating",
    ]
    assert said[-1] == "evaluating digits-rtn-int4-torch: 2/2"


def test_making_a_case_warns_of_nothing(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        make(open_workshop(folder), STATIC)
