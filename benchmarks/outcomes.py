"""What becomes of every case of a run: planned, left out, skipped, failed, measured; here and in xdist's workers.

A worker sends the plan with its first report and the record with that of its case, so the process that reports knows
all of it, even where a worker dies.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest

from reports.record import Record

KEY = pytest.StashKey["Outcomes"]()
RECORD = pytest.StashKey[Record]()
"""In an item's stash: the record of its case, once it is made and valid."""


@dataclass(eq=False)  # pluggy keeps plugins in sets
class Outcomes:
    """The cases of this process and of its workers.

    planned      node id -> name of the case, of those that are to run
    deselected   names of cases left out by the selection or by the shard
    records      node id -> record of a case that passed
    skipped      node id -> why
    failed       node id -> how, in one line
    ended        node ids of the cases whose tests came to their end, however
    interrupted  why the run did not come to its end
    """

    name_of: Callable[[pytest.Item], str]
    planned: dict[str, str] = field(default_factory=dict)
    deselected: list[str] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    interrupted: str | None = None
    _sent: bool = False

    @property
    def complete(self) -> bool:
        """Whether every planned case came to its end."""
        return self.interrupted is None and self.planned.keys() <= self.ended

    def as_dict(self) -> dict[str, object]:
        """Return what a saved run tells of its cases, in plain JSON types."""
        return {
            "planned": list(self.planned.values()),
            "deselected": self.deselected,
            "skipped": self._by_name(self.skipped),
            "failed": self._by_name(self.failed),
            "complete": self.complete,
        }

    def _by_name(self, reasons: dict[str, str]) -> dict[str, str]:
        return {self.planned[node]: reason for node, reason in reasons.items() if node in self.planned}

    @pytest.hookimpl
    def pytest_deselected(self, items: Iterable[pytest.Item]) -> None:
        self.deselected += [self.name_of(item) for item in items if is_case(item)]

    @pytest.hookimpl
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.planned |= {item.nodeid: self.name_of(item) for item in session.items if is_case(item)}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> pytest.TestReport:
        report = yield
        if call.when == "call" and report.passed and RECORD in item.stash:
            report.quant_record = item.stash[RECORD]  # plain JSON, so xdist carries it
        if hasattr(item.config, "workerinput") and not self._sent:
            report.quant_plan, self._sent = [self.planned, self.deselected], True
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if hasattr(report, "quant_plan") and not self.planned:
            self.planned, self.deselected = report.quant_plan
        node = report.nodeid
        if report.failed:
            self.records.pop(node, None)
            self.skipped.pop(node, None)
            self.failed.setdefault(node, _first_line(report))
        elif report.skipped:
            self.skipped[node] = _first_line(report)
        elif hasattr(report, "quant_record"):
            self.records[node] = report.quant_record
        if report.when not in ("setup", "call"):  # a worker that crashed reports neither of the three
            self.ended.add(node)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object, error: object) -> None:
        if error:
            self.interrupted = f"worker {node.gateway.id} crashed"

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> object:
        """Note how the run ended before anything is saved."""
        broken = {
            pytest.ExitCode.INTERRUPTED: "the run was interrupted",
            pytest.ExitCode.INTERNAL_ERROR: "pytest failed with an internal error",
        }
        self.interrupted = self.interrupted or broken.get(exitstatus)
        return (yield)


def is_case(item: pytest.Item) -> bool:
    return item.get_closest_marker("case") is not None


def outcomes(config: pytest.Config) -> Outcomes:
    return config.stash[KEY]


def _first_line(report: pytest.TestReport) -> str:
    """Why a test was skipped or how it failed: the message of the exception, its first line."""
    cause = report.longrepr
    if isinstance(cause, tuple):
        text = cause[2].removeprefix("Skipped: ")
    else:
        crash = getattr(cause, "reprcrash", None)
        text = crash.message if crash else str(cause)
    return next((line.strip() for line in text.splitlines() if line.strip()), report.outcome)
