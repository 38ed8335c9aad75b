import math

import pytest

from reports.figures import figure, figure_text, higher_is_better, quality_metric


def test_the_interval_of_agreement_is_wilsons(make_record):
    record = make_record(**{"fidelity.agreement": 0.9, "accuracy.n": 100})
    # Newcombe, Statistics in Medicine 17 (1998), gives (.0552, .1744) for 10 of 100.
    assert figure(record, "agreement") == pytest.approx((0.9, 1 - 0.1744, 1 - 0.0552), abs=2e-4)


def test_the_latency_is_as_uncertain_as_the_ratio(make_record):
    value, low, high = figure(make_record(), "time")
    assert (value / low, value / high) == pytest.approx((1.91 / 1.87, 1.83 / 1.87))


def test_figures_with_and_without_a_known_value(make_record):
    record = make_record(memory={"reason": "x"}, **{"accuracy.ci95": [-0.01, 0.2]})
    assert figure(record, "memory") is None
    assert figure(record, "f1") is None
    assert figure(record, "accuracy").high == 1.0
    assert figure(record, "size") == (14_500_000,) * 3


def test_an_interval_that_is_not_known_reaches_everywhere(make_record):
    record = make_record(**{"accuracy.ci95": None, "accuracy.reason": "one cluster", "speed.ci95": None})
    assert figure(record, "accuracy")[1:] == (-math.inf, math.inf)
    assert figure(record, "speed")[1:] == figure(record, "time")[1:] == (0.0, math.inf)


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        ("accuracy", 0.9404, "94.0 %"),
        ("agreement", 1.0, "100.0 %"),
        ("speed", 1.866, "1.87×"),
        ("time", 0.0123, "12.3 ms"),
        ("size", 14_500_000, "14.5 MB"),
        ("cost", 3.21, "3.21 s"),
        ("error", 0.1396, "0.14"),
    ],
)
def test_figures_read_in_the_unit_of_people(make_record, metric, value, shown):
    assert figure_text(make_record(), metric, value) == shown


def test_a_models_own_metric_has_its_name_and_direction(make_record):
    own = {"accuracy.metric": "perplexity", "accuracy.better": "lower", "accuracy.value": 23.41}
    record = make_record(**own, **{"accuracy.baseline": 23.1, "accuracy.delta": 0.31, "accuracy.ci95": [0.2, 0.4]})
    assert figure(record, "perplexity") == figure(record, "accuracy") == pytest.approx((23.41, 23.3, 23.5))
    assert figure_text(record, "perplexity", 23.41) == "23.4"
    assert not higher_is_better(record, "perplexity")
    assert higher_is_better(record, "speed")
    assert not higher_is_better(record, "time")


def test_quality_is_agreement_only_where_no_case_has_labels(make_record):
    bare = make_record(accuracy={"reason": "no labels"})
    assert quality_metric([bare, bare]) == "agreement"
    assert quality_metric([bare, make_record()]) == "accuracy"
