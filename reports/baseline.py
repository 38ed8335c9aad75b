"""``--baseline`` of the commands that write reports: judging a run under the limits given, or under usual ones."""

import argparse

from reports.judgement import Judgement, judge
from reports.limits import LimitError, parse_limit
from reports.runs import Run, RunError
from reports.storage import open_run

USUAL = ("accuracy:1pp", "agreement:1pp", "speed:10%", "size:1%")
"""The limits where none is given; those that have nothing to judge are left out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--baseline", metavar="RUN", help="judge the last run beside this one")
    parser.add_argument(
        "--fail",
        action="append",
        metavar="METRIC:LIMIT",
        help=f"a limit on what it may lose, repeatable ({' '.join(USUAL)})".replace("%", "%%"),
    )


def judged(head: Run, options: argparse.Namespace) -> Judgement | None:
    """The judgement of ``head`` that the options ask for; None without a baseline.

    Raises:
        RunError: the baseline cannot be read, a limit cannot be understood, or there are limits and no baseline.
    """
    if options.baseline is None:
        if options.fail:
            raise RunError(f"--fail {options.fail[0]} needs --baseline RUN to judge against.")
        return None
    base = open_run(options.baseline)
    try:
        limits = [parse_limit(text) for text in options.fail or []]
    except LimitError as error:
        raise RunError(str(error)) from None
    return judge(base, head, limits) if limits else under_usual_limits(base, head)


def under_usual_limits(base: Run, head: Run) -> Judgement:
    """Judge under limits nobody asked for: one that has nothing to judge is no problem, unless that goes for all."""
    limits = [parse_limit(text) for text in USUAL]
    judgement = judge(base, head, limits)
    effective = {finding.limit for finding in judgement.findings if finding.verdict != "not judged"}
    if not effective or len(effective) == len(limits):
        return judgement
    return judge(base, head, [limit for limit in limits if limit in effective])
