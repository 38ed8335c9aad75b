import random
from pathlib import Path

import numpy
import pytest

from reports.recommendation import assess, best, quantized_cases, recommend
from reports.requirements import parse_requirements
from reports.runs import Run


def run(*records):
    return Run(Path("run.json"), list(records), machine={"quant": {"cpu": "Test Chip", "threads": 1}})


def accuracy(delta, low, high, p_value=0.5):
    figures = {"accuracy.value": 0.946 + delta, "accuracy.delta": delta, "accuracy.ci95": [low, high]}
    return {**figures, "accuracy.p_value": p_value}


def time(milliseconds, ratio=2.0, spread=0.02):
    return {
        "speed.p50": milliseconds / 1000,
        "speed.ratio": ratio,
        "speed.ci95": [ratio * (1 - spread), ratio * (1 + spread)],
    }


LOSSLESS = accuracy(-0.002, -0.007, 0.003)


def words(record, *drops, **limits):
    (candidate,) = assess([record], parse_requirements(drops or ["1pp"], **limits))
    return [obstacle.word for obstacle in candidate.obstacles]


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        (accuracy(-0.002, -0.0099, 0.004), []),
        (accuracy(-0.002, -0.0101, 0.004), ["inconclusive"]),
        (accuracy(-0.030, -0.0450, -0.015, p_value=0.001), ["too lossy"]),
        (accuracy(-0.030, -0.0450, 0.001, p_value=0.2), ["inconclusive"]),
        ({"accuracy.ci95": None}, ["interval unknown"]),
    ],
)
def test_the_far_end_of_the_interval_decides(make_record, figures, expected):
    assert words(make_record(**figures)) == expected


def test_the_samples_that_would_decide_shrink_the_margin_to_what_is_left(make_record):
    (candidate,) = assess([make_record(**accuracy(-0.004, -0.016, 0.008))], parse_requirements(["1pp"]))
    # A margin of 1.2 points must shrink to the 0.6 that are left: half of it, four times the 500 samples.
    assert 2000 <= candidate.drop.needed <= 2100
    assert candidate.obstacles[0].reason == f"about {candidate.drop.needed:,} samples would decide"


@pytest.mark.parametrize("evidence", ["simulated", "evaluated"])
def test_a_time_that_was_not_measured_meets_no_limit_however_short(make_record, evidence):
    record = make_record("minilm-rtn-int2-mlx", evidence=evidence, **LOSSLESS, **time(0.001))
    assert words(record, max_latency="10s") == ["no measured time"]
    assert words(record) == []


def test_a_refused_time_meets_no_limit(make_record):
    refused = {"p50": None, "ratio": None, "ci95": None, "refused": True, "reason": "float differed from float"}
    (candidate,) = assess([make_record(**LOSSLESS, speed=refused)], parse_requirements(["1pp"], None, "10s"))
    assert candidate.obstacles == (("time refused", "float differed from float"),)
    untimed = make_record(**LOSSLESS, speed={"reason": "timing is disabled in this run"})
    assert words(untimed, max_latency="10s") == ["no measured time"]


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [(9.7, []), (9.9, ["time inconclusive"]), (10.1, ["time inconclusive"]), (10.3, ["too slow"])],
)
def test_a_measured_time_is_held_to_the_far_end_of_its_interval(make_record, milliseconds, expected):
    record = make_record(**LOSSLESS, **time(milliseconds))
    assert words(record, max_latency="10ms") == expected


def test_a_time_without_an_interval_is_inconclusive(make_record):
    record = make_record(**LOSSLESS, **{"speed.ci95": None})
    assert words(record, max_latency="10s") == ["time inconclusive"]


def test_sizes_are_exact(make_record):
    record = make_record(**LOSSLESS, **{"size.bytes": 20_000_000})
    assert words(record, max_size="20MB") == []
    assert words(record, max_size="19.9MB") == ["too large"]
    assert words(make_record(**LOSSLESS, size={"reason": "no file"}), max_size="20MB") == ["size not known"]


def test_every_obstacle_is_told(make_record):
    record = make_record(evidence="simulated", **accuracy(-0.03, -0.04, -0.02, p_value=0.0))
    assert words(record, max_size="1MB", max_latency="1ms") == ["too lossy", "too large", "no measured time"]


def test_a_metric_no_drop_speaks_of_is_not_judged_and_the_remedy_is_named(make_record):
    figures = {"metric": "perplexity", "better": "lower", "n": 90, "baseline": 20.0, "value": 20.1, "delta": 0.1}
    own = make_record(accuracy={**figures, "ci95": [0.0, 0.15]})
    blind = make_record(accuracy={"reason": "no labels"})
    for record, remedy in ((own, "--max-drop perplexity:1%"), (blind, "--max-drop agreement:5pp")):
        (candidate,) = assess([record], parse_requirements(["1pp"]))
        assert candidate.obstacles[0].word == "accuracy not judged"
        assert remedy in candidate.obstacles[0].reason
    assert words(own, "1%") == []


