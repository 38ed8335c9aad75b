"""Print the table of a run and one sentence of advice, or write it into a document between two markers."""

import argparse
from pathlib import Path

from reports.runs import read_valid_run

HELP = "print the table of a run and one sentence of advice"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_file", type=Path, metavar="RUN.json")
    parser.add_argument("--format", choices=("text", "markdown"), default="text")
    parser.add_argument("-v", "--verbose", action="store_true", help="add flips, error, bits, coverage and parity")
    parser.add_argument("--into", type=Path, metavar="FILE", help="write it into FILE between the markers of --section")
    parser.add_argument("--section", default="table", help="<!-- begin SECTION --> and <!-- end SECTION --> (table)")


def run(options: argparse.Namespace) -> int:
    from reports.embed import embed, machine_line
    from reports.summary import summary

    found = read_valid_run(options.run_file)
    text = summary(found.records, options.verbose, "github" if options.format == "markdown" else "simple")
    if options.into:
        embed(options.into, options.section, f"{text}\n\n{machine_line(found)}")
    else:
        print(text)
    return 0
