from types import SimpleNamespace

import pytest

from benchmarks import searching
from benchmarks.candidates import Rung
from benchmarks.explaining import explanation, recipe_document
from benchmarks.losses import Losses, drop_of, parts_of
from benchmarks.prices import Price
from benchmarks.searching import Bounds, Search
from quant.search import COMES_AFTER, TIME_IS_OVER, OutOfTime
from tests.benchmarks.searchable import FakeWorkshop, case_of, make_model

FAST = Price(900, 1.0, 0.9, 1.1, 2.0, 2.0)
SMALL, MIDDLE, LARGE = Price(100, reason="simulated"), Price(200, reason="simulated"), Price(300, reason="simulated")
NO_BOUNDS = Bounds()


def rung(*methods, bits="int4", backend="torch"):
    return Rung(tuple(case_of(method, bits, backend) for method in methods))


@pytest.fixture
def run(monkeypatch):
    """Searches rungs of given prices, where every case is wrong on a given share of the samples."""

    def search(prices, wrong, bounds=NO_BOUNDS, text="1pp", time=None, own=None):
        model = make_model()
        drop = drop_of(model, text)
        workshop = FakeWorkshop(model, wrong)
        of_case = {case: price for rung, price in prices.items() for case in rung.cases} | (own or {})
        monkeypatch.setattr(
            searching, "price", lambda workshop, artifact, samples, busy: asked(of_case[artifact.case], busy)
        )
        monkeypatch.setattr(
            searching, "recipe_of", lambda quantized, batches, granularity: {"method": quantized.method}
        )
        busy_when_asked: list[bool] = []

        def asked(price, busy):
            busy_when_asked.append(busy)
            return price

        answer, left = workshop.answers, iter(range(time or 10**6))

        def timed(artifact, samples):
            if next(left, None) is None:
                raise OutOfTime
            return answer(artifact, samples)

        workshop.answers = timed
        losses = Losses(workshop, model, drop, parts_of(model, drop))
        lines: list[str] = []
        found = Search(workshop, losses, list(prices), bounds, lines.append).run()
        known = {"workshop": workshop, "drop": drop, "bounds": bounds, "busy": busy_when_asked, "lines": lines}
        return SimpleNamespace(found=found, **known)

    return search


def outcomes(found):
    return {str(case): step.outcome for case, step in found.steps.items()}


def test_the_fastest_that_holds_is_chosen_and_nothing_behind_it_is_judged(run):
    fast, small = rung("static", bits="int8"), rung("mse")
    result = run({small: SMALL, fast: FAST}, {fast.first: 0.002})
    assert result.found.chosen.case == fast.first
    assert result.found.steps[small.first].reason == COMES_AFTER
    assert small.first not in [case for case, _ in result.workshop.answered]
    assert result.found.chosen.artifact_sha256 == f"content of {fast.first}"
    assert result.found.chosen.verified.samples > 1000


def test_without_a_fast_one_the_smallest_that_holds_is_chosen(run):
    small, middle, large = (rung("mse", bits=bits) for bits in ("int3", "int4", "int5"))
    result = run({large: LARGE, small: SMALL, middle: MIDDLE}, {small.first: 0.3})
    assert list(outcomes(result.found).values()) == ["loses too much", "chosen", "not judged"]
    assert result.found.chosen.case == middle.first


def test_a_better_method_is_tried_where_the_quick_one_failed_and_something_dearer_holds(run):
    small, middle = rung("mse", "gptq", "adaround"), rung("mse", bits="int5")
    result = run({small: SMALL, middle: MIDDLE}, {small.first: 0.05})
    assert result.found.chosen.case == case_of("gptq")
    assert result.found.steps[middle.first].outcome == "chosen"  # of the first wave
    assert case_of("adaround") not in result.found.steps


def test_a_better_method_that_costs_more_itself_does_not_replace_what_holds(run):
    small, middle = rung("mse", "gptq"), rung("mse", bits="int5")
    dear = {case_of("gptq"): Price(250, reason="simulated")}
    result = run({small: SMALL, middle: MIDDLE}, {small.first: 0.05}, own=dear)
    assert result.found.chosen.case == middle.first
    assert result.found.steps[case_of("gptq")].reason == "itself no better than toy-mse-int5-torch"
    assert case_of("gptq") not in [case for case, _ in result.workshop.answered]


