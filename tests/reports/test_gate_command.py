import pytest

from reports.__main__ import main


@pytest.fixture
def runs(save_run, make_record):
    larger = make_record(**{"size.bytes": 16_000_000, "size.ratio": 16 / 90.8})
    return str(save_run("base.json", make_record())), str(save_run("head.json", larger))


def test_a_run_within_its_limits_passes(runs, capsys):
    base, head = runs
    assert main(["gate", base, base, "--fail", "size:1%"]) == 0
    assert main(["gate", head, base, "--fail", "size:1%"]) == 0
    assert "1" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["text", "markdown"])
def test_a_loss_beyond_a_limit_is_exit_status_one(runs, format, capsys):
    assert main(["gate", *runs, "--fail", "size:1%", "--format", format]) == 1
    shown = capsys.readouterr().out
    assert "minilm-gptq-int4-onnxruntime" in shown
    assert "egressed" in shown


def test_a_limit_that_judges_nothing_fails(runs, capsys):
    assert main(["gate", *runs, "--fail", "cost:1%"]) == 1
    assert "judged nothing" in capsys.readouterr().out


def test_bad_input_is_one_sentence_and_exit_status_four(runs, capsys, tmp_path):
    assert main(["gate", *runs, "--fail", "size"]) == 4
    assert "is not METRIC:LIMIT" in capsys.readouterr().err
    broken = tmp_path / "broken.json"
    broken.write_text('{"benchmarks": [')
    assert main(["gate", str(broken), runs[1], "--fail", "size:1%"]) == 4
    assert capsys.readouterr().err.count("\n") == 1
    assert broken.read_text() == '{"benchmarks": ['
