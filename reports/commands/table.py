"""Print the table of a run and one sentence of advice, or write it into a document between two markers."""

import argparse
from pathlib import Path

from reports.storage import open_run

HELP = "print the table of a run and one sentence of advice"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_name", metavar="RUN", help="a file, or the name of a save such as main or 0003")
    parser.add_argument("--format", choices=("text", "markdown"), default="text")
    parser.add_argument("-v", "--verbose", action="store_true", help="add flips, error, bits, coverage and parity")
    parser.add_argument("--into", type=Path, metavar="FILE", help="write it into FILE between the markers of --section")
    parser.add_argument("--section", default="table", help="<!-- begin SECTION --> and <!-- end SECTION --> (table)")


def run(options: argparse.Namespace) -> int:
    from reports.embed import embed, machine_line
    from reports.summary import summary

    found = open_run(options.run_name)
    text = summary(found.records, options.verbose, "github" if options.format == "markdown" else "simple")
    if options.into:
        embed(options.into, options.section, f"{text}\n\n{machine_line(found)}")
    else:
        print(text)
    return 0