def test_agreement_is_judged_on_independent_samples_only(with_scores):
    right = numpy.arange(1000) >= 20
    apart = with_scores(right)
    together = with_scores(right, clusters=numpy.arange(1000) // 100)
    for record in (apart, together):
        record["accuracy"] = {"reason": "no labels"}
    assert words(apart, "agreement:5pp") == []
    assert words(together, "agreement:5pp") == ["inconclusive"]


def test_agreement_without_samples_has_wilsons_interval(make_record):
    record = make_record(accuracy={"reason": "no labels"}, **{"fidelity.agreement": 0.97, "fidelity.n": 500})
    assert words(record, "agreement:5pp") == []
    assert words(record, "agreement:4pp") == ["inconclusive"]
    assert words(record, "agreement:2pp") == ["too lossy"]


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_what_its_definition_says(make_record, seed):
    draw = random.Random(seed)
    records = [
        make_record(
            f"m-x{index}-int4-torch",
            evidence=draw.choice(["measured", "measured", "simulated"]),
            **draw.choice([LOSSLESS, LOSSLESS, accuracy(-0.03, -0.04, -0.02, p_value=0.0)]),
            **time(draw.uniform(5, 15), ratio=draw.choice([0.7, 0.9, 1.01, 2.0])),
            **{"size.bytes": draw.randrange(1, 40) * 1_000_000},
        )
        for index in range(12)
    ]
    keeping = [r for r in records if r["accuracy"]["delta"] == -0.002 and r["size"]["bytes"] <= 30e6]
    faster = [r for r in keeping if r["evidence"] == "measured" and r["speed"]["ratio"] * 0.98 > 1]
    expected = (
        min(faster, key=lambda r: r["speed"]["p50"])
        if faster
        else min(keeping, key=lambda r: r["size"]["bytes"], default=None)
    )
    found = best(assess(records, parse_requirements(["1pp"], "30MB")))
    assert (found and found.record) is expected


def test_nothing_qualifies(make_record):
    assert best(assess([make_record()], parse_requirements(["0.01pp"]))) is None
    assert best([]) is None


def test_an_answer_for_every_model_and_backend(make_record):
    records = [
        make_record("minilm-rtn-int4-torch", **LOSSLESS),
        make_record("minilm-gptq-int4-torch"),
        make_record("minilm-rtn-int4-mlx", **LOSSLESS),
        make_record("digits-float-fp16-torch", **LOSSLESS),
        make_record("digits-float-fp32-torch", **LOSSLESS),
        make_record("digits-rtn-int4-torch", kind="quantize"),
    ]
    found = recommend(run(*records), parse_requirements())
    assert [(one.case["model"], one.case["backend"], one.best.name) for one in found] == [
        ("digits", "torch", "digits-float-fp16-torch"),
        ("minilm", "mlx", "minilm-rtn-int4-mlx"),
        ("minilm", "torch", "minilm-rtn-int4-torch"),
    ]
    assert [one.candidate.name for one in found[2].alternatives] == ["minilm-gptq-int4-torch"]
    assert (found[0].family, found[0].machine) == ("transformer", "Test Chip, 1 thread")


def test_machines_of_a_merged_run_are_apart(make_record):
    here, there = make_record(), make_record("minilm-rtn-int4-onnxruntime")
    there["environment"] = {"cpu": "Other Chip", "threads": 4}
    found = recommend(run(here, there), parse_requirements())
    assert [one.machine for one in found] == ["Other Chip, 4 threads", "Test Chip, 1 thread"]


def test_alternatives_are_paired_with_the_choice(with_scores):
    n = 400
    right = numpy.ones(n, bool)
    worse = right.copy()
    worse[:40] = False
    chosen = with_scores(right, "m-static-int8-torch", ratio=2.0, **{"accuracy.ci95": [-0.005, 0.005]})
    other = with_scores(
        worse,
        "m-rtn-int4-torch",
        ratio=1.5,
        **{"accuracy.ci95": [-0.13, -0.07], "accuracy.p_value": 0.0, "size.bytes": 7_250_000, "size.ratio": None},
    )
    (found,) = recommend(run(other, chosen), parse_requirements())
    assert found.best.record is chosen
    (alternative,) = found.alternatives
    losses = alternative.losses
    assert losses["accuracy"].loss == pytest.approx(10)
    low, high = losses["accuracy"].interval
    assert 6 < low < 10 < high < 14
    assert losses["size"].loss == pytest.approx(-50)
    assert losses["speed"].loss == pytest.approx(25, abs=1)
    assert losses["speed"].interval[0] < losses["speed"].loss < losses["speed"].interval[1]


def test_no_speed_is_compared_with_a_simulated_time(with_scores):
    right = numpy.ones(400, bool)
    sure = {"accuracy.ci95": [-0.005, 0.005]}
    chosen = with_scores(right, "m-static-int8-torch", ratio=2.0, **sure)
    other = with_scores(right, "m-rtn-int4-torch", ratio=5.0, evidence="simulated", **sure)
    (found,) = recommend(run(chosen, other), parse_requirements())
    assert found.best.record is chosen
    assert set(found.alternatives[0].losses) == {"accuracy", "size"}


def test_without_a_choice_alternatives_are_beside_nothing(make_record):
    (found,) = recommend(run(make_record(), make_record("minilm-rtn-int4-onnxruntime")), parse_requirements(["0.1pp"]))
    assert found.best is None
    assert [one.losses for one in found.alternatives] == [{}, {}]


def test_float_is_nothing_to_choose(make_record):
    assert quantized_cases([make_record("minilm-float-fp32-torch"), make_record(kind="peer")]) == []
    assert recommend(run(make_record("minilm-float-fp32-torch")), parse_requirements()) == []
