import pytest

from reports.advice import advise

LOSSLESS = {"accuracy.value": 0.944, "accuracy.delta": -0.002, "accuracy.ci95": [-0.007, 0.003]}
LOSSY = {"accuracy.value": 0.900, "accuracy.delta": -0.046, "accuracy.ci95": [-0.06, -0.03]}


def fast(ratio, milliseconds, spread=0.05):
    bounds = [ratio - spread, ratio + spread]
    return {"speed.ratio": ratio, "speed.ci95": bounds, "speed.p50": milliseconds / 1000}


def agreement(share):
    return {"fidelity.agreement": share, "fidelity.n": 500}


def one_sentence(text):
    assert text.endswith(".")
    assert "\n" not in text
    assert ". " not in text
    return text


def test_the_fastest_that_keeps_its_accuracy_is_named_with_its_figures(make_record):
    records = [
        make_record("minilm-rtn-int4-mlx", **LOSSY, **fast(4.0, 5)),
        make_record("minilm-static-int8-onnxruntime", **LOSSLESS, **fast(1.87, 12.3, 0.04)),
        make_record("minilm-dynamic-int8-torch", **LOSSLESS, **fast(2.5, 20)),
    ]
    assert one_sentence(advise(records)) == (
        "minilm: ship minilm-static-int8-onnxruntime, 1.87× ±.04 the speed of float on onnxruntime (12.3 ms), "
        "0.16 of its size, accuracy 94.4 (-0.2 ±.5 points)."
    )


def test_what_counts_is_the_far_end_of_the_interval(make_record):
    unsure = make_record(**{"accuracy.delta": -0.001, "accuracy.ci95": [-0.0101, 0.008]}, **fast(3.0, 5))
    assert "no case is shown to keep accuracy within a point of float" in advise([unsure])
    sure = make_record(**{"accuracy.delta": -0.001, "accuracy.ci95": [-0.0099, 0.008]}, **fast(3.0, 5))
    assert "ship minilm-gptq-int4-onnxruntime" in advise([sure])


def test_a_delta_without_an_interval_shows_nothing(make_record):
    record = make_record(**{"accuracy.delta": 0.0, "accuracy.ci95": None})
    assert "no case is shown" in one_sentence(advise([record]))


def test_where_none_keeps_the_most_accurate_is_named(make_record):
    records = [
        make_record("minilm-rtn-int3-mlx", **LOSSY),
        make_record("minilm-gptq-int4-mlx", **{"accuracy.delta": -0.02, "accuracy.value": 0.926}),
    ]
    text = one_sentence(advise(records))
    assert "2 tried on 500 samples" in text
    assert "the most accurate is minilm-gptq-int4-mlx, accuracy 92.6" in text


@pytest.mark.parametrize("evidence", ["simulated", "evaluated"])
def test_what_was_not_measured_is_named_for_size_alone(make_record, evidence):
    case = "minilm-rtn-int4-mlx"
    text = one_sentence(advise([make_record(case, evidence=evidence, **LOSSLESS, **fast(9.0, 1))]))
    assert text == (
        "minilm: no case that keeps accuracy within a point of float has a measured speed; for size alone take "
        "minilm-rtn-int4-mlx, 0.16 of its size, accuracy 94.4 (-0.2 ±.5 points)."
    )
    measured = make_record("minilm-static-int8-torch", **LOSSLESS, **fast(1.2, 30))
    assert "ship minilm-static-int8-torch" in advise(
        [make_record(case, evidence=evidence, **LOSSLESS, **fast(9.0, 1)), measured]
    )


def test_the_smallest_is_taken_where_nothing_is_faster(make_record):
    records = [
        make_record("minilm-static-int8-torch", **LOSSLESS, **fast(0.5, 30)),
        make_record("minilm-rtn-int4-torch", **LOSSLESS, **fast(1.02, 30), **{"size.bytes": 9_000_000}),
    ]
    text = one_sentence(advise(records))
    assert "was measured faster than float" in text
    assert "for size alone take minilm-rtn-int4-torch" in text
    unknown = make_record(**LOSSLESS, size={"reason": "no file"}, speed={"reason": "not timed"})
    assert "none has a known size" in one_sentence(advise([unknown]))


def test_a_refused_ratio_recommends_no_speed(make_record):
    record = make_record(**LOSSLESS, **{"speed.ratio": None})
    assert "was measured faster" in advise([record])
    assert "ship" not in advise([record])


def test_a_float_that_is_faster_elsewhere_is_admitted(make_record):
    records = [
        make_record("minilm-rtn-int4-mlx", **LOSSLESS, **fast(2.0, 40), **{"speed.baseline_p50": 0.080}),
        make_record("minilm-static-int8-torch", **LOSSY, **fast(1.1, 18), **{"speed.baseline_p50": 0.020}),
    ]
    assert one_sentence(advise(records)).endswith("; but float on torch takes only 20 ms.")


def test_without_labels_agreement_decides(make_record):
    unlabelled = {"accuracy": {"reason": "no labels"}}
    agreeing = make_record("mobilenet_v2-static-int8-torch", **unlabelled, **agreement(0.98))
    text = one_sentence(advise([agreeing]))
    assert text.startswith("mobilenet_v2: ship mobilenet_v2-static-int8-torch, ")
    assert text.endswith("agreeing with float on 98.0 % of the samples.")
    differing = make_record("mobilenet_v2-static-int8-torch", **unlabelled, **agreement(0.955))
    assert "no case is shown to keep 95 % agreement with float (1 tried on 500 samples)" in one_sentence(
        advise([differing])
    )


def test_a_metric_where_lower_is_better_is_held_to_one_per_cent(make_record):
    def record(low, high):
        figures = {"metric": "perplexity", "better": "lower", "n": 90, "baseline": 20.0, "value": 20.1, "delta": 0.1}
        return make_record("reviews_gpt-gptq-int4-torch", accuracy={**figures, "ci95": [low, high]}, **fast(2.0, 9))

    assert "perplexity 20.10 (+0.10 ±.05)" in one_sentence(advise([record(0.05, 0.15)]))
    assert "ship" in advise([record(0.05, 0.15)])
    assert "no case is shown to keep perplexity within 1 % of float" in advise([record(-0.1, 0.3)])


def test_the_model_with_most_rows_is_advised_on(make_record):
    records = [
        make_record("digits-static-int8-torch", **LOSSLESS),
        make_record("minilm-static-int8-torch", **LOSSLESS),
        make_record("minilm-rtn-int4-torch", **LOSSLESS),
        make_record("digits-float-fp32-torch"),
        make_record("digits-rtn-int4-torch", kind="quantize"),
    ]
    assert advise(records).startswith("minilm: ")


def test_nothing_known_and_nothing_there(make_record):
    blind = make_record(accuracy={"reason": "no labels"}, fidelity={"reason": "no outputs"})
    assert "the accuracy of no case is judged (1 tried), so none is recommended: no labels" in one_sentence(
        advise([blind])
    )
    assert advise([]) == advise([make_record("minilm-float-fp32-torch")]) == "There is no quantized case to recommend."


def test_of_models_with_equally_many_rows_the_largest_is_advised_on(make_record):
    small = make_record("digits-rtn-int4-torch", **LOSSLESS, **fast(2.0, 1), **{"model.parameters": 63_000})
    large = make_record("minilm-rtn-int4-torch", **LOSSLESS, **fast(2.0, 20))
    assert advise([small, large]).startswith("minilm: ship minilm-rtn-int4-torch")
