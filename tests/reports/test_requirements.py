import pytest

from reports.limits import LimitError
from reports.requirements import drop_text, parse_drop, parse_requirements, parse_size, parse_time

PERPLEXITY = {"metric": "perplexity", "better": "lower", "n": 90, "baseline": 20.0, "value": 20.1, "delta": 0.1}
UNLABELLED = {"accuracy": {"reason": "no labels"}}


@pytest.mark.parametrize(
    ("text", "metric", "amount", "unit"),
    [
        ("1pp", "accuracy", 1, "points"),
        (".5%", "accuracy", 0.5, "percent"),
        ("0.2", "accuracy", 0.2, "absolute"),
        ("perplexity:2%", "perplexity", 2, "percent"),
        ("minilm-*:agreement:3pp", "agreement", 3, "points"),
    ],
)
def test_drops_are_written_as_limits_are_or_as_an_amount_alone(text, metric, amount, unit):
    limit = parse_drop(text)
    assert (limit.metric, limit.amount, limit.unit, limit.text) == (metric, amount, unit, text)


@pytest.mark.parametrize(("text", "bytes"), [("20MB", 2e7), ("800 kB", 8e5), ("1.5gb", 1.5e9)])
def test_sizes(text, bytes):
    assert parse_size(text) == bytes


@pytest.mark.parametrize(("text", "seconds"), [("10ms", 0.01), ("250us", 0.00025), ("1.5 s", 1.5)])
def test_times(text, seconds):
    assert parse_time(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("parse", "text", "remedy"),
    [
        (parse_drop, "little", "'little' is not a drop such as 1pp"),
        (parse_drop, "-1pp", "is not a drop such as 1pp"),
        (parse_drop, "speed:10%", "is no drop of accuracy"),
        (parse_drop, "accuracy:much", "is not METRIC:LIMIT"),
        (parse_size, "20", "is not a size such as 20MB"),
        (parse_size, "0MB", "is not a size such as 20MB"),
        (parse_size, "20ms", "is not a size such as 20MB"),
        (parse_time, "10MB", "is not a time such as 10ms"),
        (parse_time, "fast", "is not a time such as 10ms"),
    ],
)
def test_what_cannot_be_understood_is_a_sentence(parse, text, remedy):
    with pytest.raises(LimitError, match=remedy) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert str(caught.value).endswith(".")


def test_the_first_drop_that_speaks_of_a_case_counts(make_record):
    share, own, blind = make_record(), make_record(accuracy=PERPLEXITY), make_record(**UNLABELLED)
    usual = parse_requirements()
    assert [usual.drop_of(record).text for record in (share, own, blind)] == ["1pp", "1%", "agreement:5pp"]
    named = parse_requirements(["perplexity:3%", "1%"])
    assert [named.drop_of(record) and named.drop_of(record).text for record in (share, own, blind)] == [
        "1%",
        "perplexity:3%",
        None,
    ]


def test_points_say_nothing_of_a_metric_that_is_no_share(make_record):
    assert parse_requirements(["1pp"]).drop_of(make_record(accuracy=PERPLEXITY)) is None


def test_a_drop_may_be_for_some_cases_only(make_record):
    requirements = parse_requirements(["digits-*:accuracy:3pp", "1pp"])
    assert requirements.drop_of(make_record("digits-rtn-int4-torch")).amount == 3
    assert requirements.drop_of(make_record("minilm-rtn-int4-torch")).amount == 1


def test_drops_in_words():
    assert drop_text(parse_drop("1pp"), "accuracy") == "accuracy within a point of float"
    assert drop_text(parse_drop("0.5pp"), "accuracy") == "accuracy within 0.5 points of float"
    assert drop_text(parse_drop("2%"), "perplexity") == "perplexity within 2 % of float"
    assert drop_text(parse_drop("0.3"), "perplexity") == "perplexity within 0.3 of float"
    assert drop_text(parse_drop("agreement:5pp"), "accuracy") == "95 % agreement with float"
    assert drop_text(parse_drop("agreement:0.05"), "accuracy") == "95 % agreement with float"
