"""The process that checks an artefact, run here with a format of our own."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from quant.exporting import child


@pytest.fixture
def answer(tmp_path, monkeypatch):
    """``answer(function, **readers)``: what the process answers of an artefact that computes ``function``."""

    def run(function, **readers):
        writer = SimpleNamespace(
            load=lambda artifact: function,
            version=lambda: "own 1",
            codes=lambda artifact, layouts: {},
            readers=lambda artifact: readers,
        )
        monkeypatch.setattr(child, "format_named", lambda name: SimpleNamespace(load=lambda: writer))
        np.savez(tmp_path / "samples.npz", np.arange(6, dtype=np.float32).reshape(3, 2))
        request = {"format": "own", "artifact": "artifact", "seconds": 60, "layouts": {}}
        (tmp_path / "request.json").write_text(json.dumps(request))
        child.main([str(tmp_path)])
        return json.loads((tmp_path / "answer.json").read_text())

    return run


def raises(error):
    raise error


def doubled(x):
    return [2 * x]


def test_outputs_are_written_sample_by_sample(answer, tmp_path):
    found = answer(doubled)
    assert (found["shape"], found["checked_by"]) == ([3, 2], "own 1")
    assert found["peak_bytes"] > 10_000_000
    np.testing.assert_array_equal(np.fromfile(tmp_path / "outputs", np.float32), 2 * np.arange(6))


def test_what_keeps_another_reader_from_the_file_is_said_in_one_line(answer):
    found = answer(
        doubled,
        sound=lambda: doubled,
        absent=lambda: raises(ModuleNotFoundError("No module named 'absent'")),
        lacking=lambda: raises(RuntimeError("no operator Foo\nin node 3")),
        silent=lambda: raises(RuntimeError),
    )["readers"]
    assert found == {
        "sound": [3, 2],
        "absent": "not installed: No module named 'absent'",
        "lacking": "no operator Foo",
        "silent": "RuntimeError",
    }


def twice(x):
    return [np.tile(x, (2, 1))]


def ever_fewer(x):
    return [x[:, : 2 - int(x[0, 0] > 0)]]


@pytest.mark.parametrize("function", [twice, ever_fewer])
def test_outputs_of_another_number_or_size_than_the_samples_are_refused(answer, function):
    with pytest.raises(ValueError, match="one sample gives an output of shape"):
        answer(function)
