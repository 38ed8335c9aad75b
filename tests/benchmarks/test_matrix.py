import json
import os
import subprocess
import sys
from collections import Counter
from itertools import groupby, product
from pathlib import Path

import pytest

from benchmarks.matrix import Case, matrix, model, models
from quant.backends import targets
from quant.methods import methods
from quant.scheme import CODEBOOK_FORMATS, DYNAMIC_WORDS, FLOAT_WORDS, INTEGER_WORDS, PALETTE_WORDS, W4A8

ROOT = Path(__file__).parents[2]
RUNTIMES = ("torch", "onnxruntime", "onnx", "onnx_ir", "mlx", "coremltools", "torchao", "sklearn", "scipy", "numpy")
WORDS = (*INTEGER_WORDS, *FLOAT_WORDS, *CODEBOOK_FORMATS, *PALETTE_WORDS, W4A8)
CASES, UNSUPPORTED = matrix()
ASKED_FOR = {name for name, entry in models().items() if entry.constants.get("OPT_IN")}
OFFERED = [case for case in CASES if case.model not in ASKED_FOR and not case.target.opt_in]
CONVOLUTIONAL = {name for name, entry in models().items() if entry.constants["FAMILY"] == "convolutional"}
PEERS = ("hqq", "nncf", "openvino", "neural_compressor", "auto_round", "transformers")

LISTING = """
import json, sys
from benchmarks.matrix import matrix
cases, unsupported = matrix()
lacking = [case.missing() for case in cases]
print(json.dumps({"cases": [case.id for case in cases], "modules": sorted(sys.modules)}))
"""

COLLECTING = """
import json, sys
import pytest

class Collector:
    def pytest_collection_finish(self, session):
        print("COLLECTED", json.dumps({
            "names": {item.callspec.id: [node.name for node in item.listchain()[2:]] for item in session.items},
            "marks": {item.callspec.id: [mark.name for mark in item.iter_markers()] for item in session.items},
            "modules": sorted(sys.modules),
        }))

arguments = ["benchmarks", "-m", "full", "--collect-only", "-q", "-p", "no:cacheprovider"]
sys.exit(pytest.main(arguments, plugins=[Collector()]))
"""


def run(script):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-c", script]
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def collected():
    """What pytest itself collects of `benchmarks`: the names and marks of each case, and what was imported for it."""
    line = next(line for line in run(COLLECTING).splitlines() if line.startswith("COLLECTED "))
    return json.loads(line.removeprefix("COLLECTED "))


@pytest.fixture
def on_platform(monkeypatch):
    """The matrix as another platform has it."""

    def compute(platform):
        monkeypatch.setattr(sys, "platform", platform)
        matrix.cache_clear()
        return matrix()

    yield compute
    matrix.cache_clear()


def test_an_id_is_model_method_bits_backend():
    assert Case("minilm", "rtn", "int4", "onnxruntime").id == "minilm-rtn-int4-onnxruntime"
    assert str(Case("minilm", "rtn", "int4", "onnxruntime")) == "minilm-rtn-int4-onnxruntime"


@pytest.mark.parametrize(
    "name",
    [
        "digits-rtn-int4-torch",
        "digits-static-int8-onnxruntime",
        "minilm-dynamic-int8-torch",
        "minilm-native-int4-mlx",
        "mobilenet_v2-float-fp32-coreml",
        "minilm-rtn-nf4-mlx",
        "digits-rtn-mxfp4-torch",
        "mobilenet_v2-rtn-e4m3-onnxruntime",
        "minilm-palette-lut4-coreml",
        "digits-palette_grouped-lut6-onnxruntime",
        "minilm-palette_fisher-lut3-mlx",
        "minilm-dynamic-w4a8-onnxruntime",
        "minilm-dynamic-w4a8-torch",
        "digits-qat-int2-mlx",
        "digits-qat_static-int8-onnxruntime",
        "reviews_lstm-qat-int4-coreml",
        "reviews_gpt-distill-int3-torch",
    ],
)
def test_the_promised_cases_exist(name):
    assert name in {case.id for case in CASES}


def test_hyphens_stand_only_between_axes():
    for case in CASES:
        axes = case.id.split("-")
        assert axes == [case.model, case.method, case.bits, case.backend]


