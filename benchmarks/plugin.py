"""The pytest plugin: options, the cases as parameters, recording into pytest-benchmark's JSON, and the table.

A test that takes ``case`` and ``workshop`` runs once for every combination of the matrix. What it measured goes through
``pytest_quant_record`` into ``extra_info["quant"]`` of its benchmark, whether it ran here or in an xdist worker.
Loading this plugin loads those of saving, gating, reporting and distribution too.
"""

import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest

from benchmarks import environment, hookspecs, outcomes
from benchmarks.durations import known_seconds, remember
from benchmarks.matrix import Case, generators, matrix, models, quantizers
from benchmarks.outcomes import is_case
from benchmarks.peers import PeerCase, peer_cases
from benchmarks.planning import NO_CASE, plan
from benchmarks.progress import LiveLines
from fixtures.options import count, points, seconds
from quant.backends import targets
from quant.methods import methods
from reports.costs import cost_text
from reports.generation import generation_text
from reports.machines import differences
from reports.record import Record, case_id, record_name, validate
from reports.summary import summary
from reports.tables import delta_text, memory_text, metric_text, speed_text

if TYPE_CHECKING:
    from benchmarks.costing import CostMeasurement
    from benchmarks.generating import Decoders
    from benchmarks.measurement import Measurement
    from benchmarks.trials import Trials
    from benchmarks.workshop import Workshop
    from fixtures.cache import Cache
    from fixtures.model import Samples

pytest_plugins = (
    "benchmarks.saving",
    "benchmarks.gating",
    "benchmarks.reporting",
    "benchmarks.distribution",
    "benchmarks.own",
    "benchmarks.choosing",
)

_CASES: dict[str, Callable[[], Sequence[Case | PeerCase]]] = {
    "inference": lambda: matrix()[0],
    "generate": generators,
    "quantize": quantizers,
    "peer": peer_cases,
}
"""The cases of each kind. A kind other than inference runs only where its marker, or its file, is asked for."""
_KIND_MARKERS = {
    "generate": "times a language model token by token",
    "quantize": "times a quantizer",
    "peer": "tries another library's quantizer",
}
_NOTES = pytest.StashKey[list[str]]()
_LINES = pytest.StashKey[LiveLines]()


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("quantization benchmarks")
    group.addoption("--threads", type=count, default=1, metavar="N", help="threads of every runtime (default: 1)")
    group.addoption(
        "--batch", type=count, default=1, metavar="N", help="samples per call, judged and timed (default: 1)"
    )
    group.addoption(
        "--time-budget",
        type=seconds,
        default=2.0,
        metavar="SECONDS",
        help="how long the interleaved rounds of a case are timed (default: 2), three times as long where they scatter",
    )
    group.addoption(
        "--case-seconds",
        type=seconds,
        default=300.0,
        metavar="SECONDS",
        help="stop judging a case's samples after so long and mark its record truncated (default: 300)",
    )
    group.addoption(
        "--max-drop",
        type=points,
        default=0.01,
        metavar="DROP",
        help="the most that an adaptive case may lose against float, with 95 %% confidence (default: 1pp)",
    )
    group.addoption(
        "--memory",
        action="store_true",
        help="measure the peak memory of each case and of float, in processes of their own",
    )
    group.addoption(
        "--list-unsupported",
        action="store_true",
        help="print every combination that is not generated, with the reason, and exit",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    environment.pin_threads(config.getoption("threads"))
    try:
        _ = models(), methods(), targets()
    except ValueError as error:  # a file that was added to one of their folders
        raise pytest.UsageError(str(error)) from None
    config.stash[_NOTES] = []
    config.stash[outcomes.KEY] = outcomes.Outcomes(_name)
    config.pluginmanager.register(config.stash[outcomes.KEY], "quant-outcomes")
    config.addinivalue_line("markers", "case(model, method, bits, backend): the axes of a benchmark case")
    config.addinivalue_line("markers", "core: runs without any selection")
    config.addinivalue_line("markers", "full: every case of inference")
    for kind, what in _KIND_MARKERS.items():
        config.addinivalue_line(
            "markers", f"{kind}: {what}; such cases run only where this marker or the file is named"
        )


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if not config.getoption("list_unsupported"):
        return None
    for entry in matrix()[1]:
        print(f"{entry.case}: {entry.reason.rstrip('.')}.")
    return 0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"case", "workshop"} <= set(metafunc.fixturenames):
        kind = _kind(metafunc.definition)
        metafunc.parametrize("case", [_parameter(case, kind) for case in _CASES[kind]()])


