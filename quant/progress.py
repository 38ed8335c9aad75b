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


def is_reported() -> bool:
    """Whether anybody listens."""
    return _REPORT.get()[1] is not None


def tell(text: str) -> None:
    """Report a line of progress."""
    title, report = _REPORT.get()
    if report is not None:
        report(f"{title}: {text}")


def steps(items: Sequence[T], noun: str, note: Callable[[], str] = lambda: "", total: int | None = None) -> Iterator[T]:
    """Yield ``items``, reporting before each: "gptq: layer 7 of 36, 12 s left".

    Args:
        note: asked before each item for what else there is to say, such as ", loss 0.31".
        total: how many items there were at first, where ``items`` are only the last of them.
    """
    start, done = time.perf_counter(), 0 if total is None else total - len(items)
    for position, item in enumerate(items):
        if is_reported():
            left = (time.perf_counter() - start) / position * (len(items) - position) if position else None
            remaining = "" if left is None else f", {left:.0f} s left"
            tell(f"{noun} {done + position + 1} of {done + len(items)}{note()}{remaining}")
        yield item
