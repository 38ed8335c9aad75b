from collections import namedtuple
from types import SimpleNamespace

import pytest

from benchmarks import load
from benchmarks.load import Load, Watch

Linux = namedtuple("Linux", "user system idle iowait steal guest guest_nice", defaults=(0,) * 7)
MacOS = namedtuple("MacOS", "user nice system idle", defaults=(0,) * 4)


class Machine:
    """Two cores whose counters a test sets."""

    def __init__(self, monkeypatch):
        self.clock = self.own = 0.0
        self.cores, self.allowed = [Linux(), Linux()], {0, 1}
        monkeypatch.setattr(load, "psutil", SimpleNamespace(cpu_times=lambda percpu: list(self.cores)))
        clocks = {"perf_counter": lambda: self.clock, "process_time": lambda: self.own}
        monkeypatch.setattr(load, "time", SimpleNamespace(**clocks))
        monkeypatch.setattr(load, "_cores", lambda: sorted(self.allowed))


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def test_others_use_what_ours_does_not(machine):
    watch = Watch(threads=1)
    machine.clock, machine.own = 2.0, 1.9
    machine.cores = [Linux(user=1.8, system=0.2), Linux(user=0.5, idle=1.4, iowait=0.1)]
    seen = watch.read()
    assert seen.others == pytest.approx((2.5 - 1.9) / 2)
    assert (seen.free, seen.stolen, seen.seconds) == (1, 0, 2.0)
    assert seen.missing == 0
    assert not seen.too_high


def test_only_what_happens_after_the_start_counts(machine):
    machine.clock, machine.own, machine.cores = 100.0, 40.0, [Linux(user=90.0), Linux(user=80.0)]
    watch = Watch(threads=1)
    machine.clock, machine.own, machine.cores = 101.0, 41.0, [Linux(user=91.0), Linux(user=80.0, idle=1.0)]
    assert watch.read().others == pytest.approx(0)


def test_cores_that_this_process_may_not_use_do_not_count(machine):
    machine.allowed = {1}
    watch = Watch(threads=1)
    machine.clock, machine.own = 1.0, 0.9
    machine.cores = [Linux(user=1.0), Linux(user=0.95, idle=0.05)]
    seen = watch.read()
    assert (seen.others, seen.free) == (pytest.approx(0.05), 0)
    assert not seen.too_high


def test_a_guest_is_not_counted_twice(machine):
    watch = Watch(threads=1)
    machine.clock, machine.own = 1.0, 0.5
    machine.cores = [Linux(user=1.0, guest=0.4), Linux(idle=1.0)]  # what a guest uses is in the user's time already
    assert watch.read().others == pytest.approx(0.5)


def test_macos_counts_neither_waiting_nor_theft(machine):
    machine.cores = [MacOS(), MacOS()]
    watch = Watch(threads=1)
    machine.clock, machine.own = 1.0, 1.0
    machine.cores = [MacOS(user=0.9, system=0.1), MacOS(user=0.6, nice=0.1, idle=0.3)]
    seen = watch.read()
    assert (seen.others, seen.stolen) == (pytest.approx(0.7), 0)


def test_more_threads_than_cores_leave_none(machine):
    watch = Watch(threads=5)
    machine.clock = 1.0
    assert watch.read().free == 0


def test_no_time_at_all_is_no_load(machine):
    assert not Watch(threads=1).read().too_high


@pytest.mark.parametrize(("programs", "too_high"), [(0, False), (1, False), (2, True), (3, True), (10, True)])
def test_programs_that_share_two_cores_fairly(programs, too_high):
    """Each of n programs and ours, of one thread, gets its share of two cores, but no more than one."""
    ours = min(1.0, 2 / (programs + 1))
    others = min(float(programs), 2 - ours)
    assert Load(others, free=1, stolen=0.0, seconds=2.0).too_high is too_high


@pytest.mark.parametrize(("programs", "too_high"), [(1, False), (15, False), (20, True)])
def test_programs_that_share_sixteen_cores_fairly(programs, too_high):
    ours = min(1.0, 16 / (programs + 1))
    assert Load(min(programs, 16 - ours), free=15, stolen=0.0, seconds=2.0).too_high is too_high


def test_what_the_host_steals_is_missing_too(machine):
    watch = Watch(threads=1)
    machine.clock, machine.own = 1.0, 0.6
    machine.cores = [Linux(user=0.6, steal=0.4), Linux(user=1.0)]
    seen = watch.read()
    assert (seen.others, seen.stolen) == (pytest.approx(1.0), pytest.approx(0.4))
    assert seen.too_high


def test_a_moment_is_too_short_to_count():
    """Counters of a hundredth of a second cannot tell anything of a twentieth."""
    assert Load(1.3, free=1, stolen=0.0, seconds=2.0).too_high
    assert not Load(1.3, free=1, stolen=0.0, seconds=0.05).too_high


def test_a_real_machine_is_read():
    watch = Watch(threads=1)
    sum(range(2_000_000))
    seen = watch.read()
    assert seen.others >= 0
    assert seen.free >= 0
    assert seen.seconds > 0
