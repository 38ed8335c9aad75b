"""Print the table of each run and one sentence of advice, or write it into a document between two markers.

As CSV it is one table of all runs with every figure at its full precision, for a spreadsheet or another program.

  python -m reports table main -v
  python -m reports table run.json --format csv > table.csv
  python -m reports table run.json --format markdown --into README.md --section int4
"""

import argparse
import sys
from pathlib import Path

from reports.runs import Run, RunError
from reports.storage import open_run

HELP = "print the table of each run and one sentence of advice"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a file, or the name of a save such as main or 0003")
    parser.add_argument("--format", choices=("text", "markdown", "csv"), default="text")
    parser.add_argument("-v", "--verbose", action="store_true", help="add flips, error, bits, coverage and parity")
    parser.add_argument("--into", type=Path, metavar="FILE", help="write it into FILE between the markers of --section")
    parser.add_argument("--section", default="table", help="<!-- begin SECTION --> and <!-- end SECTION --> (table)")


def run(options: argparse.Namespace) -> int:
    from reports.flat import csv_text

    if options.into and options.format == "csv":
        raise RunError("A document cannot hold CSV; write it to a file: --format csv > table.csv.")
    runs = [open_run(name) for name in options.runs]
    if options.format == "csv":
        sys.stdout.write(csv_text(runs))
    elif options.into:
        from reports.embed import embed, machine_line

        texts = [f"{_text(found, options)}\n\n{machine_line(found)}" for found in runs]
        embed(options.into, options.section, "\n\n".join(texts))
    else:
        print("\n\n".join(_text(found, options) for found in runs))
    return 0


def _text(found: Run, options: argparse.Namespace) -> str:
    """The summary of one run, under the name of its file where there are several."""
    from reports.summary import summary

    text = summary(found.records, options.verbose, "github" if options.format == "markdown" else "simple")
    if len(options.runs) == 1:
        return text
    title = f"**{found.path}**" if options.format == "markdown" else str(found.path)
    return f"{title}\n\n{text}"