def test_every_combination_is_a_case_or_unsupported_and_none_is_both():
    combinations = {
        Case(model_name, entry.name, bits, backend)
        for model_name, entry, backend in product(models(), methods().values(), targets())
        for bits in entry.bits
    }
    listed = Counter([*CASES, *(entry.case for entry in UNSUPPORTED)])
    assert set(listed) == combinations
    assert set(listed.values()) == {1}


def test_every_reason_is_one_sentence():
    for entry in UNSUPPORTED:
        sentence = entry.reason.rstrip(".")
        assert len(sentence.split()) >= 4, entry
        assert "\n" not in sentence
        assert ". " not in sentence, entry
        assert sentence == sentence.strip()


def test_cases_of_a_model_and_backend_stand_together_with_float_first():
    groups = [(place, next(group)) for place, group in groupby(CASES, lambda case: (case.model, case.backend))]
    assert len({place for place, _ in groups}) == len(groups)
    assert {(first.method, first.bits) for _, first in groups} == {("float", "fp32")}


def test_every_case_has_its_float_baseline_among_the_cases():
    assert {case.baseline for case in CASES} <= set(CASES)


def test_a_scheme_resolves_for_every_case():
    for case in CASES:
        scheme = case.scheme
        assert scheme.name == case.bits
        assert scheme.family == (case.method_entry.family if case.bits not in FLOAT_WORDS else "float")
        assert (scheme.activations is None) == (scheme.family in ("float", "weight_only"))
        widths = {**INTEGER_WORDS, **PALETTE_WORDS}
        if case.bits in widths:
            assert scheme.linear.bits == scheme.convolution.bits == widths[case.bits]


def test_dynamic_methods_are_refused_for_convolutional_nets():
    dynamic = {name for name, entry in methods().items() if entry.family == "dynamic"}
    assert {"dynamic", "native_dynamic"} <= dynamic
    assert not [case for case in CASES if case.method in dynamic and case.model in CONVOLUTIONAL]
    reasons = {
        entry.reason
        for entry in UNSUPPORTED
        if entry.case.method == "dynamic" and entry.case.model == "digits" and entry.case.backend == "torch"
    }
    assert len(reasons) == 1
    assert "convolution" in reasons.pop()


def test_attention_is_quantized_where_a_network_has_it_and_the_runtime_a_kernel():
    backends = {(case.model, case.backend) for case in CASES if case.method == "dynamic_attention"}
    assert {("minilm", "torch"), ("minilm", "onnxruntime"), ("reviews_gpt", "mlx")} <= backends
    reasons = {entry.case.id: entry.reason for entry in UNSUPPORTED}
    assert "a recurrent network has no attention" in reasons["reviews_lstm-dynamic_attention-int8-torch"]
    assert "weight alone" in reasons["minilm-dynamic_attention-int8-openvino"]


def test_a_backend_that_says_why_other_words_are_not_there_keeps_its_own():
    reasons = {entry.case.id: entry.reason for entry in UNSUPPORTED}
    assert "in groups of one size" in reasons["minilm-dynamic-int8_token_sym-openvino"]
    assert Case("minilm", "dynamic", "int8", "openvino") in CASES


def test_an_lstm_kernel_that_quantizes_in_one_way_refuses_the_others():
    words = {case.bits for case in CASES if (case.model, case.backend) == ("reviews_lstm", "onnxruntime")}
    assert words & set(DYNAMIC_WORDS) == {"int8_tensor_asym"}
    reasons = {entry.case.id: entry.reason for entry in UNSUPPORTED}
    assert "LSTM kernel" in reasons["reviews_lstm-dynamic-int8_token_sym-onnxruntime"]
    words = {case.bits for case in CASES if (case.model, case.backend) == ("reviews_lstm", "torch")}
    assert set(DYNAMIC_WORDS) <= words


def test_native_methods_exist_only_where_the_runtime_has_such_a_quantizer():
    for case in CASES:
        if case.method_entry.native:
            assert case.target.constant("NATIVE")[case.method][case.bits]
    offered = {(case.backend, case.method, case.bits) for case in CASES if case.model == "minilm"}
    for name, found in targets().items():
        for native, words in found.constant("NATIVE", {}).items():
            if found.elsewhere() is None:
                assert {(name, native, word) for word in words} <= offered


