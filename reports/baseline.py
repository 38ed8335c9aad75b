"""``--baseline`` of the commands that write reports: judging a run under the limits given, or under usual ones."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from reports.figures import figure
from reports.judgement import Judgement, judge
from reports.limits import Limit, LimitError, parse_limit
from reports.runs import Run, RunError, read_valid_run

USUAL = ("accuracy:1pp", "agreement:1pp", "speed:10%", "size:1%")
"""The limits where none is given; those on figures that a run does not have are left out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--baseline", type=Path, metavar="RUN.json", help="judge the last run beside this one")
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
            raise RunError(f"--fail {options.fail[0]} needs --baseline RUN.json to judge against.")
        return None
    base = read_valid_run(options.baseline)
    try:
        limits = [parse_limit(text) for text in options.fail or []] or _usual((base, head))
    except LimitError as error:
        raise RunError(str(error)) from None
    return judge(base, head, limits)


def _usual(runs: Sequence[Run]) -> list[Limit]:
    limits = [parse_limit(text) for text in USUAL]
    return [
        limit for limit in limits if all(any(figure(record, limit.metric) for record in run.records) for run in runs)
    ]
