"""The command `recommend`: what it prints, as text, Markdown and JSON, and its exit status."""

import json

import numpy
import pytest

from reports.__main__ import main

SURE = {"accuracy.ci95": [-0.005, 0.005], "accuracy.p_value": 1.0}
OPEN = {"accuracy.ci95": [-0.020, 0.005], "accuracy.p_value": 0.4}


@pytest.fixture
def path(save_run, with_scores):
    """Two backends: one where a measured case is faster, one where all is simulated."""
    right = numpy.ones(400, bool)
    some_wrong = numpy.arange(400) >= 2
    sizes = {"size.ratio": None, "size.reason": "not compared"}
    return str(
        save_run(
            "run.json",
            with_scores(right, "minilm-static-int8-torch", ratio=2.0, **SURE),
            with_scores(right, "minilm-rtn-int8-torch", ratio=0.8, **SURE, **sizes, **{"size.bytes": 29_000_000}),
            with_scores(some_wrong, "minilm-rtn-int4-torch", ratio=1.5, **OPEN),
            with_scores(right, "minilm-rtn-int4-mlx", ratio=3.0, evidence="simulated", **SURE),
            with_scores(some_wrong, "minilm-rtn-int3-mlx", ratio=3.0, evidence="simulated", **OPEN),
            with_scores(right, "minilm-float-fp32-torch", ratio=1.0),
        )
    )


def shown(capsys, *arguments):
    status = main(["recommend", *arguments])
    return status, capsys.readouterr()


def test_each_backend_has_its_choice_and_its_alternatives(path, capsys):
    status, captured = shown(capsys, path, "--max-drop", "1pp")
    assert status == 0
    lines = captured.out.splitlines()
    assert lines[0] == "minilm (transformer), an unnamed processor"
    assert max(map(len, lines)) <= 100
    text = " ".join(line.strip() for line in lines)
    assert "On any backend: ship minilm-static-int8-torch" in text
    assert "mlx: no case that keeps accuracy within a point of float has a measured speed; for size alone" in text
    assert "torch: ship minilm-static-int8-torch" in text
    assert lines.index("") < len(lines)
    (loud,) = [line.split() for line in lines if line.startswith("rtn-int8")]
    assert loud[1] == "qualifies"
    assert "+100" in loud
    (open_one,) = [line for line in lines if line.startswith("rtn-int4")]
    assert "inconclusive (n " in open_one
    (quiet,) = [line.split() for line in lines if line.startswith("rtn-int3")]
    assert "simulated" in quiet
    assert quiet[-1] == "–"
    assert "float-fp32" not in captured.out


def test_a_limit_on_latency_is_met_by_measured_times_alone_and_the_text_says_so(path, capsys):
    status, captured = shown(capsys, path, "--max-latency", "1s")
    assert status == 0
    text = " ".join(captured.out.split())
    assert "torch: ship minilm-static-int8-torch" in text
    assert "mlx: no case is shown to keep accuracy within a point of float in at most 1000 ms" in text
    assert "no measured time: its time is simulated, which meets no limit" in text


def test_where_nothing_qualifies_the_status_is_1(path, capsys):
    status, captured = shown(capsys, path, "--max-size", "1MB", "--backend", "torch")
    assert status == 1
    text = " ".join(captured.out.split())
    assert "torch: no case is shown to keep accuracy within a point of float in at most 1.00 MB" in text
    assert "2 too large, 1 inconclusive" in text
    assert "instead" not in captured.out
    status, _ = shown(capsys, path, "--max-size", "1MB", "--format", "json")
    assert status == 1


def test_one_model_and_backend(path, capsys):
    status, captured = shown(capsys, path, "--model", "minilm", "--backend", "mlx")
    assert status == 0
    assert "torch" not in captured.out
    assert "On any backend" not in captured.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--max-drop", "much"], "'much' is not a drop such as 1pp"),
        (["--max-size", "20"], "'20' is not a size such as 20MB"),
        (["--max-latency", "soon"], "'soon' is not a time such as 10ms"),
        (["--model", "digits"], "holds no quantized case that was asked for; it holds minilm on mlx, minilm on torch."),
        (["--backend", "tensorrt"], "holds no quantized case that was asked for"),
    ],
)
def test_input_that_cannot_be_used_is_a_sentence_and_status_4(path, capsys, arguments, sentence):
    status, captured = shown(capsys, path, *arguments)
    assert (status, captured.out) == (4, "")
    assert sentence in captured.err
    assert captured.err.count("\n") == 1


def test_a_run_of_float_alone(save_run, make_record, capsys):
    path = str(save_run("run.json", make_record("minilm-float-fp32-torch")))
    status, captured = shown(capsys, path)
    assert (status, captured.out) == (4, "")
    assert "it holds none at all" in captured.err


def test_markdown(path, capsys):
    _, captured = shown(capsys, path, "--format", "markdown")
    lines = captured.out.splitlines()
    assert lines[0] == "### minilm (transformer), an unnamed processor"
    assert any(line.startswith("**torch**: ship minilm-static-int8-torch, ") for line in lines)
    assert any(line.startswith("| rtn-int8") for line in lines)
    assert lines[-1].startswith("- accuracy, size, speed: ")


def test_json_for_scripts(path, capsys):
    _, captured = shown(capsys, path, "--max-drop", "1pp", "--max-size", "20MB", "--format", "json")
    mlx, torch = json.loads(captured.out)
    assert (mlx["backend"], mlx["verdict"]) == ("mlx", "for size alone")
    assert (torch["model"], torch["family"], torch["verdict"]) == ("minilm", "transformer", "faster than float")
    assert (torch["max_drop"], torch["max_size"], torch["max_latency"]) == (["1pp"], 2e7, None)
    assert torch["ship"]["case"] == "minilm-static-int8-torch"
    assert torch["ship"]["drop"]["verdict"] == "pass"
    assert torch["ship"]["drop"]["unit"] == "points"
    by_case = {one["case"]: one for one in torch["alternatives"]}
    large, open_one = by_case["minilm-rtn-int8-torch"], by_case["minilm-rtn-int4-torch"]
    assert large["obstacles"] == [{"word": "too large", "reason": "29.0 MB"}]
    assert large["instead"]["size"] == {"loss": 100.0, "ci95": None, "unit": "percent"}
    assert open_one["drop"]["needed"] > open_one["drop"]["samples"] == 400
    low, high = open_one["instead"]["accuracy"]["ci95"]
    assert open_one["instead"]["accuracy"]["loss"] == pytest.approx(0.5)
    assert low < 0.5 < high
    assert mlx["ship"]["seconds"] is None


def test_several_runs_are_answered_apart(path, save_run, make_record, capsys):
    other = str(save_run("other.json", make_record("digits-rtn-int4-torch")))
    status, captured = shown(capsys, other, path)
    assert status == 0
    assert captured.out.index(other) < captured.out.index("digits") < captured.out.index(path)


def test_help_says_what_the_status_means(capsys):
    with pytest.raises(SystemExit):
        main(["recommend", "--help"])
    assert "1 where none does, 4 for input" in " ".join(capsys.readouterr().out.split())
