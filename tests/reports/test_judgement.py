from pathlib import Path

import numpy
import pytest

from reports.judgement import judge
from reports.limits import parse_limit
from reports.runs import Run

MACHINE = {"quant": {"cpu": "A", "isa": ["avx2"], "threads": 1, "versions": {"torch": "2.9"}}}
OTHER = {"quant": {"cpu": "B", "isa": ["avx2"], "threads": 1, "versions": {"torch": "2.9"}}}
NAME = "minilm-gptq-int4-onnxruntime"


def run(*records, machine=MACHINE, **quant):
    return Run(Path("run.json"), list(records), quant=quant, machine=machine)


def outcomes(n, wrong, seed=0):
    """``n`` answers of which ``wrong`` are wrong, in places drawn from ``seed``."""
    right = numpy.ones(n, bool)
    right[numpy.random.default_rng(seed).permutation(n)[:wrong]] = False
    return right


def judged(before, after, *limits, **runs):
    base, head = (one if isinstance(one, Run) else run(one) for one in (before, after))
    return judge(base, head, [parse_limit(limit) for limit in limits])


def only(judgement):
    (finding,) = judgement.findings
    return finding


def test_a_clear_loss_regresses(with_scores):
    before, after = with_scores(outcomes(1000, 50)), with_scores(outcomes(1000, 150))
    judgement = judged(before, after, "accuracy:0.5pp")
    finding = only(judgement)
    assert finding.verdict == "regressed"
    assert finding.loss == pytest.approx(10)
    assert finding.interval[0] > 5
    assert (finding.base, finding.head, finding.samples) == (0.95, 0.85, 1000)
    assert judgement.fails()
    assert judgement.verdict == "regressed"


def test_a_gain_passes(with_scores):
    judgement = judged(with_scores(outcomes(1000, 150)), with_scores(outcomes(1000, 50)), "accuracy:0.5pp")
    assert only(judgement).verdict == "pass"
    assert only(judgement).loss == pytest.approx(-10)
    assert not judgement.fails(inconclusive=True)


def test_a_loss_that_chance_explains_is_inconclusive_and_says_what_would_decide(with_scores):
    before, after = with_scores(outcomes(300, 20, seed=1)), with_scores(outcomes(300, 23, seed=2))
    judgement = judged(before, after, "accuracy:0.5pp")
    finding = only(judgement)
    assert finding.verdict == "inconclusive"
    assert finding.loss == pytest.approx(1)
    assert finding.interval[0] < 0.5 < finding.interval[1]
    assert 3000 < finding.needed < 20_000
    assert not judgement.fails()
    assert judgement.fails(inconclusive=True)
    assert judgement.verdict == "inconclusive"


