"""Judge one saved run against another under limits: the same verdicts as in `pytest benchmarks`.

  python -m reports gate main head.json --fail accuracy:1pp --fail size:1%
  python -m reports gate base.json head.json --fail 'minilm-*:accuracy:0.5pp' --fail-inconclusive

Exit status: 0 where all passed, 1 where something regressed, was lost or was not judged, 4 for input that cannot be
used.
"""

import argparse
import sys

from reports.storage import open_run

HELP = "judge a run against a baseline under limits; exit status 1 where it fails"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="a file, or the name of a save such as main or 0003")
    parser.add_argument("head", metavar="HEAD")
    parser.add_argument(
        "--fail",
        action="append",
        required=True,
        metavar="METRIC:LIMIT",
        help="the most that may be lost, such as accuracy:0.5pp, speed:10%% or 'minilm-*:size:1%%'; repeatable",
    )
    parser.add_argument("--fail-inconclusive", action="store_true", help="fail too where a limit cannot be decided")
    parser.add_argument("--format", choices=("text", "markdown"), default="text")
    parser.add_argument("-v", "--verbose", action="store_true", help="list what passed too")


def run(options: argparse.Namespace) -> int:
    from reports.judgement import judge
    from reports.limits import LimitError, parse_limit
    from reports.verdicts import verdict_markdown, verdict_text

    try:
        limits = [parse_limit(text) for text in options.fail]
    except LimitError as error:
        print(error, file=sys.stderr)
        return 4
    judgement = judge(open_run(options.base), open_run(options.head), limits)
    if options.format == "markdown":
        print(verdict_markdown(judgement, options.fail_inconclusive))
    else:
        print(verdict_text(judgement, options.fail_inconclusive, options.verbose))
    return int(judgement.fails(options.fail_inconclusive))
