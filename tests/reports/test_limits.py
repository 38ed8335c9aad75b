import pytest

from reports.limits import Limit, LimitError, parse_limit


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("accuracy:0.5pp", Limit("accuracy", 0.5, "points", "*", "accuracy:0.5pp")),
        ("speed:10%", Limit("speed", 10, "percent", "*", "speed:10%")),
        ("error:.02", Limit("error", 0.02, "absolute", "*", "error:.02")),
        ("perplexity:1%", Limit("perplexity", 1, "percent", "*", "perplexity:1%")),
        (" minilm-*:accuracy:1pp ", Limit("accuracy", 1, "points", "minilm-*", "minilm-*:accuracy:1pp")),
        ("quantize:*:cost:5%", Limit("cost", 5, "percent", "quantize:*", "quantize:*:cost:5%")),
        ("accuracy:0pp", Limit("accuracy", 0, "points", "*", "accuracy:0pp")),
    ],
)
def test_a_limit_is_a_metric_and_the_loss_it_may_take(text, limit):
    assert parse_limit(text) == limit


@pytest.mark.parametrize(
    "text", ["", "accuracy", "accuracy:", "accuracy:-1pp", "accuracy:1 pp", ":1%", "a b:1%", "speed:1x"]
)
def test_what_is_no_limit_is_refused_with_an_example(text):
    with pytest.raises(LimitError, match=r"is not METRIC:LIMIT, such as accuracy:0\.5pp"):
        parse_limit(text)


@pytest.mark.parametrize("text", ["size:1pp", "speed:0.5pp", "error:1pp"])
def test_points_are_for_shares(text):
    with pytest.raises(LimitError, match="points are for shares"):
        parse_limit(text)


def test_a_pattern_chooses_cases():
    limit = parse_limit("minilm-*-onnx*:size:1%")
    assert limit.applies_to("minilm-rtn-int4-onnxruntime")
    assert not limit.applies_to("digits-rtn-int4-onnxruntime")
    assert parse_limit("size:1%").applies_to("anything")
