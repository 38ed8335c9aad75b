import math
from pathlib import Path

import numpy
import pytest

from reports.__main__ import main
from reports.insight import insight_table, insights
from reports.record import pack_outcomes
from reports.runs import Run

N = 300
WEIGHTS = {"name": "int4", "family": "weight_only"}
STATIC = {"name": "int8", "family": "static"}


def run(*records, saved=None):
    return Run(Path("run.json"), list(records), saved=saved)


@pytest.fixture
def contender(with_scores):
    """``contender(case, error, wrong=0)``: a record whose outputs have about this error, with some answers wrong."""

    def make(case, error, wrong=0, seed=0, scheme=WEIGHTS, **changes):
        noise = numpy.random.default_rng(seed).uniform(0.8, 1.2, N)
        return with_scores(numpy.arange(N) >= wrong, case, error=error**2 * noise, scheme=scheme, **changes)

    return make


def only(*records):
    (insight,) = insights([run(*records)])
    return insight


def test_where_accuracy_ties_the_error_of_the_outputs_decides(contender):
    records = [contender(f"minilm-{name}-int4-torch", e) for name, e in (("rtn", 0.2), ("mse", 0.18), ("gptq", 0.1))]
    (win,) = only(*records).wins
    assert (win.winners, win.by_error, win.next) == (("gptq",), True, "mse")
    assert (win.own, win.tied, win.competed) == ("accuracy", 3, 3)
    # All errors share their noise, so the ratios are exact.
    assert win.over_plain.loss == pytest.approx(-50)
    assert win.over_next.loss == pytest.approx(100 * (0.1 / 0.18 - 1))


def test_the_interval_of_a_lead_is_that_of_independent_errors(contender):
    ours, theirs = contender("m-gptq-int4-torch", 0.1, seed=1), contender("m-rtn-int4-torch", 0.2, seed=2)
    (win,) = only(ours, theirs).wins
    low, high = win.over_plain.interval
    # To first order, of the difference in percent of theirs: ours varies by half as much, and a root halves both.
    spread = 100 * 0.5 * 1.96 * math.sqrt((0.5**2 + 1) * (0.4**2 / 12) / N)
    assert (high - low) / 2 == pytest.approx(spread, rel=0.15)


def test_the_models_own_metric_comes_first(contender):
    accurate = contender("minilm-awq-int4-torch", 0.3)
    close = contender("minilm-gptq-int4-torch", 0.1, wrong=30)
    plain = contender("minilm-rtn-int4-torch", 0.2, wrong=45)
    (win,) = only(close, plain, accurate).wins
    assert (win.winners, win.by_error, win.next) == (("awq",), False, "gptq")
    assert win.over_plain.loss == pytest.approx(-15)
    assert win.over_next.limit.unit == "points"


def test_error_decides_among_those_alone_that_accuracy_cannot_tell_apart(contender):
    records = [
        contender("minilm-awq-int4-torch", 0.3),
        contender("minilm-mse-int4-torch", 0.2),
        contender("minilm-gptq-int4-torch", 0.1, wrong=40),
    ]
    (win,) = only(*records).wins
    assert (win.winners, win.by_error, win.tied, win.competed) == (("mse",), True, 2, 3)
    assert win.over_plain is None


def test_a_tie_is_a_tie(contender):
    records = [contender(f"minilm-{name}-int4-torch", 0.2, seed=7 + i) for i, name in enumerate(("rtn", "mse", "hqq"))]
    (win,) = only(*records).wins
    assert set(win.winners) == {"rtn", "mse", "hqq"}
    assert (win.over_plain, win.over_next, win.next) == (None, None, None)


def test_methods_that_are_alike_seldom_win(contender):
    """The correction keeps false winners at the level, whichever happens to lead."""
    alone = 0
    for seed in range(60):
        records = [contender(f"m-x{i}-int4-torch", 0.2, seed=1000 + 10 * seed + i) for i in range(4)]
        alone += len(only(*records).wins[0].winners) == 1
    assert alone <= 4


def test_perplexity_falls_and_is_told_in_percent(contender):
    def of(name, value):
        record = contender(f"gpt-{name}-int4-torch", 0.1)
        record["accuracy"] |= {"metric": "perplexity", "better": "lower", "baseline": 20.0, "value": value}
        record["accuracy"] |= {"delta": value - 20.0}
        scale = numpy.random.default_rng(0).uniform(0.9, 1.1, N)
        record["scores"] |= {"packed": pack_outcomes(math.log(value) * scale), "form": "exp_mean"}
        record["scores"]["outputs_sha256"] = name
        return record

    (win,) = only(of("rtn", 24.0), of("gptq", 22.0)).wins
    assert (win.winners, win.own, win.by_error) == (("gptq",), "perplexity", False)
    assert win.over_plain.limit.unit == "percent"
    assert win.over_plain.loss == pytest.approx(100 * (22 / 24 - 1), abs=0.5)