def _parameter(case: Case | PeerCase, kind: str) -> pytest.param:
    axes = {"model": case.model, "method": case.method, "bits": case.bits, "backend": case.backend}
    marks = [pytest.mark.case(**axes), pytest.mark.benchmark(disable_gc=True)]
    if kind == "inference":
        marks.append(pytest.mark.full)
    if case.core:
        marks.append(pytest.mark.core)
    missing = case.missing()
    if missing:
        marks.append(pytest.mark.skip(reason=f"not installed: {missing}"))
    return pytest.param(case, id=case.id, marks=marks)


def _kind(item: pytest.Function) -> str:
    """Return what is measured: the kind whose marker the test has, else inference."""
    return next((kind for kind in _CASES if item.get_closest_marker(kind)), "inference")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without any selection only the core cases run; other kinds than inference only where they are asked for."""
    selected = config.option.keyword or config.option.markexpr or any("::" in argument for argument in config.args)
    cases = [item for item in items if is_case(item) or _kind(item) != "inference"]
    kept = [item for item in cases if _is_asked_for(item) and (selected or item.get_closest_marker("core"))]
    dropped = set(cases) - set(kept)
    if dropped:
        config.hook.pytest_deselected(items=[item for item in cases if item in dropped])
        items[:] = [item for item in items if item not in dropped]


def _is_asked_for(item: pytest.Item) -> bool:
    kind = _kind(item)
    if kind == "inference" or kind in re.findall(r"\w+", item.config.option.markexpr):
        return True
    invoked_in = item.config.invocation_params.dir
    return item.path in [invoked_in / argument.partition("::")[0] for argument in item.config.args]


def _name(item: pytest.Item) -> str:
    """Return the id of a case, preceded by its kind if that is not inference."""
    kind = _kind(item)
    return item.callspec.id if kind == "inference" else f"{kind}:{item.callspec.id}"


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    if not items and outcomes.outcomes(config).deselected:
        return [NO_CASE]
    cases = {_name(item): item.callspec.params["case"] for item in items if is_case(item)}
    return plan(cases, known_seconds(config)) if cases else []


@pytest.fixture(scope="session")
def workshop(pytestconfig: pytest.Config, quant_cache: "Cache") -> "Workshop":
    """Makes models, tables, artefacts and outputs, each once."""
    from benchmarks import tuned
    from benchmarks.workshop import Settings, Workshop
    from fixtures.model import DataOptions

    option = pytestconfig.getoption
    settings = Settings(
        option("threads"),
        option("batch"),
        option("eval_samples"),
        option("case_seconds"),
        DataOptions(imagenet=option("imagenet")),
        option("memory"),
        option("max_drop"),
        tuned.read(quant_cache.folder) if option("tuned") else tuned.Tuning(),
    )
    return Workshop(quant_cache, settings, pytestconfig.stash[_LINES].progress)


@pytest.fixture(scope="session")
def trials(workshop: "Workshop") -> "Trials":
    """Tries quantizers in processes of their own."""
    from benchmarks.trials import Trials

    return Trials(workshop)


@pytest.fixture(scope="session")
def decoders(workshop: "Workshop") -> "Decoders":
    """Makes the artefacts that generate."""
    from benchmarks.generating import Decoders

    return Decoders(workshop)


@pytest.fixture
def calibration(case: Case, workshop: "Workshop") -> "Samples":
    """The samples a method may look at; none of them is evaluated."""
    return workshop.calibration(case.model)


@pytest.fixture
def evaluation(case: Case, workshop: "Workshop") -> "Samples":
    """The samples a case is judged on, in their fixed order."""
    return workshop.evaluation(case.model)


@pytest.fixture
def measurement(
    request: pytest.FixtureRequest, case: Case | PeerCase, workshop: "Workshop", benchmark
) -> "Measurement | CostMeasurement":
    """Gathers what the case measures; the plugin makes its record of it."""
    from benchmarks.adapting import AdaptiveMeasurement
    from benchmarks.costing import CostMeasurement
    from benchmarks.generating import GenerationMeasurement
    from benchmarks.measurement import Measurement

    kind = _kind(request.node)
    workshop.begin_case()
    benchmark.name, benchmark.fullname, benchmark.group = case.id, f"{kind}:{case.id}", case.model
    if kind in ("quantize", "peer"):
        return CostMeasurement(case, kind, workshop, benchmark)
    if kind == "generate":
        return GenerationMeasurement(case, kind, workshop, benchmark, request.config.getoption("time_budget"))
    chosen = AdaptiveMeasurement if case.first != case else Measurement
    return chosen(case, kind, workshop, benchmark, request.config.getoption("time_budget"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> object:
    """Make the record once the body has passed, so that an invalid one fails its own test."""
    start = time.perf_counter()
    try:
        result = yield
    except (RuntimeError, ValueError) as error:
        from benchmarks.decisions import NoCascade
        from benchmarks.process import ProcessError
        from benchmarks.workshop import CannotRun

        if isinstance(error, ProcessError | CannotRun):
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        if isinstance(error, NoCascade):
            raise pytest.skip.Exception(str(error)) from None
        raise
    except BaseException:
        if "benchmark" in getattr(item, "funcargs", {}):
            item.funcargs["benchmark"].has_error = True  # interrupted while it was timed: pytest makes no report then
        raise
    measurement = getattr(item, "funcargs", {}).get("measurement")
    if measurement is not None:
        record = measurement.record()
        record["seconds"] = time.perf_counter() - start
        item.config.hook.pytest_quant_record(config=item.config, record=record)
        problems = validate(record)
        if problems:
            pytest.fail("the record is not valid: " + " ".join(problems), pytrace=False)
        item.funcargs["benchmark"].extra_info["quant"] = record
        item.stash[outcomes.RECORD] = record
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> pytest.TestReport:
    report = yield
    if report.failed and "benchmark" in getattr(item, "funcargs", {}):
        item.funcargs["benchmark"].has_error = True  # a case that failed after timing must not become a baseline
    return report


class Rows:
    """Shows each record, of this process or of a worker, as a row when it arrives."""

    def __init__(self, lines: LiveLines) -> None:
        self._lines = lines

    def pytest_runtest_logstart(self) -> None:
        self._lines.starting()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        record = getattr(report, "quant_record", None)
        if record is not None:
            self._lines.row(_row(record))
        elif report.failed or report.skipped:
            self._lines.interrupted()


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[_LINES] = LiveLines(session.config)
    session.config.pluginmanager.register(Rows(session.config.stash[_LINES]), "quant-rows")


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """A case shows its row instead of a dot."""
    if report.when == "call" and report.passed and hasattr(report, "quant_record"):
        return "passed", "", ""
    return None


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        remember(session.config, outcomes.outcomes(session.config).records.values())


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    machine_info["quant"] = environment.describe(config.getoption("threads"))
    environment.drop_varying(machine_info)


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_compare_machine_info(config: pytest.Config, machine_info: dict, compared_benchmark: dict) -> None:
    """Say once what differs from the baseline's environment; pytest-benchmark calls this before anything is shown."""
    changed = differences(machine_info["quant"], compared_benchmark["machine_info"].get("quant", {}))
    if changed:
        text = f"The baseline ran elsewhere, so times are not comparable: {'; '.join(changed)}."
        config.stash[_NOTES].append(text)
    # pytest-benchmark's own hook would print both in full, and crash where its storage is outside the working folder.
    compared_benchmark["machine_info"] = machine_info


