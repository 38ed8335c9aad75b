"""``python -m quant export``."""

import json

import numpy as np
import pytest

import quant
from quant.__main__ import main
from quant.commands.export import line, megabytes


@pytest.fixture
def saved(tables, tmp_path):
    quant.save(tables("rtn", "int4"), tmp_path / "saved", with_graph=True)
    return tmp_path / "saved"


def run(capsys, saved, *arguments):
    status = main(["export", str(saved), f"--output={saved.parent / 'out'}", *arguments])
    return status, capsys.readouterr()


def test_a_saved_model_is_exported_and_checked_on_given_inputs(saved, images, capsys):
    np.savez(saved.parent / "inputs.npz", images.numpy())
    status, said = run(capsys, saved, "--format=pt2", f"--inputs={saved.parent / 'inputs.npz'}")
    assert status == 0
    assert "pass" in said.out
    assert "on 12 samples" in said.out
    assert "codes of 4 of 4 weights read back identical" in said.out
    assert json.loads((saved.parent / "out" / "pt2" / "validation.json").read_text())["verdict"] == "pass"


def test_a_rejected_export_is_status_one(saved, capsys):
    status, said = run(capsys, saved, "--format=pt2", "--memory-limit=5MB")
    assert status == 1
    assert "model.pt2.rejected failed its validation: it takes" in said.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--format=pt3"], "did you mean pt2"),
        (["--format=gguf"], "Llama-like decoders only"),
        (["--format=pt2", "--memory-limit=much"], "is not a size such as 256MB"),
        (["--format=pt2", "--inputs=missing.npz"], "no .npz file"),
        (["--format=pt2", "--inputs=pyproject.toml"], "no .npz file"),
    ],
)
def test_input_that_cannot_be_used_is_one_sentence(saved, capsys, arguments, sentence):
    status, said = run(capsys, saved, *arguments)
    assert (status, said.err.count("\n")) == (4, 1)
    assert sentence in said.err


def test_a_file_where_the_folder_should_be_is_named(saved, capsys):
    (saved.parent / "out").write_text("mine")
    status, said = run(capsys, saved, "--format=pt2")
    assert (status, said.err.count("\n")) == (4, 1)
    assert str(saved.parent / "out") in said.err
    assert "Errno" not in said.err
    assert (saved.parent / "out").read_text() == "mine"


def test_a_model_saved_without_its_graph_is_refused_with_the_remedy(tables, tmp_path, capsys):
    quant.save(tables("rtn", "int4"), tmp_path / "saved")
    status, said = run(capsys, tmp_path / "saved", "--format=pt2")
    assert status == 4
    assert "with_graph=True" in said.err


def test_a_damaged_graph_is_refused(saved, capsys):
    (saved / "graph.json").write_text("[1")
    status, said = run(capsys, saved, "--format=pt2")
    assert status == 4
    assert "no readable graph" in said.err


def test_sizes_are_of_megabytes():
    assert megabytes("256MB") == megabytes(" 256 mb") == 256_000_000
    for text in ("", "0MB", "-1MB", "1.5", "1GB"):
        with pytest.raises(ValueError, match="not a size"):
            megabytes(text)


def test_the_line_of_an_export_without_findings_is_short():
    assert line("x", {"verdict": "rejected", "bytes": 2_000_000}) == "x: rejected, 2.0 MB"
