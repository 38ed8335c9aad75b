"""Show what changed between two runs, case by case. Nothing fails for a loss: `gate` does, under limits."""

import argparse

from reports.storage import open_run

HELP = "show what changed between two runs, case by case"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="a file, or the name of a save such as main or 0003")
    parser.add_argument("head", metavar="HEAD", help="likewise")
    parser.add_argument("--format", choices=("text", "markdown"), default="text")
    parser.add_argument("-v", "--verbose", action="store_true", help="show cases without a change too")


def run(options: argparse.Namespace) -> int:
    from reports.comparison import comparison
    from reports.judgement import judge

    judgement = judge(open_run(options.base), open_run(options.head), [])
    print(comparison(judgement, options.verbose, "github" if options.format == "markdown" else "simple"))
    return 0
