"""The pytest plugin of the suite's own tests: they run only by their markers, and the gate's rates are saved."""

import re
from collections.abc import Callable, Iterator

import pytest

from reports.record import plain

_RATES = pytest.StashKey[list[dict]]()
_MARKERS = {
    "gate": "tests the gate itself, for half an hour",
    "soak": "runs the whole default matrix over and over in a small cache, for half an hour",
}


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RATES] = []
    for marker, what in _MARKERS.items():
        config.addinivalue_line("markers", f"{marker}: {what}; it runs only by this marker")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unasked = set(_MARKERS) - set(re.findall(r"\w+", config.option.markexpr))
    dropped = [item for item in items if any(map(item.get_closest_marker, unasked))]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]


@pytest.fixture
def publish(benchmark, pytestconfig: pytest.Config) -> Iterator[Callable]:
    """``publish(rate, limits=..., losses=...)`` puts a rate into the saved run and the summary, and returns it."""
    rates = benchmark.extra_info["reliability"] = []

    def add(rate: object, **facts: object) -> object:
        found = plain({**rate.as_dict(), **facts})
        rates.append(found)
        pytestconfig.stash[_RATES].append(found)
        return rate

    yield add
    benchmark.pedantic(rates.copy)  # pytest-benchmark saves only what it has timed


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    from reports.reliability import reliability_table

    if config.stash[_RATES]:
        terminalreporter.section("reliability of the gate", sep="-")
        terminalreporter.write_line(reliability_table(config.stash[_RATES]))