def test_what_takes_minutes_is_tried_only_while_nothing_holds(run):
    small, middle = rung("mse", "gptq", "adaround"), rung("mse", bits="int5")
    bad = {case_of("mse"): 0.05, case_of("gptq"): 0.04}
    kept = run({small: SMALL, middle: MIDDLE}, bad)
    assert kept.found.chosen.case == middle.first
    assert case_of("adaround") not in kept.found.steps
    alone = run({small: SMALL, middle: MIDDLE}, {**bad, middle.first: 0.05})
    assert alone.found.chosen.case == case_of("adaround")


def test_a_better_method_without_hope_is_not_made(run):
    hopeless, lossy, good = rung("mse", "gptq", bits="int3"), rung("mse"), rung("mse", bits="int8")
    elsewhere = rung("mse", "gptq", bits="int3", backend="mlx")
    wrong = {hopeless.first: 0.9, lossy.first: 0.03}
    result = run({hopeless: SMALL, elsewhere: SMALL, lossy: MIDDLE, good: LARGE}, wrong)
    for case in (hopeless.cases[1], elsewhere.cases[1]):
        assert result.found.steps[case].outcome == "not judged"
        assert "at best" in result.found.steps[case].reason
    assert result.found.chosen.case == good.first


def test_the_same_numbers_are_not_judged_on_another_backend_once_they_failed(run):
    first, again = rung("mse"), rung("mse", backend="mlx")
    result = run({first: SMALL, again: MIDDLE}, {first.first: 0.05})
    assert result.found.steps[again.first].reason == "the same numbers failed as toy-mse-int4-torch"
    assert again.first not in [case for case, _ in result.workshop.answered]
    text = explanation(result.found, result.drop, result.bounds)
    assert "1 more hold the same numbers as one that failed, on another backend." in text


def test_bounds_leave_out_what_is_too_large_too_slow_or_not_timed(run):
    fast, small, large = rung("static", bits="int8"), rung("mse"), rung("mse", bits="int8")
    by_size = run({fast: FAST, small: SMALL, large: LARGE}, {}, Bounds(size=250))
    assert by_size.found.chosen.case == small.first
    assert by_size.found.refused == {fast.first: "too large: 0.0009 MB", large.first: "too large: 0.0003 MB"}
    by_time = run({fast: FAST, small: SMALL}, {}, Bounds(latency=1.2))
    assert by_time.found.chosen.case == fast.first
    assert by_time.found.refused == {small.first: "no time is known: simulated"}
    assert run({fast: FAST}, {}, Bounds(latency=1.05)).found.refused[fast.first].startswith("too slow: 1e+03 ms")


def test_times_that_were_refused_are_told(run):
    busy = rung("static", bits="int8")
    result = run({busy: Price(900, reason="the cores were busy", refused=True), rung("mse"): SMALL}, {})
    assert "1 could not be timed and may be faster: the cores were busy." in explanation(
        result.found, result.drop, result.bounds
    )


def test_after_three_refused_times_no_more_are_taken(run):
    refused = Price(900, reason="the cores were busy", refused=True)
    result = run({rung("mse", bits=bits): refused for bits in ("int3", "int4", "int5", "int6", "int8")}, {})
    assert result.busy[:5] == [False, False, False, True, True]


def test_where_nothing_fits_one_sentence_says_why(run):
    result = run({rung("mse"): SMALL, rung("static", bits="int8"): FAST}, {}, Bounds(size=10))
    assert result.found.chosen is None
    assert explanation(result.found, result.drop, result.bounds) == "No candidate fits (2 too large)."


def test_where_nothing_holds_the_closest_is_told(run):
    bad, worse = rung("mse", bits="int5"), rung("mse")
    result = run({worse: SMALL, bad: MIDDLE}, {bad.first: 0.03, worse.first: 0.2})
    assert result.found.chosen is None
    text = explanation(result.found, result.drop, result.bounds)
    assert text.startswith(
        "No candidate was shown to lose at most 1 point of accuracy; the closest is toy-mse-int5-torch"
    )


def test_time_that_ends_leaves_the_best_so_far(run):
    small, middle = rung("mse", "gptq"), rung("mse", bits="int5")
    full = run({small: SMALL, middle: MIDDLE}, {small.first: 0.05})
    pieces = len(full.workshop.answered)
    cut = run({small: SMALL, middle: MIDDLE}, {small.first: 0.05}, time=pieces - 2)
    assert cut.found.over
    assert cut.found.chosen.case == middle.first
    assert cut.found.steps[case_of("gptq")].reason == TIME_IS_OVER
    assert "Time was over" in explanation(cut.found, cut.drop, cut.bounds)
    nothing = run({small: SMALL, middle: MIDDLE}, {small.first: 0.05}, time=3)
    assert nothing.found.chosen is None
    assert "run the same command again" in explanation(nothing.found, nothing.drop, nothing.bounds)


