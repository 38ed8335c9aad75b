"""The pytest plugin of the gate's own test: it runs only by its marker, and its rates are saved with the run."""

import re
from collections.abc import Callable, Iterator

import pytest

from reports.record import plain

_RATES = pytest.StashKey[list[dict]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RATES] = []
    config.addinivalue_line("markers", "gate: tests the gate itself, for half an hour; it runs only by this marker")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "gate" in re.findall(r"\w+", config.option.markexpr):
        return
    dropped = [item for item in items if item.get_closest_marker("gate")]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if not item.get_closest_marker("gate")]


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
