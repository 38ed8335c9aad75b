"""A soak: the whole default matrix twice over in one process, in a cache too small for it. It runs only by ``-m soak``.

Nothing may be left behind by a round that the one before did not leave, the cache must keep its limit, and what was
measured must be the same again, though most of it had to be made anew.

  pytest benchmarks -m soak
"""

from itertools import pairwise

import pytest

pytestmark = pytest.mark.soak

ROUNDS = 2
GROWTH_BYTES = 50_000_000
"""Of memory from one round to the next: half a megabyte a case, as allocators keep some of what was given back."""


def test_soak(tmp_path, capsys):
    from benchmarks.reliability.soaking import LIMIT, rounds  # imports torch, which collecting does without

    found = []
    for number, done in enumerate(rounds(tmp_path, ROUNDS), start=1):
        with capsys.disabled():
            print(f"\nround {number}: {done}", end="")
        found.append(done)
    assert len(found) == ROUNDS
    for before, after in pairwise(found):
        growth = after.memory_bytes - before.memory_bytes
        assert growth <= GROWTH_BYTES, f"memory grew by {growth / 1e6:.0f} MB"
        for name in ("files", "threads", "children"):
            assert getattr(after, name) <= getattr(before, name), f"a round left more {name} behind"
        assert before.records.keys() == after.records.keys()
        different = [case for case, record in after.records.items() if record != before.records[case]]
        assert not different, f"the records of {different} differ from those of the round before"
    assert max(done.cache_bytes for done in found) <= LIMIT, "the cache outgrew its limit"
