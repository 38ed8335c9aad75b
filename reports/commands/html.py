"""Write the runs as one HTML page that works from disk: verdict or advice, table, fronts, history, environment.

With several runs it shows the last record of each case on each machine, and how the figures moved. With --baseline
the last run is judged beside it, under the limits of --fail.
"""

import argparse
from pathlib import Path

from reports.runs import RunError, read_valid_run

HELP = "write the runs as one self-contained HTML page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="(report.html)")
    parser.add_argument("--baseline", type=Path, metavar="RUN.json", help="judge the last run beside this one")
    add_limits(parser)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """The option that both reports of a judgement share."""
    parser.add_argument(
        "--fail",
        action="append",
        metavar="METRIC:LIMIT",
        help="with --baseline, a limit; may be repeated (accuracy:1pp speed:10%% size:1%%)",
    )


def run(options: argparse.Namespace) -> int:
    from reports.html import page

    runs = sorted((read_valid_run(path) for path in options.runs), key=lambda found: found.saved or "")
    judgement = None
    if options.baseline:
        from reports.limits import DEFAULT_LIMITS

        judgement = None
    try:
        options.output.write_text(page(runs, judgement), encoding="utf-8")
    except OSError as error:
        raise RunError(f"{options.output} cannot be written: {error.strerror}.") from None
    print(f"Written to {options.output}")
    return 0
