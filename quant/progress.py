"""Progress of long work: which step of how many, and the time that is left."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Report = Callable[[str], None]

_REPORT: ContextVar[tuple[str, Report | None]] = ContextVar("report", default=("", None))


@contextmanager
def reporting(title: str, report: Report | None) -> Iterator[None]:
    """Send the progress of all steps made inside to ``report``, each line beginning with ``title``."""
    token = _REPORT.set((title, report))
    try:
        yield
    finally:
        _REPORT.reset(token)


def steps(items: Sequence[T], noun: str) -> Iterator[T]:
    """Yield ``items``, reporting before each: "gptq: layer 7 of 36, 12 s left"."""
    title, report = _REPORT.get()
    start = time.perf_counter()
    for position, item in enumerate(items):
        if report is not None:
            left = (time.perf_counter() - start) / position * (len(items) - position) if position else None
            remaining = "" if left is None else f", {left:.0f} s left"
            report(f"{title}: {noun} {position + 1} of {len(items)}{remaining}")
        yield item