def test_a_backend_that_fails_does_not_stop_the_others(run):
    broken, good = rung("mse", backend="mlx"), rung("mse", bits="int5")
    result = run({broken: SMALL, good: MIDDLE}, {broken.first: RuntimeError("no converter\nfor it")})
    assert result.found.refused == {broken.first: "failed: no converter"}
    assert result.found.chosen.case == good.first


def test_an_error_that_says_nothing_is_named(run):
    broken, good = rung("mse", backend="mlx"), rung("mse", bits="int5")
    result = run({broken: SMALL, good: MIDDLE}, {broken.first: KeyError("linear_0")})
    assert result.found.refused == {broken.first: "failed: KeyError: 'linear_0'"}


def test_one_reason_for_many_cases_is_told_once(run):
    broken = [rung("mse", bits=bits, backend="mlx") for bits in ("int3", "int4", "int5", "int6")]
    failures = {one.first: RuntimeError("no operator bilinear.") for one in broken}
    result = run({**dict.fromkeys(broken, SMALL), rung("mse", bits="int8"): MIDDLE}, failures)
    text = explanation(result.found, result.drop, result.bounds)
    assert text.count("no operator bilinear") == 1
    names = "toy-mse-int3-mlx, toy-mse-int4-mlx, toy-mse-int5-mlx and 1 more"
    assert f"{names}: failed: no operator bilinear.\n" in text
    assert result.lines.count("toy-mse-int4-mlx: as toy-mse-int3-mlx") == 1


def test_what_samples_leave_open_is_said_with_the_remedy(run):
    open_case = rung("mse")
    result = run({open_case: SMALL}, {open_case.first: 0.009})  # within the point, but not shown to be
    text = explanation(result.found, result.drop, result.bounds)
    assert "not shown to hold: loses 0.9" in text
    assert "samples leave it open: give more to judge it on, or allow a larger --max-drop.\n" in text
    lossy = run({open_case: SMALL}, {open_case.first: 0.3})
    assert "leave it open" not in explanation(lossy.found, lossy.drop, lossy.bounds)


def test_a_runtime_that_fails_while_it_answers_does_not_stop_the_others(run, monkeypatch):
    broken, good = rung("mse"), rung("mse", bits="int5")
    answers = FakeWorkshop.answers

    def failing(workshop, artifact, samples):
        if artifact.case == broken.first:
            raise RuntimeError("the session died")
        return answers(workshop, artifact, samples)

    monkeypatch.setattr(FakeWorkshop, "answers", failing)
    result = run({broken: SMALL, good: MIDDLE}, {})
    assert result.found.steps[broken.first].reason == "the session died"
    assert result.found.chosen.case == good.first


def test_samples_are_counted_beside_those_of_judging_everything(run):
    small, middle = rung("mse", "gptq"), rung("mse", bits="int5")
    result = run({small: SMALL, middle: MIDDLE}, {small.first: 0.3, case_of("gptq"): 0.3})
    assert result.found.answered == sum(count for _, count in result.workshop.answered)
    assert result.found.exhaustive == (3 + 1) * 1902
    assert f"{result.found.answered:,} samples were evaluated" in explanation(result.found, result.drop, NO_BOUNDS)


def test_the_recipe_holds_what_was_verified_and_why(run):
    small, middle = rung("mse", "gptq"), rung("mse", bits="int5")
    wrong = {small.first: 0.3, case_of("gptq"): 0.3, middle.first: 0.002}
    result = run({small: SMALL, middle: MIDDLE}, wrong, Bounds(size=1000))
    document = recipe_document(result.found, result.drop, result.bounds)
    assert (document["method"], document["model"], document["backend"]) == ("mse", "toy", "torch")
    assert document["verified"]["samples"] == result.found.chosen.verified.samples
    assert document["verified"]["ci95"][1] <= document["verified"]["tolerated"] == 1.0
    assert document["speed"] == {"reason": "simulated"}
    assert document["alternatives"]["toy-mse-int4-torch"].startswith("loses too much")
    assert document["reasons"][0].startswith("Ship toy-mse-int5-torch")
