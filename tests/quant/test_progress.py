import pytest

from quant.progress import reporting, steps


def test_every_step_is_announced_with_its_number():
    lines = []
    with reporting("gptq", lines.append):
        assert list(steps(["a", "b", "c"], "layer")) == ["a", "b", "c"]
    assert lines[0] == "gptq: layer 1 of 3"
    assert lines[2].startswith("gptq: layer 3 of 3, 0 s left")


def test_nobody_listening_is_fine_and_an_error_ends_the_report():
    assert list(steps([], "layer")) == []
    lines = []
    with pytest.raises(ZeroDivisionError), reporting("rtn", lines.append):
        1 / 0  # noqa: B018
    assert list(steps([1], "layer")) == [1]
    assert lines == []
