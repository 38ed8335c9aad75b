"""The registry of other libraries, and which of our methods answers one; no library need be installed."""

import ast
from collections import Counter
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from benchmarks.cost import Cost
from benchmarks.costing import CostMeasurement, answer_to
from benchmarks.matrix import Case, layers, matrix, quantizers
from benchmarks.peers import peer_cases
from benchmarks.trials import Trial, Trials
from benchmarks.workshop import Settings, Workshop
from fixtures.cache import Cache
from fixtures.zoo.minilm import MiniLM
from quant.methods import methods
from reports.record import validate

PEERS = peer_cases()
LIBRARIES = {case.library.name: case.library for case in PEERS}


def trial(seconds, error, outputs=None):
    return Trial(Cost(seconds, 2 * seconds, 1000), outputs, error)


def test_a_peer_has_an_id_of_four_axes():
    assert {"hqq", "nncf", "neural_compressor", "auto_round"} <= LIBRARIES.keys()
    for case in PEERS:
        assert case.id.split("-") == [case.model, case.method, case.bits, case.backend]
    assert len({case.id for case in PEERS}) == len(PEERS)


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=lambda library: library.name)
def test_a_library_states_what_it_needs_and_can_be_prepared(library):
    assert all(command.startswith("pip install ") for command in library.constants["PACKAGES"].values())
    assert library.summary.endswith(".")
    functions = [node for node in ast.parse(library.path.read_text()).body if isinstance(node, ast.FunctionDef)]
    (prepare,) = [node for node in functions if node.name == "prepare"]
    assert [argument.arg for argument in prepare.args.args] == ["subject"]


@pytest.mark.parametrize("case", PEERS, ids=str)
def test_the_rivals_are_all_our_methods_of_the_family_that_offer_the_bits(case):
    word = case.bits.partition("_")[0]
    wanted = {
        name
        for name, entry in methods().items()
        if entry.family == case.family and word in entry.bits and not entry.native and not entry.trains
    }
    assert {rival.method for rival in case.rivals()} == wanted
    for rival in case.rivals():
        assert rival.scheme == case.scheme


def test_a_missing_library_is_named_with_its_command(monkeypatch):
    case = next(case for case in PEERS if case.method == "hqq")
    monkeypatch.setitem(case.library.constants, "PACKAGES", {"no_such_library": "pip install no-such-library"})
    assert "pip install no-such-library" in case.missing()


def test_the_answer_is_the_fastest_at_no_worse_error():
    ours = {"rtn": trial(1, 0.3), "mse": trial(2, 0.2), "hqq": trial(4, 0.19), "gptq": trial(9, 0.1)}
    assert answer_to(trial(5, 0.31), ours) == "rtn"
    assert answer_to(trial(5, 0.2), ours) == "mse"
    assert answer_to(trial(5, 0.15), ours) == "gptq"


def test_where_none_is_as_accurate_the_closest_stands():
    ours = {"rtn": trial(1, 0.3), "mse": trial(2, 0.2), "gptq": trial(9, 0.1)}
    assert answer_to(trial(5, 0.05), ours) == "gptq"


def test_quantizers_are_the_cases_with_tables_once_each():
    cases = quantizers()
    assert len(set(cases)) == len(cases)
    of_models = {(case.model, case.method, case.bits) for case in cases if case.model not in layers()}
    assert of_models == {
        (case.model, case.method, case.bits)
        for case in matrix()[0]
        if case.backend == "torch" and case.method_entry.has_tables and case.method != "float"
        if not case.method_entry.trains and not case.bits.startswith("int8_")
    }


def test_every_method_of_weights_is_timed_on_a_large_layer():
    wanted = {
        name
        for name, entry in methods().items()
        if entry.family == "weight_only" and not entry.native and not entry.trains and "int4" in entry.bits
    }
    timed = [case for case in quantizers() if case.model == "linear_4096"]
    assert {case.method for case in timed} == wanted
    assert {case.bits for case in timed} == {"int4_g128"}
    assert all(case.scheme.linear.group_size == 128 for case in timed)


