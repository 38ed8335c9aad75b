"""A soak of one case: what a round leaves behind is found, and failures are told."""

import pytest

from benchmarks.reliability.soaking import LIMIT, rounds


def test_rounds_of_one_process_tell_what_they_leave_and_measure_the_same(tmp_path):
    first, second = rounds(tmp_path, 2, "-k", "digits-rtn-int4-torch")
    assert list(first.records) == ["digits-rtn-int4-torch"]
    assert first.records == second.records
    assert first.records["digits-rtn-int4-torch"]["accuracy"]["value"] > 0
    assert "cost" not in first.records["digits-rtn-int4-torch"]
    for done in (first, second):
        assert 0 < done.cache_bytes < LIMIT
        assert done.memory_bytes > 50_000_000
        assert done.files > 2
        assert done.threads > 0
        assert done.children == 0
    assert "1 cases, " in str(second)


def test_a_round_that_fails_ends_the_soak_with_what_pytest_said(tmp_path):
    with pytest.raises(RuntimeError, match="unrecognized arguments: --no-such-option"):
        list(rounds(tmp_path, 2, "--no-such-option"))
