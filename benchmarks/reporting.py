"""Reports at the end of a run: those that ``--report`` asks for, and the commands that make sense next."""

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.gating import judged
from benchmarks.outcomes import outcomes
from benchmarks.saving import BASELINE, is_worker, saved_run, shown, this_run

if TYPE_CHECKING:
    from reports.judgement import Judgement
    from reports.runs import Run

_KINDS = ("html", "markdown", "csv")
_LINES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("quantization benchmarks").addoption(
        "--report",
        action="append",
        default=[],
        type=report,
        dest="quant_reports",
        metavar="KIND:FILE",
        help="write this run as html:FILE, a page; markdown:FILE, a pull-request comment; or csv:FILE; judged beside "
        "--benchmark-compare's baseline; may be given several times",
    )


def report(text: str) -> tuple[str, Path]:
    """Return kind and file of ``html:report.html``."""
    kind, _, file = text.partition(":")
    if kind not in _KINDS or not file:
        raise argparse.ArgumentTypeError(f"{text!r} must be {', '.join(f'{kind}:FILE' for kind in _KINDS)}")
    return kind, Path(file)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LINES] = []


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what was asked for, once the run is saved and judged, whatever came of it."""
    config = session.config
    if is_worker(config) or config.option.collectonly or not config.option.quant_reports:
        return
    lines = config.stash[_LINES]
    if not outcomes(config).records:
        lines.append("No report was written: no case came to a record.")
        return
    run, judgement = this_run(config), judged(config)
    for kind, file in config.option.quant_reports:
        path = config.invocation_params.dir / file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_text(kind, run, judgement), encoding="utf-8")
        except OSError as error:
            lines.append(f"ERROR: {file} could not be written: {error.strerror}.")
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
        else:
            lines.append(f"Written to {file}.")


def _text(kind: str, run: "Run", judgement: "Judgement | None") -> str:
    # These import numpy, before which threads must be pinned.
    if kind == "html":
        from reports.html import page

        return page([run], judgement)
    if kind == "markdown":
        from reports.markdown import comment

        return comment(run, judgement)
    from reports.flat import csv_text

    return csv_text([run])


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[_LINES]:
        terminalreporter.write_line(line, red=line.startswith("ERROR"))
    if not outcomes(config).records:
        return
    commands = list(_next(config))
    width = max((len(purpose) for purpose, _ in commands), default=0)
    for index, (purpose, command) in enumerate(commands):
        terminalreporter.write_line(f"{'      ' if index else 'Next: '}{purpose:<{width}}  {command}")


def _next(config: pytest.Config) -> Iterator[tuple[str, str]]:
    """What a user may want to do now, and the command that does it."""
    saved = saved_run(config)
    if not saved:
        yield "keep the run", "--benchmark-save=NAME"
        yield "see flips, error and coverage", "-v"
        return
    if not outcomes(config).complete:
        yield "go on where it stopped", "the same command: what was made is in the cache"
        return
    run = shlex.quote(str(saved))
    from reports.recommendation import quantized_cases  # imports numpy, before which threads must be pinned

    if quantized_cases(list(outcomes(config).records.values())):
        yield "which to ship", f"python -m reports recommend {run} --max-drop 1pp"
    if BASELINE in config.stash:
        yield "what changed", f"python -m reports compare {shlex.quote(str(shown(config.stash[BASELINE].path)))} {run}"
    elif not config._benchmarksession.json:
        yield "after a change", f"pytest benchmarks --benchmark-compare={shlex.quote(saved.stem.partition('_')[2])}"
    if not any(kind == "html" for kind, _ in config.option.quant_reports):
        yield "a page of it", f"python -m reports html {run} -o report.html{_baseline(config)}"


def _baseline(config: pytest.Config) -> str:
    return f" --baseline {shlex.quote(str(shown(config.stash[BASELINE].path)))}" if BASELINE in config.stash else ""
