"""The table of generating cases."""

import pytest

from reports.generation import generation_table, generation_text
from reports.record import validate
from reports.summary import summary

PREFILL = {"rounds": 20, "refused": False, "ratio": 1.05, "ci95": [1.04, 1.06], "p50": 0.016, "baseline_p50": 0.0168}


@pytest.fixture
def make_generated(make_record):
    """A record of a case that generates a token in so many seconds."""

    def make(case="reviews_gpt-rtn-int4-torch", seconds=0.002, **changes):
        record = make_record(case, kind="generate", **{"speed.p50": seconds, **changes})
        record["speed"]["tokens_per_second"] = 1 / seconds
        record["prefill"] = {**PREFILL, "tokens_per_second": 128 / PREFILL["p50"]}
        record["generation"] = {"prompt_tokens": 128, "new_tokens": 32, "cache_bytes": 1_320_000}
        return record

    return make


def test_a_row_has_both_speeds_and_how_often_float_chose_the_same(make_generated):
    assert validate(make_generated()) == []
    row = next(line for line in generation_table([make_generated()]).splitlines() if line.startswith("reviews_gpt"))
    assert row.split()[:8] == ["reviews_gpt-rtn-int4-torch", "500", "2.00", "1.87×", "±.04", "8000", "1.05×", "±.01"]
    assert row.split()[8:] == ["97.0", "1.32", "measured"]


def test_a_live_row_says_the_same(make_generated):
    expected = "500 tokens/s  1.87× ±.04, prompt 8000 tokens/s  1.05× ±.01, 97.0 % as float, cache 1.32 MB  measured"
    assert generation_text(make_generated()) == expected


def test_what_was_not_timed_is_a_dash_and_explained(make_generated):
    record = make_generated(speed={"reason": "Core ML runs on macOS only.", "p50": None}, evidence="evaluated")
    record["prefill"] = {"reason": "Core ML runs on macOS only."}
    record["speed"] = {"reason": "Core ML runs on macOS only."}
    assert validate(record) == []
    drawn = generation_table([record])
    assert drawn.splitlines()[2].split() == ["reviews_gpt-rtn-int4-torch", *["–"] * 5, "97.0", "1.32", "evaluated"]
    assert "– Core ML runs on macOS only." in drawn
    assert "tokens/s" not in generation_text(record)


def test_they_have_a_table_of_their_own_beside_the_others(make_generated, make_record):
    drawn = summary([make_record("digits-rtn-int4-torch"), make_generated()])
    first, second = drawn.index("digits-rtn"), drawn.index("reviews_gpt-rtn-int4-torch")
    assert first < drawn.index("tokens/s") < second


def test_a_generating_record_needs_its_own_sections(make_record, make_generated):
    problems = validate(make_record(kind="generate"))
    assert [problem.partition(" ")[0] for problem in problems] == ["generation", "prefill"]
    record = make_generated()
    del record["generation"]["cache_bytes"]
    assert validate(record) == ["generation.cache_bytes is missing."]
