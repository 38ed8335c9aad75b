import json
import random

import numpy
import pytest

from reports.__main__ import main
from reports.figures import Figure
from reports.pareto import Point, dominance, front, front_text, fronts


def brute_force_dominates(one, other):
    """The definition, a point at a time."""
    better_quality = one.quality.low > other.quality.high
    better_cost = one.cost.high < other.cost.low
    same_quality = one.quality == other.quality and one.quality.low == one.quality.high
    same_cost = one.cost == other.cost and one.cost.low == one.cost.high
    if better_quality:
        return better_cost or same_cost
    return better_cost and same_quality


def random_points(seed, make_record, n=40):
    draw = random.Random(seed)
    points = []
    for index in range(n):
        quality, cost = (draw.randrange(12) / 2 for _ in range(2))
        wide, high = draw.choice([0, 0.5, 2.0]), draw.choice([0, 1.0])
        record = make_record(f"m-x{index}-int4-torch")
        points.append(Point(record, Figure(quality, quality - wide, quality + wide), Figure(cost, cost - high, cost)))
    return points


@pytest.mark.parametrize("seed", range(5))
def test_dominance_is_what_its_definition_says(make_record, seed):
    points = random_points(seed, make_record)
    expected = [[brute_force_dominates(one, other) for other in points] for one in points]
    found = dominance(points)
    assert numpy.array_equal(found, expected)
    assert found.any()
    assert not found.all(axis=0).any()


def records_at(make_record, figures):
    """Records at (accuracy, half its interval, bytes)."""
    return [
        make_record(
            f"m-x{index}-int4-torch",
            **{
                "accuracy.baseline": 0.9,
                "accuracy.value": value,
                "accuracy.delta": value - 0.9,
                "accuracy.ci95": [value - 0.9 - half, value - 0.9 + half],
                "size.bytes": size,
                "size.ratio": None,
                "size.reason": "not compared",
                "speed": {"reason": "not timed"},
                "memory": {"reason": "not measured"},
            },
        )
        for index, (value, half, size) in enumerate(figures)
    ]


def names(points):
    return [point.record["case"]["method"] for point in points]


@pytest.mark.parametrize("seed", range(5))
def test_every_case_is_led_tied_or_dominated_and_the_front_is_that_of_the_values(make_record, seed):
    draw = random.Random(seed)
    figures = [(draw.randrange(60, 90) / 100, draw.choice([0.01, 0.05]), draw.randrange(5, 30)) for _ in range(30)]
    found = front(records_at(make_record, figures), "size")
    every = [name for s in found.sets for name in names([s.leader, *s.tied])] + names(found.dominated)
    assert sorted(every) == sorted(f"x{index}" for index in range(30))
    front_by_hand = {
        (a, s) for a, _, s in figures if not any(b >= a and t <= s and (b > a or t < s) for b, _, t in figures)
    }
    leaders = [s.leader for s in found.sets]
    assert sorted((p.quality.value, p.cost.value) for p in leaders) == sorted(front_by_hand)
    assert [p.cost.value for p in leaders] == sorted(p.cost.value for p in leaders)
    for s in found.sets:
        for point in s.tied:
            assert s.leader.quality.value >= point.quality.value
            assert s.leader.cost.value <= point.cost.value


def test_a_worse_case_is_only_tied_where_its_interval_overlaps(make_record):
    records = records_at(make_record, [(0.90, 0.01, 10), (0.89, 0.01, 20), (0.80, 0.01, 20)])
    found = front(records, "size")
    assert [(names([s.leader]), names(s.tied)) for s in found.sets] == [(["x0"], ["x1"])]
    assert names(found.dominated) == ["x2"]


def test_equal_bytes_do_not_save_a_case_whose_accuracy_is_shown_to_be_worse(make_record):
    found = front(records_at(make_record, [(0.90, 0.01, 10), (0.80, 0.01, 10)]), "size")
    assert names(found.dominated) == ["x1"]


def test_of_equal_cases_one_leads_and_the_others_are_tied(make_record):
    found = front(records_at(make_record, [(0.90, 0.01, 10)] * 4), "size")
    assert [(names([s.leader]), names(s.tied)) for s in found.sets] == [(["x0"], ["x1", "x2", "x3"])]


def test_lower_is_better_for_perplexity(make_record):
    records = [
        make_record(
            f"m-{name}-int4-torch",
            **{
                "accuracy.metric": "perplexity",
                "accuracy.better": "lower",
                "accuracy.baseline": 20.0,
                "accuracy.value": value,
                "accuracy.delta": value - 20,
                "accuracy.ci95": [value - 20.5, value - 19.5],
                "size.bytes": 10,
            },
        )
        for name, value in (("good", 21.0), ("bad", 30.0))
    ]
    found = front(records, "size")
    assert names([s.leader for s in found.sets]) == ["good"]
    assert names(found.dominated) == ["bad"]


def test_an_unknown_interval_shows_nothing(make_record):
    records = records_at(make_record, [(0.90, 0.0, 10), (0.10, 0.0, 20)])
    records[1]["accuracy"] |= {"ci95": None, "reason": "too few"}
    assert front(records, "size").dominated == []


def test_without_labels_it_is_agreement_and_cases_without_figures_are_counted(make_record):
    records = records_at(make_record, [(0.9, 0.01, 10), (0.9, 0.01, 20), (0.9, 0.01, 20)])
    for record in records:
        record["accuracy"] = {"reason": "no labels"}
    records[2]["size"] = {"reason": "the file is gone"}
    found = front(records, "size")
    assert (found.quality, found.missing) == ("agreement", 1)
    assert "without both figures: 1" in front_text(found)


def test_one_case_makes_no_front(make_record):
    assert fronts([make_record()]) == []
    assert fronts([]) == []


def test_the_command(make_record, tmp_path, capsys):
    records = records_at(make_record, [(0.90, 0.01, 10), (0.89, 0.01, 20), (0.80, 0.01, 20)])
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"benchmarks": [{"extra_info": {"quant": record}} for record in records]}))
    assert main(["pareto", str(path), "--model", "m"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "m: accuracy against size",
        "  m-x0-int4-torch  90.0 % (89.0 % to 91.0 %) at 1e-05 MB",
        "    not shown to be worse: m-x1-int4-torch",
        "  dominated beyond both intervals: 1",
    ]
    assert main(["pareto", str(path), "--model", "n"]) == 4
    assert capsys.readouterr().err == f"{path} holds no case of 'n'; its models are m.\n"
