"""Copying as a measure: what is copied, counted and said. No figure is judged."""

import numpy as np
import pytest

from quant.hardware import Cache, Machine, Memory, Processor, bandwidth


def machine(available=None, limit=None, cache=2**20, allowed=1, quota=None):
    caches = (Cache(1, "data", 2**15, 4), Cache(3, "both", cache, 2))
    return Machine(
        Processor("chip", "x86_64", allowed=allowed, quota=quota, caches=caches), Memory(None, available, limit), ()
    )


@pytest.mark.parametrize(
    ("caches", "memory", "expected"),
    [
        (2**20, Memory(available=2**40), 2**28),
        (2**28, Memory(available=2**40), 2**29),
        (2**40, Memory(available=2**40), 2**30),
        (2**27, Memory(available=2**30), 2**27),
        (2**27, Memory(total=2**40, available=2**40, limit=2**28), 2**25),
        (2**20, Memory(available=1), 2**20),
        (0, Memory(), 2**25),
    ],
    ids=["small_caches", "large_caches", "huge_caches", "little_memory", "limited", "none_left", "unknown"],
)
def test_arrays_outgrow_the_caches_but_not_the_memory(caches, memory, expected):
    assert bandwidth._size(caches, Machine(Processor("chip", "x86_64"), memory, ())) == expected


@pytest.mark.parametrize(
    ("allowed", "quota", "threads"), [(1, None, 1), (4, None, 4), (4, 2.5, 2), (4, 0.5, 1), (None, None, 1)]
)
def test_every_byte_is_copied_on_the_threads_that_may_be_used(monkeypatch, allowed, quota, threads):
    copies = []

    def rate(work, size):
        before = len(copies)
        work()
        assert sum(copies[before:]) * 2 == size
        return 1e9 * len(copies[before:])

    copy = np.copyto
    monkeypatch.setattr(np, "copyto", lambda target, source: (copies.append(target.size), copy(target, source)))
    monkeypatch.setattr(bandwidth, "_rate", rate)
    measured = bandwidth.measure(machine(available=2**24, cache=2**14, allowed=allowed, quota=quota))
    assert (measured.one_thread, measured.all_threads, measured.threads) == (1e9, 1e9 * threads, threads)
    assert not measured.cached


def test_the_best_pass_counts(monkeypatch):
    clock = iter([0.0, 4.0, 4.0, 6.0, 6.0, 9.0, 9.0, 19.0, 19.0, 24.0])
    monkeypatch.setattr(bandwidth.time, "perf_counter", lambda: next(clock))
    assert bandwidth._rate(lambda: None, 10) == 5.0


def test_it_says_what_it_measured():
    assert str(bandwidth.Bandwidth(1e10, 2e10, 4, False)) == "10.0 GB/s copying on one thread, 20.0 on 4"
    assert str(bandwidth.Bandwidth(1e10, 1e10, 1, True)) == "10.0 GB/s copying on one thread, partly from caches"


def test_arrays_that_fit_caches_are_owned_up_to():
    assert bandwidth.measure(machine(available=2**23, cache=2**20)).cached