def pytest_report_header(config: pytest.Config) -> list[str]:
    return config.stash[_NOTES]


@pytest.hookimpl(wrapper=True)
def pytest_benchmark_group_stats(config: pytest.Config, benchmarks: list, group_by: str) -> list:
    """Keep cases without a time of their own, such as evaluated or untimed ones, out of pytest-benchmark's table."""
    groups = yield
    shown = [(name, [row for row in rows if _is_timed(row)]) for name, rows in groups]
    return [(name, rows) for name, rows in shown if rows]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    records = list(outcomes.outcomes(config).records.values())
    if not records:
        return
    terminalreporter.section("quantization", sep="-")
    terminalreporter.write_line(summary(records, verbose=config.get_verbosity() > 0))


def _is_timed(row: dict) -> bool:
    record = row.get("extra_info", {}).get("quant")
    return row.get("median") is not None and (record is None or record["speed"].get("p50") is not None)


def _row(record: Record) -> str:
    if record["kind"] in ("quantize", "peer"):
        return f"{record_name(record):<44} {cost_text(record)}"
    if record["kind"] == "generate":
        return f"{record_name(record):<44} {generation_text(record)}"
    size = record["size"]["bytes"] / 1e6
    p50 = record["speed"].get("p50")
    milliseconds = "" if p50 is None else f"{1000 * p50:9.3g} ms  {speed_text(record)}"
    memory = "" if record["memory"].get("peak_bytes") is None else f"{memory_text(record):<16} "
    return (
        f"{case_id(record):<44} {metric_text(record):<14} {delta_text(record):<16} {size:7.3g} MB "
        f"{milliseconds:<28} {memory}{record['evidence']}"
    ).rstrip()
