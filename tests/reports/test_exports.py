"""``python -m reports exports``."""

import json

import pytest

from reports.__main__ import main
from reports.exports import exports_table, read_exports
from reports.runs import RunError

VALIDATION = {
    "format": "onnx",
    "verdict": "pass",
    "bytes": 13_900_000,
    "checked_by": "onnxruntime 1.32.0",
    "parity": {"samples": 100, "error": 0.001, "sqnr_db": 60.0, "agreement": 1.0, "floor": None},
    "readers": {"onnx_reference": {"error": 0.0}, "openvino": {"reason": "not installed"}},
    "metric": {"metric": "accuracy", "value": 0.95, "ci95": [-0.01, 0.02]},
    "codes": {"weights": 37, "identical": 37, "different": []},
    "memory": {"peak_bytes": 210_000_000},
}


@pytest.fixture
def exported(tmp_path):
    """``exported("minilm-rtn-int4", "onnx", verdict="rejected")``: writes a validation, and returns its path."""

    def write(case, format, **changes):
        path = tmp_path / case / format / "validation.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**VALIDATION, **changes}))
        return path

    return write


def test_every_export_is_a_row_with_its_size_and_what_was_found(exported, tmp_path):
    exported("minilm-rtn-int4", "onnx")
    exported("minilm-rtn-int4", "coreml", memory={"peak_bytes": None}, metric=None, readers={})
    exported(
        "digits-rtn-int4", "pt2", verdict="rejected", parity=None, codes=None, metric=None, readers={}, checked_by=None
    )
    header, _, *rows = exports_table(read_exports(tmp_path)).splitlines()
    assert header.split()[:4] == ["case", "format", "size", "verdict"]
    assert [row.split()[:2] for row in rows] == [
        ["digits-rtn-int4", "pt2"],
        ["minilm-rtn-int4", "coreml"],
        ["minilm-rtn-int4", "onnx"],
    ]
    assert rows[0].split()[2:] == ["13.90", "MB", "rejected", "-", "-", "-", "-", "-", "210", "MB", "-"]
    for cell in ("60 dB", "100.0 %", "accuracy 0.95 (-0.01 .. +0.02)", "37/37", "onnxruntime 1.32.0, onnx_reference"):
        assert cell in rows[2]
    assert "openvino" not in rows[2]


def test_the_table_goes_into_a_document(exported, tmp_path):
    exported("minilm-rtn-int4", "onnx")
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- begin exports -->\nstale\n<!-- end exports -->\nafter\n")
    assert main(["exports", str(tmp_path), "--into", str(document)]) == 0
    lines = document.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert lines[4].startswith("| minilm-rtn-int4 | onnx ")
    assert "stale" not in lines


def test_a_folder_without_exports_is_refused_in_a_sentence(tmp_path, capsys):
    assert main(["exports", str(tmp_path)]) == 4
    assert capsys.readouterr().err.startswith(f"{tmp_path} holds no CASE/FORMAT/validation.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"bytes": "many", "verdict": "pass"}', "[" * 100_000, '{"a": '])
def test_a_damaged_validation_is_refused_by_name(exported, tmp_path, text):
    path = exported("minilm-rtn-int4", "onnx")
    path.write_text(text)
    with pytest.raises(RunError, match=r"validation\.json is not what an export is validated with"):
        read_exports(tmp_path)