def test_without_labels_agreement_stands_for_the_metric(contender):
    records = [contender("net-rtn-int4-torch", 0.2, wrong=60), contender("net-gptq-int4-torch", 0.1)]
    for record in records:
        record["accuracy"] = {"reason": "no labels"}
    (win,) = only(*records).wins
    assert (win.winners, win.own, win.by_error) == (("gptq",), "agreement", False)
    assert win.over_plain.loss == pytest.approx(-20)


def test_weights_alone_and_activations_too_are_contests_of_their_own(contender):
    records = [
        contender("minilm-rtn-int8-torch", 0.02),
        contender("minilm-native-int8-torch", 0.03, scheme={"quantizer": "torchao"}),
        contender("minilm-static_plain-int8-torch", 0.2, scheme=STATIC),
        contender("minilm-smoothquant-int8-torch", 0.1, scheme=STATIC),
        contender("minilm-native_dynamic-int8-torch", 0.15, scheme={"quantizer": "torchao"}),
        contender("minilm-float-fp32-torch", 0.0, scheme={"family": "float"}),
    ]
    weights, both = insights([run(*records)])
    assert (weights.contest.activations, both.contest.activations) == (False, True)
    assert (weights.wins[0].winners, weights.wins[0].competed) == (("rtn",), 2)
    assert (both.wins[0].winners, both.wins[0].competed, both.wins[0].next) == (("smoothquant",), 3, "native_dynamic")
    assert both.wins[0].over_plain.loss == pytest.approx(-50)


def test_it_is_said_on_which_backends_it_holds_with_the_smallest_lead(contender):
    leads = {"torch": 0.10, "onnxruntime": 0.12}
    records = [
        contender(f"minilm-{m}-int4-{b}", e) for b, own in leads.items() for m, e in (("rtn", 0.2), ("gptq", own))
    ]
    records += [contender("minilm-rtn-int4-mlx", 0.1), contender("minilm-gptq-int4-mlx", 0.2)]
    found = only(*records)
    assert [win.backend for win in found.held] == ["onnxruntime", "torch"]
    text = insight_table([run(*records)])
    (row,) = [line for line in text.splitlines() if "gptq" in line and "int4" in line]
    assert row.rstrip().endswith("onnxruntime, torch; mlx: rtn")
    assert "-40.0 " in row


def test_families_are_sorted_and_the_last_save_counts(contender):
    old = [contender("minilm-rtn-int4-torch", 0.2), contender("minilm-gptq-int4-torch", 0.1)]
    new = [contender("minilm-gptq-int4-torch", 0.4)]
    other = [contender(f"digits-{name}-int4-torch", 0.1) for name in ("rtn", "gptq")]
    for record in other:
        record["model"]["family"] = "convolutional"
    found = insights([run(*new, saved="2026-02"), run(*old, saved="2026-01"), run(*other)])
    assert [one.contest.family for one in found] == ["convolutional", "transformer"]
    assert found[1].wins[0].winners == ("rtn",)


def test_the_table_says_what_was_left_out(contender, make_record):
    records = [contender("m-rtn-int4-torch", 0.2), contender("m-gptq-int4-torch", 0.1)]
    blind = make_record("m-hqq-int4-torch", scheme=WEIGHTS)
    assert "m-hqq-int4-torch" in insight_table([run(*records, blind)]).splitlines()[-1]
    assert insight_table([run(blind, records[0])]) == ""
    assert insight_table([]) == ""


def test_the_command_writes_into_a_document(contender, save_run, tmp_path, capsys):
    path = save_run("run.json", contender("m-rtn-int4-torch", 0.2), contender("m-gptq-int4-torch", 0.1))
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- begin insight -->\n<!-- end insight -->\nafter\n")
    assert main(["insight", str(path), "--into", str(document)]) == 0
    text = document.read_text()
    assert "| transformer | m" in text
    assert "Measured on" in text
    assert main(["insight", str(path)]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("transformer")]
    assert "error; 2 of 2 tie in accuracy" in row
    assert "-50.0 ±.4 % (rtn)" in row


def test_nothing_to_compare_is_a_sentence(save_run, make_record, capsys):
    assert main(["insight", str(save_run("run.json", make_record()))]) == 4
    assert "no two methods" in capsys.readouterr().err