def test_the_number_that_would_decide_decides(with_scores):
    """What is forecast from 500 samples is enough when the same shares are seen on so many."""

    def pair(n):
        before, after = numpy.ones(n, bool), numpy.ones(n, bool)
        before[: n // 50], after[n // 50 : n // 25] = False, False
        return with_scores(before), with_scores(after)

    needed = only(judged(*pair(500), "accuracy:1pp")).needed
    assert only(judged(*pair(needed), "accuracy:1pp")).verdict == "pass"
    assert only(judged(*pair(needed // 2), "accuracy:1pp")).verdict == "inconclusive"


def test_equal_outputs_pass_however_few(with_scores):
    record = with_scores(outcomes(20, 3))
    assert only(judged(record, record, "accuracy:0pp")).verdict == "pass"
    assert only(judged(record, record, "error:0%")).verdict == "pass"


def test_equal_answers_of_other_outputs_prove_little(with_scores):
    before, after = with_scores([True] * 20), with_scores([True] * 20, error=numpy.full(20, 0.02))
    assert only(judged(before, after, "accuracy:0.5pp")).verdict == "inconclusive"


def test_samples_of_a_cluster_do_not_count_as_many(with_scores):
    before = numpy.ones(400, bool)
    after = before.copy()
    after[:12] = False
    apart = judged(with_scores(before), with_scores(after), "accuracy:0.5pp")
    together = numpy.concatenate([numpy.zeros(12, int), numpy.arange(1, 389)])
    one = judged(with_scores(before, clusters=together), with_scores(after, clusters=together), "accuracy:0.5pp")
    assert only(apart).verdict == "regressed"
    assert only(one).verdict == "inconclusive"


def test_many_cases_do_not_make_an_alarm_likely(with_scores):
    """A loss that would be called one in a run of its own is not among forty cases where nothing happened."""
    before, after = outcomes(300, 0), outcomes(300, 7)
    names = [f"minilm-m{i}-int4-torch" for i in range(40)]
    quiet = outcomes(300, 5)
    odd = quiet.copy()
    odd[numpy.flatnonzero(quiet)[:1]], odd[numpy.flatnonzero(~quiet)[:1]] = False, True
    base = run(with_scores(before, NAME), *(with_scores(quiet, name) for name in names))
    head = run(with_scores(after, NAME), *(with_scores(odd, name) for name in names))
    assert only(judged(with_scores(before), with_scores(after), "accuracy:0.5pp")).verdict == "regressed"
    verdicts = {finding.case: finding.verdict for finding in judged(base, head, "accuracy:0.5pp").findings}
    assert verdicts[NAME] == "inconclusive"


def test_runs_of_different_length_are_compared_on_what_they_share(with_scores):
    right = outcomes(400, 40)
    finding = only(judged(with_scores(right), with_scores(right[:150]), "accuracy:0.5pp"))
    assert finding.samples == 150
    assert finding.loss == 0


def test_fidelity_is_paired_too(with_scores):
    random = numpy.random.default_rng(0)
    error = random.gamma(2, 0.01, 200)
    before, after = with_scores([True] * 200, error=error), with_scores([True] * 200, error=1.3 * error)
    finding = only(judged(before, after, "error:5%"))
    assert finding.verdict == "regressed"
    assert finding.loss == pytest.approx(100 * (1.3**0.5 - 1), rel=1e-3)
    assert only(judged(after, before, "error:5%")).verdict == "pass"
    assert only(judged(before, after, "sqnr_db:0.5")).loss == pytest.approx(10 * numpy.log10(1.3), rel=1e-3)
    assert only(judged(before, after, "sqnr_db:0.5")).verdict == "regressed"


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.87, "pass"), (1.8, "pass"), (1.72, "inconclusive"), (1.67, "regressed"), (2.5, "pass")]
)
def test_speed_is_judged_beyond_the_noise_between_runs(with_scores, ratio, verdict):
    right = outcomes(30, 3)
    finding = only(judged(with_scores(right, ratio=1.87), with_scores(right, ratio=ratio), "speed:10%"))
    assert finding.verdict == verdict
    assert finding.loss == pytest.approx(100 * (1 - ratio / 1.87))


def test_sizes_are_exact(make_record):
    after = make_record(**{"size.bytes": 14_600_000, "size.ratio": 14.6 / 90.8})
    assert only(judged(make_record(), after, "size:1%")).verdict == "pass"
    assert only(judged(make_record(), after, "size:0.5%")).verdict == "regressed"
    assert only(judged(make_record(), after, "size:50000")).loss == 100_000
    assert only(judged(make_record(), make_record(), "bits_per_weight:0")).verdict == "pass"


def test_elsewhere_times_are_not_compared_but_accuracy_and_ratios_are(with_scores):
    base, head = run(with_scores(outcomes(50, 5))), run(with_scores(outcomes(50, 5)), machine=OTHER)
    judgement = judged(base, head, "accuracy:1pp", "speed:10%", "time:10%", "size:1%")
    verdicts = {finding.limit.metric: finding for finding in judgement.findings}
    assert [verdicts[name].verdict for name in ("accuracy", "speed", "size")] == ["pass"] * 3
    assert verdicts["time"].verdict == "not judged"
    assert "cpu: B, was A" in verdicts["time"].reason
    assert judgement.elsewhere == {NAME: "cpu: B, was A"}
    assert judgement.problems == ["time:10% judged nothing: the baseline ran elsewhere (cpu: B, was A)"]


def test_ratios_of_another_runtime_are_not_compared(make_record):
    other = {"quant": {**MACHINE["quant"], "versions": {"torch": "2.10"}}}
    judgement = judged(run(make_record()), run(make_record(), machine=other), "speed:10%")
    assert only(judgement).verdict == "not judged"
    assert judgement.fails()


def test_what_ran_otherwise_is_named(make_record):
    after = make_record(evidence="simulated", **{"speed.batch": 8})
    before = make_record(**{"speed.batch": 1})
    assert judged(before, after).elsewhere == {NAME: "evidence: simulated, was measured; samples per call: 8, was 1"}


def test_a_lost_case_fails_and_a_deselected_one_does_not(make_record):
    other = "minilm-rtn-int4-mlx"
    base = run(make_record(), make_record(other))
    lost = judged(base, run(make_record()), "size:1%")
    assert lost.lost == {other: "there is no such case any more"}
    assert lost.fails()
    planned = judged(base, run(make_record(), planned=[NAME, other]), "size:1%")
    assert planned.lost == {other: "it was planned, and did not come to its end"}
    skipped = judged(base, run(make_record(), planned=[NAME, other], skipped={other: "not installed: mlx"}), "size:1%")
    assert skipped.lost == {other: "not installed: mlx"}
    deselected = judged(base, run(make_record(), deselected=[other]), "size:1%")
    assert deselected.lost == {}
    assert not deselected.fails()


def test_a_case_that_newly_fails(make_record):
    other = "minilm-rtn-int4-mlx"
    base, head = run(make_record(), make_record(other)), run(make_record(), failed={other: "ValueError: NaN"})
    judgement = judged(base, head, "size:1%")
    assert judgement.failed == {other: "ValueError: NaN"}
    assert judgement.lost == {}
    assert judgement.fails()
    both = judged(run(make_record(), failed={other: "as before"}), head, "size:1%")
    assert both.failed == {}
    assert not both.fails()


def test_new_cases_are_named(make_record):
    judgement = judged(run(make_record()), run(make_record(), make_record("minilm-rtn-int4-mlx")), "size:1%")
    assert judgement.added == ["minilm-rtn-int4-mlx"]
    assert not judgement.fails()


def test_nothing_in_common_is_a_failure(make_record):
    judgement = judged(run(make_record()), run(make_record("digits-rtn-int4-mlx"), deselected=[NAME]), "size:1%")
    assert judgement.problems == ["the two runs have no case in common, so nothing was compared"]
    assert judgement.fails()


@pytest.mark.parametrize(
    ("limit", "changes", "why"),
    [
        ("acuracy:1%", {}, "there is no metric acuracy; there are accuracy, "),
        ("digits-*:size:1%", {}, "no case of both runs matches 'digits-*'"),
        ("speed:10%", {"speed": {"reason": "timing is disabled in this run"}}, "timing is disabled in this run"),
        ("accuracy:1pp", {"accuracy": {"reason": "no labels: pass --imagenet DIR"}}, "no labels: pass --imagenet DIR"),
        ("cost:5%", {}, "no case of both runs has such a cost"),
        ("memory:5%", {"memory": {"peak_bytes": None, "reason": "measured with --memory"}}, "measured with --memory"),
        ("accuracy:1pp", {"scores.dataset_sha256": "f" * 64}, "the two runs were judged on other data"),
    ],
)
def test_a_limit_that_judged_nothing_fails_and_says_why(make_record, limit, changes, why):
    judgement = judged(make_record(**{"accuracy.n": 500}), make_record(**{"accuracy.n": 500, **changes}), limit)
    assert any(problem.startswith(f"{limit} judged nothing: ") and why in problem for problem in judgement.problems)
    assert judgement.fails()


def test_a_figure_that_got_lost_fails_although_others_are_judged(with_scores):
    other = "minilm-rtn-int4-mlx"
    right = outcomes(60, 3)
    base = run(with_scores(right), with_scores(right, other))
    head = run(with_scores(right), with_scores(right, other, accuracy={"reason": "NaN"}))
    judgement = judged(base, head, "accuracy:1pp")
    assert judgement.problems == [f"{other}: accuracy was known in the baseline and is not here: NaN"]


def test_nan_in_a_file_is_an_unknown_figure(make_record):
    after = make_record(**{"size.bytes": float("nan")})
    assert only(judged(make_record(), after, "size:1%")).verdict == "not judged"
    assert judged(make_record(), after, "size:1%").fails()


def test_a_metric_without_points_needs_its_own_limit(make_record):
    language = {"accuracy.metric": "perplexity", "accuracy.better": "lower", "accuracy.value": 21.0}
    language |= {"accuracy.baseline": 20.0, "accuracy.delta": 1.0, "accuracy.n": 500}
    before, after = (make_record(case, **language) for case in [NAME] * 2)
    judgement = judged(before, after, "accuracy:0.5pp", "size:1%")
    assert [finding.limit.metric for finding in judgement.findings] == ["size"]
    assert "minilm: perplexity is not gated; give it a limit of its own, such as perplexity:1%" in judgement.notes
    assert judgement.fails()
    own = judged(before, after, "perplexity:1%", "accuracy:1%")
    assert [finding.limit.metric for finding in own.findings] == ["perplexity", "accuracy"]
    assert own.notes == []


def test_no_percentage_of_nothing(make_record):
    before = make_record(**{"size.bytes": 0})
    assert "no percentage" in only(judged(before, make_record(), "size:1%")).reason
    assert only(judged(before, before, "size:1%")).verdict == "pass"


def test_changed_weights_are_noted(make_record):
    judgement = judged(make_record(), make_record(**{"model.weights_sha256": "9" * 64}), "size:1%")
    assert judgement.notes == ["minilm: the float model's weights are not the baseline's"]


def test_without_limits_nothing_fails(make_record):
    judgement = judged(run(make_record()), run(make_record()))
    assert (judgement.findings, judgement.problems, judgement.verdict) == ([], [], "pass")


def test_cost_is_judged_where_it_was_measured(make_record):
    before, after = (make_record(kind="quantize", **{"cost.seconds": seconds}) for seconds in (3.0, 3.5))
    assert only(judged(before, after, "cost:10%")).verdict == "regressed"
    cached = make_record(kind="quantize", **{"cost.cached": True})
    assert only(judged(before, cached, "cost:10%")).reason == "the quantized model came from the cache"
