"""Print a run as Markdown for a pull-request comment: the verdict and the worst cases, everything else folded.

  python -m reports markdown head.json --baseline main --fail accuracy:1pp > comment.md

Exit status: 0, or 4 for input that cannot be used.
"""

import argparse

from reports import baseline
from reports.storage import open_run

HELP = "print a run as a pull-request comment"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_name", metavar="RUN", help="a file, or the name of a save such as main or 0003")
    baseline.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from reports.markdown import comment

    head = open_run(options.run_name)
    print(comment(head, baseline.judged(head, options)), end="")
    return 0
