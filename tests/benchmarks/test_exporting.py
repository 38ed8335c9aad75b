"""``python -m benchmarks export`` on the smallest model of the zoo."""

import json
import os

import pytest

from benchmarks.__main__ import main
from benchmarks.exporting import Order, Result, order, table
from quant.exporting import formats


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def exported(capsys, cache, tmp_path):
    """``exported("digits-rtn-int4", "--format=pt2")``: the status of the command and what it said."""

    def run(*arguments):
        status = main(["export", *arguments, f"--output={tmp_path / 'out'}", f"--cache-dir={cache}"])
        return status, capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("digits-rtn-int4", Order("digits", "rtn", "int4", None)),
        ("digits-gptq-int4_g32-onnxruntime", Order("digits", "gptq", "int4_g32", "onnxruntime")),
        ("digits-static-int8-torch", Order("digits", "static", "int8", "torch")),
    ],
)
def test_an_order_is_a_case_with_or_without_its_backend(text, expected):
    assert order(text) == expected
    assert expected.name == text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("digits", "is no case: write model-method-bits"),
        ("digits-int4", "is no case"),
        ("digit-rtn-int4", "did you mean digits"),
        ("digits-gptk-int4", "did you mean gptq"),
        ("digits-rtn-int44", "unknown bits word"),
        ("digits-static-int4", "has no meaning for static methods"),
        ("digits-native-int4", "own quantizer and has no tables"),
    ],
)
def test_what_is_no_order_is_refused_in_a_sentence(text, sentence, exported):
    status, said = exported(text)
    assert status == 4
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_a_case_is_exported_with_its_metric_on_held_out_samples(exported, tmp_path):
    status, said = exported("digits-rtn-int4", "--format=pt2", "--samples=60")
    assert status == 0
    row = next(line for line in said.out.splitlines() if line.startswith("digits-rtn-int4"))
    assert " pt2 " in row
    assert " pass " in row
    found = json.loads((tmp_path / "out" / "digits-rtn-int4" / "pt2" / "validation.json").read_text())
    assert found["metric"]["metric"] == "accuracy"
    assert found["metric"]["n"] == found["parity"]["samples"] == 60
    assert found["codes"]["identical"] == found["codes"]["weights"] > 0


def test_what_stands_already_is_left_as_it_is_until_anything_it_comes_from_changes(exported, tmp_path, monkeypatch):
    asked = ("digits-rtn-int4", "--format=pt2", "--samples=5")
    artifact = tmp_path / "out" / "digits-rtn-int4" / "pt2" / "model.pt2"

    def written(*arguments):
        """Whether the command wrote the artefact, and what it printed."""
        artifact.exists() and os.utime(artifact, ns=(0, 0))
        status, said = exported(*(arguments or asked))
        assert status == 0
        assert ("found unchanged" in said.err) == (artifact.stat().st_mtime_ns == 0)
        return artifact.stat().st_mtime_ns != 0, said.out

    first, again = written(), written()
    assert (first[0], again[0]) == (True, False)
    assert again[1] == first[1]
    assert written("digits-rtn-int4", "--format=pt2", "--samples=6")[0]
    assert written()[0]
    artifact.write_bytes(b"damaged")
    assert written()[0]
    monkeypatch.setattr("quant.exporting.Format.installed", lambda format: ["torch 0.1"])
    assert written()[0]
    assert not written()[0]


def test_what_was_rejected_is_tried_again(exported, tmp_path):
    asked = ("digits-rtn-int4", "--format=pt2", "--samples=2", "--memory-limit=10MB")
    for _ in range(2):
        status, said = exported(*asked)
        assert status == 1
        assert "digits-rtn-int4 to pt2: rejected after " in said.err


def test_without_a_format_all_that_suit_are_written_and_the_others_told(exported, tmp_path):
    status, said = exported("digits-rtn-int4", "--samples=5")
    assert status == 0
    here = {name for name, format in formats().items() if not format.missing()} - {
        "coreml_stateful",
        "gguf",
        "mlx_lm",
    }
    assert {path.name for path in (tmp_path / "out" / "digits-rtn-int4").iterdir()} == here
    assert "digits-rtn-int4 to gguf: this format holds Llama-like decoders only" in said.out
    assert "digits-rtn-int4 to coreml_stateful: the format coreml_stateful holds decoders that go on with" in said.out


def test_a_format_asked_for_that_cannot_hold_the_case_is_bad_input(exported, tmp_path):
    status, said = exported("digits-rtn-int4", "--format=gguf", "--format=pt2", "--samples=5")
    assert status == 4
    assert said.err.splitlines()[-1].startswith("digits-rtn-int4 to gguf: this format holds Llama-like decoders only")
    assert (tmp_path / "out" / "digits-rtn-int4" / "pt2" / "model.pt2").is_file()


def test_where_nothing_was_written_there_is_no_table(exported):
    status, said = exported("digits-rtn-int4", "--format=gguf")
    assert (status, said.out) == (4, "")


def test_an_unknown_format_is_refused_before_anything_is_made(exported, tmp_path):
    status, said = exported("digits-rtn-int4", "--format=pt3")
    assert (status, said.err.count("\n")) == (4, 1)
    assert "did you mean pt2" in said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--memory-limit=lots", "--samples=0", "--samples=many"])
def test_options_that_mean_nothing_are_refused(option, exported):
    status, said = exported("digits-rtn-int4", "--format=pt2", option)
    assert (status, said.err.count("\n")) == (4, 1)


def test_what_breaks_the_memory_limit_is_rejected(exported, tmp_path):
    status, said = exported("digits-rtn-int4", "--format=pt2", "--samples=2", "--memory-limit=10MB")
    assert status == 1
    assert "more than the 10 MB allowed" in said.out
    assert (tmp_path / "out" / "digits-rtn-int4" / "pt2" / "model.pt2.rejected").is_file()


def test_a_table_shows_rejected_exports_without_figures():
    validation = {"verdict": "rejected", "bytes": 1_500_000, "checked_by": None, "reasons": ["it does not load"]}
    text = table([Result("a-b-c", "onnx", validation, "it does not load"), Result("a-b-c", "gguf", None, "no Llama")])
    assert "1.50 MB  rejected" in text
    assert text.endswith("a-b-c to onnx: it does not load\na-b-c to gguf: no Llama")
