import sys

import pytest

from benchmarks.candidates import THIS_MACHINE, backends_of, rungs
from benchmarks.matrix import matrix


def methods_of(family, model, backend="onnxruntime"):
    return {
        rung.first.method_entry.family: [case.method for case in rung.cases] for rung in rungs(model, family, [backend])
    }


def test_candidates_suit_the_kind_of_network():
    transformer = methods_of("encoder", "minilm")
    assert transformer["static"][0] == "smoothquant"
    assert transformer["dynamic"][0] == "dynamic"
    convolutional = methods_of("convolutional", "mobilenet_v2")
    assert convolutional["static"] == ["static"]
    assert "dynamic" not in convolutional
    assert "dynamic" in methods_of("recurrent", "reviews_lstm")


def test_every_candidate_exists_in_the_matrix_and_none_is_a_runtimes_own():
    cases = [
        case for rung in rungs("minilm", "encoder", ["torch", "onnxruntime", "mlx", "coreml"]) for case in rung.cases
    ]
    assert len(cases) == len(set(cases))
    assert set(cases) <= set(matrix()[0])
    assert not any(case.method_entry.native for case in cases)
    assert not any(case.backend == "coreml" and case.method_entry.family == "dynamic" for case in cases)


def test_a_rung_holds_one_scheme_and_its_slowest_method_comes_last():
    for rung in rungs("minilm", "encoder", ["torch"]):
        assert len({case.scheme for case in rung.cases}) == 1
        assert "adaround" not in [case.method for case in rung.cases[:2]]


def test_this_machine_is_what_runs_here():
    found = backends_of(THIS_MACHINE)
    assert "torch" in found
    assert ("coreml" in found) == (sys.platform == "darwin")


def test_a_backend_that_only_evaluates_here_is_taken_where_it_is_named():
    assert backends_of("coreml") == ["coreml"]


def test_no_such_backend_is_refused():
    with pytest.raises(ValueError, match="did you mean onnxruntime"):
        backends_of("onnxruntim")


@pytest.mark.skipif(sys.platform == "darwin", reason="it exists here")
def test_a_backend_of_another_platform_is_refused():
    with pytest.raises(ValueError, match=r"coreml_ane exists only on macOS\."):
        backends_of("coreml_ane")