def test_core_ml_says_why_it_runs_no_scaled_codebook_and_no_run_time_quantization():
    reasons = {entry.case.id: entry.reason for entry in UNSUPPORTED}
    for word in CODEBOOK_FORMATS:
        assert "scaled look-up table" in reasons[f"digits-rtn-{word}-coreml"]
    assert "run-time" in reasons["minilm-dynamic-w4a8-coreml"]


def test_a_platform_bound_target_is_refused_elsewhere(on_platform):
    cases, unsupported = on_platform("linux")
    bound = {name for name, found in targets().items() if found.platform == "darwin"}
    assert {"torch_mps", "coreml_cpu", "coreml_gpu", "coreml_ane"} <= bound
    assert not bound & {case.backend for case in cases}
    reasons = {entry.reason for entry in unsupported if entry.case.backend == "coreml_ane"}
    assert reasons == {"coreml_ane exists only on macOS"}


def test_a_platform_bound_target_exists_on_its_platform(on_platform):
    cases, _ = on_platform("darwin")
    names = {case.id for case in cases}
    assert {"digits-rtn-int4-torch_mps", "digits-rtn-int4-coreml_cpu", "digits-static-int8-coreml_gpu"} <= names


def test_the_neural_engine_computes_in_half_precision():
    assert targets()["coreml_ane"].precision == "float16"


def test_core_cases_are_few_and_cover_models_and_backends():
    core = [case for case in CASES if case.core]
    assert 0 < len(core) < len(CASES)
    assert {case.bits for case in core} == {"fp32", "int8", "int4"}
    assert {case.backend for case in core} >= {"torch", "onnxruntime", "mlx", "coreml"}
    assert {case.model for case in core} == {name for name, entry in models().items() if entry.constants["CORE"]}


def test_missing_packages_are_named_with_their_command(monkeypatch):
    case = Case("digits", "native", "int4", "torch")
    installed = {"torch": "pip install torch"}
    absent = {"no_such_package": "pip install no-such-package"}
    monkeypatch.setitem(case.target.entry.constants, "REQUIRES", installed)
    monkeypatch.setitem(case.target.entry.constants, "NATIVE_REQUIRES", absent)
    monkeypatch.setitem(models()["digits"].constants, "PACKAGES", {"sklearn": "pip install scikit-learn"})
    assert case.missing() == "pip install no-such-package"
    assert Case("digits", "rtn", "int4", "torch").missing() is None
    monkeypatch.setitem(models()["digits"].constants, "PACKAGES", {"no_data": "pip install no-data"})
    assert set(case.missing().split(" && ")) == {"pip install no-data", "pip install no-such-package"}


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (Case("digits", "rtm", "int4", "torch"), r"unknown method 'rtm': did you mean rtn"),
        (Case("digits", "rtn", "int44", "torch"), r"unknown bits word 'int44': did you mean int4"),
        (Case("digits", "rtn", "int4", "torhc"), r"unknown backend 'torhc': did you mean torch"),
    ],
)
def test_unknown_names_give_the_nearest(broken, sentence):
    with pytest.raises(ValueError, match=sentence):
        _ = broken.scheme


def test_an_unknown_model_gives_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model 'mini_lm': did you mean minilm\?"):
        model("mini_lm")


def test_listing_imports_no_runtime():
    listing = json.loads(run(LISTING))
    assert listing["cases"] == [case.id for case in CASES]
    assert not {module.partition(".")[0] for module in listing["modules"]} & set(RUNTIMES)


def test_collecting_imports_no_runtime(collected):
    assert set(collected["names"]) == {case.id for case in OFFERED}
    assert not {module.partition(".")[0] for module in collected["modules"]} & {*RUNTIMES, *PEERS}


@pytest.mark.parametrize("word", [*WORDS, *targets()])
def test_a_word_selects_exactly_the_cases_of_its_axis(collected, word):
    """As ``-k`` matches: any part of the name of a case, of its file and folders, or of one of its marks."""
    matched = {
        case
        for case, names in collected["names"].items()
        if any(word in name.lower() for name in (*names, *collected["marks"][case]))
    }
    assert matched == {case.id for case in OFFERED if word in case.bits or word in case.backend}


def test_no_file_or_folder_is_named_after_bits_or_backend():
    words = [*WORDS, *targets()]
    names = [path.name for path in (ROOT / "benchmarks").rglob("*") if "__pycache__" not in path.parts]
    assert names
    assert not [(name, word) for name, word in product([*names, "benchmarks"], words) if word in name]
