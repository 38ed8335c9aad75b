"""Show what changed between two runs, case by case. Nothing fails for a loss: `gate` does, under limits."""

import argparse
from pathlib import Path

from reports.runs import read_valid_run

HELP = "show what changed between two runs, case by case"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", type=Path, metavar="BASE.json")
    parser.add_argument("head", type=Path, metavar="HEAD.json")
    parser.add_argument("--format", choices=("text", "markdown"), default="text")
    parser.add_argument("-v", "--verbose", action="store_true", help="show cases without a change too")


def run(options: argparse.Namespace) -> int:
    from reports.comparison import comparison
    from reports.judgement import judge

    judgement = judge(read_valid_run(options.base), read_valid_run(options.head), [])
    print(comparison(judgement, options.verbose, "github" if options.format == "markdown" else "simple"))
    return 0
