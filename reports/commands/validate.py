"""Check every record of the runs against the schema; exit status 4 after one line for each problem."""

import argparse
import sys
from pathlib import Path

from reports.runs import RunError, problems_of, read_run

HELP = "check every record of the runs against the schema"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json")


def run(options: argparse.Namespace) -> int:
    problems, records = [], 0
    for path in options.runs:
        try:
            found = read_run(path)
        except RunError as error:
            problems.append(str(error))
        else:
            problems += problems_of(found)
            records += len(found.records)
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return 4
    print(f"{records} record{'' if records == 1 else 's'} valid")
    return 0
