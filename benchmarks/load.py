"""How busy other programs, and other tenants of a virtual machine's host, keep the cores that this process may use."""

import os
import time
from dataclasses import dataclass

import psutil

TOLERATED = 0.15
"""Cores' worth of time that may be missing.

Where every core is taken, what is missing is the share of its time that a thread of ours waits for one. One program
beside ours for each core that is left misses nothing; another one more, on two cores, a third.
"""
_TICK = 0.01
"""Seconds in which the operating system counts the use of a core."""


@dataclass(frozen=True)
class Load:
    """The use of cores over some seconds, in cores.

    others   used by other programs
    free     that ours left to them: those it may use, less one for each of its threads
    stolen   that a virtual machine's host gave to somebody else, as far as it says
    seconds  how long it was watched
    """

    others: float
    free: int
    stolen: float
    seconds: float

    @property
    def missing(self) -> float:
        """Cores that ours lacked, beyond what the counting of so short a time can tell."""
        return max(0.0, self.others - self.free + self.stolen - (self.free + 1) * _TICK / self.seconds)

    @property
    def too_high(self) -> bool:
        return self.missing > TOLERATED


class Watch:
    """Counts from when it is made."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._start = _now()

    def read(self) -> Load:
        """Return the load since the start; call it from a process that used nothing but its ``threads``."""
        clock, own, busy, stolen = (after - before for after, before in zip(_now(), self._start, strict=True))
        clock = max(clock, _TICK)
        cores = len(_cores())
        return Load(
            others=max(0.0, busy - own) / clock,
            free=max(0, cores - self._threads),
            stolen=stolen / clock,
            seconds=clock,
        )


def _now() -> tuple[float, float, float, float]:
    """Return the clock, this process's use of cores, everybody's use, and what was stolen, in seconds."""
    counted = psutil.cpu_times(percpu=True)
    # Some systems count fewer cores than they number.
    uses = [counted[core] for core in _cores() if core < len(counted)]
    stolen = sum(getattr(use, "steal", 0.0) for use in uses)
    idle = sum(use.idle + getattr(use, "iowait", 0.0) for use in uses)
    # A guest's time is contained in that of its user.
    guests = sum(getattr(use, "guest", 0.0) + getattr(use, "guest_nice", 0.0) for use in uses)
    return time.perf_counter(), time.process_time(), sum(map(sum, uses)) - idle - stolen - guests, stolen


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
