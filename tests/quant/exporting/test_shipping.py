"""Validation: what it finds, what it rejects, and what is left of a rejected artefact."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import quant
from quant.exporting import RejectedExport, format_named, formats
from quant.exporting.checking import Found, check
from quant.exporting.child import digest_of_codes
from quant.exporting.expected import Expected
from quant.exporting.shipping import ship
from quant.exporting.verdict import parity, verdict


@pytest.fixture
def expected(tables, images):
    return Expected(tables("rtn", "int4"), [images.numpy()])


@pytest.fixture
def good(expected):
    """What a flawless artefact answers."""
    codes = {name: digest_of_codes(weight.codes.numpy()) for name, weight in expected.quantized.weights.items()}
    return Found(expected.outputs, codes, "fake 1", "measured", 100_000_000)


@pytest.fixture
def tampered(monkeypatch):
    """Has the format pt2 write other tables than it is given: a function of them says which."""

    def tamper(change):
        writer = formats()["pt2"].load()
        write = writer.write
        monkeypatch.setattr(writer, "write", lambda quantized, built, path: write(change(quantized), built, path))

    return tamper


def with_weight(quantized, **changes):
    name = next(name for name in quantized.weights if name.startswith("hidden"))
    return replace(quantized, weights={**quantized.weights, name: replace(quantized.weights[name], **changes)})


def test_an_artefact_with_another_code_is_rejected_and_left_under_another_name(tables, images, tmp_path, tampered):
    def one_code_off(quantized):
        codes = next(w for n, w in quantized.weights.items() if n.startswith("hidden")).codes.clone()
        codes[0, 0] = (codes[0, 0] + 1) % 16
        return with_weight(quantized, codes=codes)

    tampered(one_code_off)
    with pytest.raises(RejectedExport, match=r"the codes of 'hidden\.weight' are not the table's") as caught:
        quant.export(tables("rtn", "int4"), "pt2", tmp_path, [images.numpy()])
    assert caught.value.path == tmp_path / "model.pt2.rejected"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt2.rejected", "sample.npz", "validation.json"]
    assert json.loads((tmp_path / "validation.json").read_text())["codes"]["different"] == ["hidden.weight"]


def test_an_artefact_with_other_scales_is_rejected_for_what_it_computes(tables, images, tmp_path, tampered):
    tampered(lambda quantized: with_weight(quantized, scale=torch.ones_like(quantized.weights["hidden.weight"].scale)))
    with pytest.raises(RejectedExport, match="its outputs differ from the simulation's by"):
        quant.export(tables("rtn", "int4"), "pt2", tmp_path, [images.numpy()])


def test_an_artefact_that_does_not_load_is_rejected_with_what_it_said_last(tables, images, tmp_path, monkeypatch):
    monkeypatch.setattr(formats()["pt2"].load(), "write", lambda quantized, built, path: path.write_bytes(b"nothing"))
    with pytest.raises(RejectedExport, match=r"does not run by itself: .+"):
        quant.export(tables("rtn", "int4"), "pt2", tmp_path, [images.numpy()])
    assert (tmp_path / "model.pt2.rejected").read_bytes() == b"nothing"


def test_an_export_takes_the_place_of_a_former_one_rejected_or_not(tables, images, tmp_path):
    (tmp_path / "model.pt2.rejected").write_text("a former one")
    (tmp_path / "notes.txt").write_text("the user's own")
    path = quant.export(tables("rtn", "int4"), "pt2", tmp_path, [images.numpy()])
    names = ["model.pt2", "notes.txt", "sample.npz", "validation.json"]
    assert sorted(found.name for found in tmp_path.iterdir()) == names
    assert path == tmp_path / "model.pt2"


def test_checksums_are_those_of_the_files(tables, tmp_path):
    path = quant.export(tables("rtn", "int4"), "pt2", tmp_path)
    (entry,) = json.loads((tmp_path / "validation.json").read_text())["files"].values()
    assert entry == {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_a_memory_limit_is_kept_or_the_artefact_is_rejected(tables, tmp_path):
    if formats()["onnxruntime"].missing():
        pytest.skip("pip install onnxruntime")
    path = quant.export(tables("rtn", "int4"), "onnxruntime", tmp_path, memory_limit=256_000_000)
    found = json.loads((path.parent / "validation.json").read_text())["memory"]
    assert 20_000_000 < found["peak_bytes"] < 256_000_000 == found["limit_bytes"]
    with pytest.raises(RejectedExport, match="more than the 10 MB allowed"):
        quant.export(tables("rtn", "int4"), "onnxruntime", tmp_path, memory_limit=10_000_000)
    assert (tmp_path / "model.onnx.rejected").is_file()


def test_a_memory_limit_needs_the_format_s_own_runtime(llama_graph, tmp_path):
    with pytest.raises(ValueError, match="its memory is unknown"):
        quant.export(quant.quantize(llama_graph, "rtn", "int4"), "gguf", tmp_path, memory_limit=10**9)


def test_flawless_answers_pass(expected, good):
    found = verdict(expected, good, 200_000_000)
    assert (found["verdict"], found["reasons"]) == ("pass", [])
    assert found["parity"] == {"samples": 12, "error": 0, "sqnr_db": None, "agreement": 1, "floor": None}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda outputs: np.where(outputs == outputs.max(), np.nan, outputs), "NaN or infinity"),
        (lambda outputs: outputs[:, :4], "its outputs have the shape (4,) a sample, the simulation's (10,)"),
        (lambda outputs: outputs * 1.02, "differ from the simulation's by 2 % of their norm"),
    ],
)
def test_answers_that_are_not_the_simulation_s_are_rejected(expected, good, change, reason):
    found = verdict(expected, replace(good, outputs=change(good.outputs).astype(np.float32)), None)
    assert found["verdict"] == "rejected"
    assert reason in "; ".join(found["reasons"])


def test_what_else_reads_a_format_must_compute_the_same_and_may_be_absent(expected, good):
    others = {"sound": good.outputs, "absent": "not installed: No module named 'absent'"}
    found = verdict(expected, replace(good, readers=others), None)
    assert found["verdict"] == "pass"
    assert found["readers"]["sound"]["agreement"] == 1
    assert found["readers"]["absent"] == {"reason": "not installed: No module named 'absent'"}
    wrong = verdict(expected, replace(good, readers={"wrong": good.outputs * np.float32(1.02)}), None)
    assert wrong["reasons"] == ["in wrong its outputs differ from the simulation's by 2 % of their norm"]
    broken = verdict(expected, replace(good, readers={"broken": good.outputs[:, :1]}), None)
    assert broken["verdict"] == "rejected"


def test_answers_that_agree_too_seldom_are_rejected(expected, good):
    # Ties: the best class changes while the outputs hardly do.
    outputs = good.outputs.copy()
    rows = np.arange(len(outputs))
    second = np.argsort(outputs, axis=1)[:, -2]
    expected.__dict__["outputs"] = outputs.copy()
    expected.outputs[rows, second] = outputs.max(1) - 1e-6
    outputs[rows, second] = outputs.max(1) + 1e-6
    found = verdict(expected, replace(good, outputs=outputs), None)
    assert found["reasons"] == ["it agrees with the simulation on 0.0 % of the best classes"]


def test_outputs_that_say_nothing_of_classes_do_not_agree_on_any(tables, images, good):
    expected = Expected(tables("rtn", "int4"), [images.numpy()], scores=None)
    found = verdict(expected, good, None)
    assert found["verdict"] == "pass"
    assert found["parity"]["agreement"] is None


def test_with_quantized_activations_answers_may_differ_by_what_a_rounding_does(tables, images):
    expected = Expected(tables("static", "int8"), [images.numpy()])
    found = parity(expected, expected.perturbed)
    assert found["floor"] == {"error": found["error"], "agreement": found["agreement"]}


def test_samples_that_the_model_does_not_take_are_refused(tables):
    quantized = tables("rtn", "int4")
    with pytest.raises(ValueError, match="takes 1 inputs"):
        Expected(quantized, [np.zeros((1, 3, 8, 8), np.float32)] * 2)
    with pytest.raises(ValueError, match="not empty"):
        Expected(quantized, [np.zeros((0, 3, 8, 8), np.float32)])


def test_a_check_that_takes_too_long_stops_at_what_it_has(expected, tmp_path, monkeypatch):
    monkeypatch.setattr("quant.exporting.checking.SECONDS", 0.0)
    path = quant.export(expected.quantized, "pt2", tmp_path)
    assert len(check(expected, format_named("pt2"), path).outputs) == 1


def test_unknown_formats_are_refused_with_the_nearest(tables, tmp_path):
    with pytest.raises(ValueError, match="did you mean onnx"):
        quant.export(tables("rtn", "int4"), "onnxrt", tmp_path)


def test_a_tables_own_codes_are_read_from_the_backends_folder_given(expected, tmp_path):
    if formats()["onnxruntime"].missing():
        pytest.skip("pip install onnxruntime")
    from quant.compiler import build

    build(expected.quantized, "onnxruntime", tmp_path / "built")
    path = ship(expected, format_named("onnxruntime"), tmp_path / "out", built=tmp_path / "built")
    assert path.read_bytes() == (tmp_path / "built" / "model.onnx").read_bytes()