class InstantChild:
    """A child that quantizes at once: peers in four seconds, our methods in one, all to the same outputs."""

    jobs: ClassVar[list] = []

    def __init__(self, job, progress):
        self.job = job
        self.jobs.append(job)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def quantize(self):
        return Cost(4.0 if self.job.library else 1.0, 5.0, 1000)

    def outputs(self, inputs):
        return np.random.default_rng(0).normal(size=(len(np.load(inputs)["arr_0"]), 10)).astype(np.float32)


class Benchmark:
    def pedantic(self, target):
        return target()


@pytest.fixture
def jobs(monkeypatch):
    """The jobs that were given to children."""
    monkeypatch.setattr("benchmarks.trials.Child", InstantChild)
    monkeypatch.setattr(InstantChild, "jobs", [])
    return InstantChild.jobs


@pytest.fixture
def workshop(tmp_path):
    return Workshop(Cache(tmp_path), Settings(evaluation_samples=20))


def test_a_comparison_is_a_valid_record_and_tries_ours_once(workshop, jobs):
    trials = Trials(workshop)
    case = replace(next(case for case in PEERS if case.method == "hqq"), model="digits")
    case = replace(case, library=replace(case.library, name="torch"))
    rivals = [rival.method for rival in case.rivals()]
    for _ in range(2):
        measurement = CostMeasurement(case, "peer", workshop, Benchmark())
        measurement.compare(trials)
        record = measurement.record()
        assert validate(record) == []
        assert record["case"] == {"model": "digits", "method": "hqq", "bits": "int4_g128", "backend": "torch"}
        assert record["peer"]["ratio"] == pytest.approx(4.0)
        assert all(
            own["error"] == pytest.approx(record["fidelity"]["error"]) for own in record["peer"]["ours"].values()
        )
        assert record["accuracy"]["n"] == 20
    assert Counter(job.method for job in jobs if job.library is None) == Counter(rivals)
    assert [job.library for job in jobs if job.library] == [case.library.module] * 2
    assert all(job.linear_only and job.bits == "int4_g128" for job in jobs)


def test_the_cost_of_a_quantizer_is_a_valid_record(workshop, jobs):
    for _ in range(2):
        measurement = CostMeasurement(Case("digits", "rtn", "int4", "torch"), "quantize", workshop, Benchmark())
        measurement.quantize(Trials(workshop))
    record = measurement.record()
    assert validate(record) == []
    assert record["cost"] == {
        "seconds": 1.0,
        "elapsed_seconds": 5.0,
        "peak_bytes": 1000,
        "float_bytes": 4 * record["model"]["parameters"],
        "cached": False,
    }
    assert [job.linear_only for job in jobs] == [False, False]  # the second is not answered from the cache


def test_a_library_may_go_by_another_name_with_pip(workshop, jobs):
    case = replace(next(case for case in PEERS if case.method == "lm_gptq"), model="digits")
    constants = {**case.library.constants, "DISTRIBUTION": "torch"}
    measurement = CostMeasurement(
        replace(case, library=replace(case.library, constants=constants)), "peer", workshop, Benchmark()
    )
    measurement.compare(Trials(workshop))
    assert measurement.record()["peer"]["library"] == f"torch {torch.__version__}"


def test_the_encoder_of_apples_framework_is_minilm():
    pytest.importorskip("mlx")
    from benchmarks.peers._encoder import MASKED, Encoder, mx

    torch.manual_seed(0)
    module = MiniLM(layers=2).eval()
    ids, mask = torch.randint(0, 30522, (3, 9)), torch.ones(3, 9, dtype=torch.int64)
    mask[1, 4:] = 0
    with torch.no_grad():
        expected = module(ids, mask).numpy()
        encoder = Encoder(module.state_dict())
    found = np.array(encoder(mx.array(torch.where(mask > 0, ids, MASKED).numpy(), mx.int32)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class BrokenChild:
    """A child whose quantized model answers NaN."""

    def __init__(self, job, progress):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def quantize(self):
        return Cost(1, 1, 1)

    def outputs(self, inputs):
        return np.full((20, 10), np.nan, np.float32)


def test_outputs_that_are_not_finite_cannot_be_compared(workshop, monkeypatch):
    monkeypatch.setattr("benchmarks.trials.Child", BrokenChild)
    with pytest.raises(ValueError, match="digits-rtn-int4-torch gives NaN or infinity: it cannot be compared"):
        Trials(workshop).ours(Case("digits", "rtn", "int4", "torch"))
