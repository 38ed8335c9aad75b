"""The gate: limits on what a change may cost, judged at the end of a run against the baseline.

``--benchmark-compare-fail`` is taken over from pytest-benchmark, which would keep only the last one given and end a
regression in a traceback: here all of them apply, and they are told in the same section as the other limits.
"""

import argparse
import os
import shlex
from typing import TYPE_CHECKING

import pytest
from _pytest.junitxml import xml_key  # what pytest's own fixture record_testsuite_property reads

from benchmarks.outcomes import outcomes
from benchmarks.saving import BASELINE, is_worker, this_run
from reports.limits import Limit, LimitError, parse_limit
from reports.verdicts import finding_text, name_of, verdict_text

if TYPE_CHECKING:
    from reports.judgement import Judgement

_CHECKS = pytest.StashKey[list[Limit]]()
_JUDGEMENT = pytest.StashKey["Judgement"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("quantization benchmarks")
    group.addoption(
        "--metric-compare-fail",
        action="append",
        default=[],
        type=_limit,
        metavar="METRIC:LIMIT",
        help="with --benchmark-compare: fail where a case lost more, such as accuracy:0.5pp, speed:10%% or "
        "'minilm-*:size:1%%'; may be given several times",
    )
    group.addoption(
        "--fail-inconclusive",
        action="store_true",
        help="fail too where a limit is neither shown to hold nor to be exceeded",
    )


def _limit(text: str) -> Limit:
    try:
        return parse_limit(text)
    except LimitError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    option = config.option
    checks = [] if is_worker(config) or not option.benchmark_compare_fail else _compare_fail_checks(config)
    config.stash[_CHECKS], option.benchmark_compare_fail = checks, None
    given = {
        "--benchmark-compare-fail": checks,
        "--metric-compare-fail": option.metric_compare_fail,
        "--fail-inconclusive": option.fail_inconclusive,
    }
    asked = next((name for name, value in given.items() if value), None)
    if asked and not option.benchmark_compare and not is_worker(config):
        raise pytest.UsageError(f"{asked} needs a baseline: add --benchmark-compare=NAME, the name of a saved run.")
    if option.fail_inconclusive and not (checks or option.metric_compare_fail or is_worker(config)):
        raise pytest.UsageError("--fail-inconclusive needs a limit: add --metric-compare-fail=accuracy:1pp or another.")


def _compare_fail_checks(config: pytest.Config) -> list[Limit]:
    """Return every ``--benchmark-compare-fail`` given, of which pytest-benchmark's own option holds the last alone."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--benchmark-compare-fail", nargs="+", action="extend", default=[], type=_check)
    variable = shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))
    arguments = [*config.getini("addopts"), *variable, *map(str, config.invocation_params.args)]
    return parser.parse_known_args(arguments)[0].benchmark_compare_fail


def _check(text: str) -> Limit:
    """Read what pytest-benchmark has accepted already, such as ``min:5%`` or ``mean:0.001``."""
    statistic, amount = text.split(":")
    return Limit(statistic, float(amount.rstrip("%")), "percent" if amount.endswith("%") else "absolute", "*", text)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Judge the run before its exit status is reported anywhere."""
    config = session.config
    ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    if BASELINE not in config.stash or is_worker(config) or config.option.collectonly or not ended:
        return
    from benchmarks.checks import with_checks  # imports numpy, before which threads must be pinned
    from reports.judgement import judge

    limits, checks = config.option.metric_compare_fail, config.stash[_CHECKS]
    judgement = judge(config.stash[BASELINE], this_run(config), limits)
    if checks:
        judgement = with_checks(judgement, checks, config._benchmarksession)
    config.stash[_JUDGEMENT] = judgement
    if _is_limited(config) and exitstatus != pytest.ExitCode.TESTS_FAILED and _fails(config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    _record_properties(config, judgement)


def judged(config: pytest.Config) -> "Judgement | None":
    """Return the judgement of this run for its reports, under usual limits where none was given; None without one."""
    found = config.stash.get(_JUDGEMENT, None)
    if found is None or _is_limited(config):
        return found
    from reports.baseline import under_usual_limits  # imports numpy, before which threads must be pinned

    return under_usual_limits(found.base, found.head)


def _is_limited(config: pytest.Config) -> bool:
    return bool(config.option.metric_compare_fail or config.stash[_CHECKS])


def _fails(config: pytest.Config) -> bool:
    return config.stash[_JUDGEMENT].fails(config.option.fail_inconclusive)


def _record_properties(config: pytest.Config, judgement: "Judgement") -> None:
    """Put a property for each case and limit into the file of ``--junitxml``."""
    file = config.stash.get(xml_key, None)
    if file is None:
        return
    for finding in judgement.findings:
        file.add_global_property(
            f"quant:{finding.case}:{finding.limit.text}", f"{finding.verdict}: {finding_text(finding)}"
        )
    for word, cases in (("lost", judgement.lost), ("newly failed", judgement.failed)):
        for case, why in cases.items():
            file.add_global_property(f"quant:{case}", f"{word}: {why}")
    for problem in judgement.problems:
        file.add_global_property("quant", f"not judged: {problem}")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if BASELINE not in config.stash or config.option.collectonly:
        return
    terminalreporter.section("comparison", sep="-")
    if _JUDGEMENT not in config.stash:
        why = outcomes(config).interrupted or "the run did not come to its end"
        terminalreporter.write_line(f"Not judged: {why}.")
        return
    judgement, verbose = config.stash[_JUDGEMENT], config.get_verbosity() > 0
    if not _is_limited(config):
        from reports.comparison import comparison

        terminalreporter.write_line(f"Against {name_of(judgement.base)}; no limit was given, so nothing is judged.")
        terminalreporter.write_line(comparison(judgement, verbose))
        return
    failed = _fails(config)
    first, *rest = verdict_text(judgement, config.option.fail_inconclusive, verbose).split("\n")
    terminalreporter.write_line(first, bold=True, red=failed, green=not failed)
    for line in rest:
        terminalreporter.write_line(line)
