"""The gate: limits on what a change may cost, judged at the end of a run against the baseline.

``--benchmark-compare-fail`` is taken over from pytest-benchmark, which would keep only the last one given and end a
regression in a traceback: here all of them apply, and they are told in the same section as the other limits.
"""

import argparse
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

import pytest
from _pytest.junitxml import xml_key  # what pytest's own fixture record_testsuite_property reads

from benchmarks import environment
from benchmarks.outcomes import outcomes
from benchmarks.saving import BASELINE, is_worker, this_run
from reports.judgement import Finding, Judgement, judge
from reports.limits import Limit, LimitError, parse_limit
from reports.record import record_name
from reports.verdicts import finding_text, verdict_text

_CHECKS = pytest.StashKey[list[Limit]]()
_JUDGEMENT = pytest.StashKey[Judgement]()
_CHECK = re.compile(r"(min|max|mean|median|stddev|iqr):([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)(%?)")


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
    checks = compare_fail_checks(config) if option.benchmark_compare_fail else []
    config.stash[_CHECKS], option.benchmark_compare_fail = checks, None
    if (checks or option.metric_compare_fail or option.fail_inconclusive) and not option.benchmark_compare:
        given = "--benchmark-compare-fail" if checks else "--metric-compare-fail"
        raise pytest.UsageError(f"{given} needs a baseline: add --benchmark-compare=NAME, the name of a saved run.")


def compare_fail_checks(config: pytest.Config) -> list[Limit]:
    """Return every ``--benchmark-compare-fail`` given, of which pytest-benchmark's own option holds the last alone."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--benchmark-compare-fail", nargs="+", action="extend", default=[])
    variable = shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))
    arguments = [*config.getini("addopts"), *variable, *map(str, config.invocation_params.args)]
    matches = [_CHECK.fullmatch(text) for text in parser.parse_known_args(arguments)[0].benchmark_compare_fail]
    return [
        Limit(match[1], float(match[2]), "percent" if match[3] else "absolute", "*", match[0])
        for match in matches
        if match
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Judge the run before its exit status is reported anywhere."""
    config = session.config
    ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    if BASELINE not in config.stash or is_worker(config) or config.option.collectonly or not ended:
        return
    limits, checks = config.option.metric_compare_fail, config.stash[_CHECKS]
    judgement = judge(config.stash[BASELINE], this_run(config), limits)
    if checks:
        judgement = with_checks(judgement, checks, config._benchmarksession)
    config.stash[_JUDGEMENT] = judgement
    if (limits or checks) and exitstatus != pytest.ExitCode.TESTS_FAILED and _fails(config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    _record_properties(config, judgement)


def with_checks(judgement: Judgement, checks: Sequence[Limit], session: object) -> Judgement:
    """Add what ``--benchmark-compare-fail`` asks: a statistic of pytest-benchmark's against the baseline's."""
    base = {name: bench for mapping in session.compared_mapping.values() for name, bench in mapping.items()}
    elsewhere = environment.differences(judgement.head.machine["quant"], judgement.base.machine.get("quant", {}))
    findings = [
        _checked(bench, base[bench.fullname]["stats"], check, elsewhere)
        for bench in session.benchmarks
        if bench and not bench.has_error and bench.fullname in base
        for check in checks
    ]
    problems = list(judgement.problems)
    if not any(finding.verdict != "not judged" for finding in findings):
        why = "; ".join(dict.fromkeys(finding.reason for finding in findings)) or "no case has a time in both runs"
        problems.append(f"{', '.join(check.text for check in checks)} could not be judged: {why}.")
    return replace(judgement, findings=[*judgement.findings, *findings], problems=problems)


def _checked(bench: object, base: dict, check: Limit, elsewhere: list[str]) -> Finding:
    extra = bench.extra_info.get("quant")
    name = record_name(extra) if extra else bench.name
    before, after = base.get(check.metric), bench[check.metric]
    if extra and extra["speed"].get("p50") is None:
        return Finding(name, check, "not judged", reason=extra["speed"].get("reason") or "it was not timed")
    if elsewhere:
        return Finding(name, check, "not judged", before, after, reason=f"it ran elsewhere: {'; '.join(elsewhere)}")
    if before is None or (before == 0 and check.unit == "percent"):
        return Finding(name, check, "not judged", before, after, reason=f"the baseline has no {check.metric}")
    loss = 100 * (after / before - 1) if check.unit == "percent" else after - before
    return Finding(name, check, "regressed" if loss > check.amount else "pass", before, after, loss)


def _fails(config: pytest.Config) -> bool:
    return config.stash[_JUDGEMENT].fails(config.option.fail_inconclusive)


def _record_properties(config: pytest.Config, judgement: Judgement) -> None:
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
    fail_inconclusive, verbose = config.option.fail_inconclusive, config.get_verbosity() > 0
    text = verdict_text(config.stash[_JUDGEMENT], fail_inconclusive, verbose)
    gated = config.option.metric_compare_fail or config.stash[_CHECKS]
    failed = bool(gated) and _fails(config)
    first, *rest = text.split("\n")
    terminalreporter.write_line(first, bold=True, red=failed, green=bool(gated) and not failed)
    for line in rest:
        terminalreporter.write_line(line)
