from dataclasses import replace

import numpy as np
import pytest

from benchmarks.losses import Losses, drop_of, loss_text, outcome_text, parts_of
from fixtures.model import DataError, Metric
from quant.search import Loss, Step
from reports.limits import LimitError
from tests.benchmarks.searchable import FakeWorkshop, case_of, make_model


@pytest.mark.parametrize(
    ("metric", "text", "expected"),
    [
        ("accuracy", None, "1 point of accuracy"),
        ("accuracy", "0.5pp", "0.5 points of accuracy"),
        ("accuracy", "2%", "2 % of accuracy"),
        ("accuracy", "agreement:5pp", "5 points of agreement"),
        ("perplexity", None, "1 % of perplexity"),
        ("perplexity", "perplexity:0.3", "0.3 of perplexity"),
        ("f1", "1pp", "1 point of f1"),
        (None, None, "1 point of agreement"),
    ],
)
def test_drops_are_of_the_models_own_metric(metric, text, expected):
    assert str(drop_of(make_model(metric=metric), text)) == expected


@pytest.mark.parametrize(
    ("metric", "text", "message"),
    [
        ("accuracy", "1", r"--max-drop 1 has no unit: write 1pp for points, or 1% of float's accuracy\."),
        ("perplexity", "1pp", r"perplexity is no share, so it has no points: write 1%\."),
        ("accuracy", "perplexity:1%", r"toy is judged by accuracy, so write accuracy:1%\."),
        ("accuracy", "much", "is not a drop such as 1pp"),
        ("accuracy", "speed:1%", "is no drop of accuracy"),
    ],
)
def test_other_drops_are_refused_in_one_sentence(metric, text, message):
    with pytest.raises(LimitError, match=message):
        drop_of(make_model(metric=metric), text)


def test_a_model_without_labels_and_classes_cannot_be_searched():
    with pytest.raises(DataError, match="neither labels nor classes"):
        drop_of(make_model(metric=None, scores=None), None)


def test_race_and_verification_share_no_cluster():
    clusters = np.random.default_rng(0).integers(0, 900, size=3000)
    model = make_model(clusters=clusters)
    parts = parts_of(model, drop_of(model, "1pp"))
    assert not set(parts.race.clusters) & set(parts.verification.clusters)
    assert len(parts.race) + len(parts.verification) == 1902
    assert 0.33 < len(parts.race) / 1902 < 0.36


def test_a_smaller_drop_asks_for_more_samples():
    model = make_model(count=100_000)
    sizes = [sum(map(len, parts_of(model, drop_of(model, text)))) for text in ("0.5pp", "1pp", "5pp")]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 600


def test_samples_that_cannot_show_so_small_a_loss_are_refused():
    model = make_model(count=300)
    with pytest.raises(DataError, match=r"200 samples .* 1\.9 points may be lost: allow --max-drop 1\.9pp, .* 381"):
        parts_of(model, drop_of(model, "1pp"))
    parts_of(model, drop_of(model, "1.9pp"))


def test_other_shares_may_be_judged_on_few_samples():
    model = make_model(count=300, metric="f1")
    assert sum(map(len, parts_of(model, drop_of(model, "1pp")))) == 300


def test_samples_of_one_source_are_refused():
    model = make_model(clusters=[7] * 3000)
    with pytest.raises(DataError, match="come from one source"):
        parts_of(model, drop_of(model, "1pp"))


def judge(wrong, metric="accuracy", text="1pp"):
    model = make_model(metric=metric, labelled=metric is not None)
    drop = drop_of(model, text)
    workshop = FakeWorkshop(model, {case_of(): wrong})
    return workshop, Losses(workshop, model, drop, parts_of(model, drop))


@pytest.mark.parametrize(("metric", "text"), [("accuracy", "1pp"), ("accuracy", "1%"), (None, "1pp")])
def test_losses_are_in_the_unit_of_the_drop(metric, text):
    workshop, losses = judge(0.05, metric, text)
    loss = losses.verified(workshop.compile(case_of(), None, None))
    assert loss.value == pytest.approx(5.0, abs=0.1)
    assert loss.low < loss.value < loss.high
    assert loss.samples == len(losses.parts.verification)


def test_points_of_a_metric_of_ones_own_that_is_no_share_are_refused():
    metric = Metric("score", "higher", lambda outputs, samples, reference: (37.0 + outputs[:, 0], None))
    model = make_model(metric=None, labelled=True)
    model = replace(model, metric=metric, no_metric_reason=None)
    drop = drop_of(model, "1pp")
    workshop = FakeWorkshop(model, {})
    with pytest.raises(ValueError, match=r"float's own metric is 37\.25, which is no share"):
        Losses(workshop, model, drop, parts_of(model, drop)).seen(workshop.compile(case_of(), None, None), 32)


def test_the_second_to_be_verified_on_the_same_samples_must_show_more():
    workshop, losses = judge(0.05)
    workshop.wrong[case_of("gptq")] = 0.05
    first, second = (workshop.compile(case_of(method), None, None) for method in ("mse", "gptq"))
    alone, after = losses.verified(first), losses.verified(second)
    assert alone.value == after.value
    assert after.low < alone.low < alone.high < after.high
    assert losses.verified(first) == alone


def test_no_sample_is_answered_twice():
    workshop, losses = judge(0.05)
    artifact = workshop.compile(case_of(), None, None)
    for samples in losses.looks:
        assert losses.seen(artifact, samples).samples == samples
    assert losses.seen(artifact, losses.looks[0]).samples == losses.looks[0]
    race = len(losses.parts.race)
    for case in (case_of(), case_of().baseline):
        assert sum(count for answered, count in workshop.answered if answered == case) == race
    assert losses.answered == 2 * race


def test_float_answers_once_for_all_candidates():
    workshop, losses = judge(0.05)
    for method in ("mse", "gptq"):
        losses.seen(workshop.compile(case_of(method), None, None), 32)
    assert [case.method for case, _ in workshop.answered] == ["float", "mse", "gptq"]


def test_the_error_is_that_of_the_last_look():
    workshop, losses = judge(0.5)
    artifact = workshop.compile(case_of(), None, None)
    assert losses.error(artifact) is None
    losses.seen(artifact, 32)
    assert losses.error(artifact) > 0.5


def test_answers_that_are_not_finite_cannot_be_judged():
    workshop, losses = judge(-1.0)
    with pytest.raises(ValueError, match="toy-mse-int4-torch gives NaN or infinity"):
        losses.seen(workshop.compile(case_of(), None, None), 32)


def test_outcomes_in_words():
    loss, fresh = Loss(0.2, -0.3, 0.7, 64), Loss(0.25, -0.2, 0.7, 900)
    assert loss_text(loss, " points") == "loses 0.2 points, -0.3 to 0.7, on 64 samples"
    assert outcome_text(Step("a", "chosen", loss, fresh), " %") == (
        "holds: loses 0.25 %, -0.2 to 0.7, on 900 fresh samples"
    )
    assert outcome_text(Step("a", "failed", reason="no kernel"), " %") == "no kernel"
    over = outcome_text(Step("a", "not judged", loss, reason="the time was over"), "")
    assert over == "not judged to the end (the time was over): loses 0.2, -0.3 to 0.7, on 64 samples"
