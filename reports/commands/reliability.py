"""Print how far the gate is to be trusted, from `pytest benchmarks -m gate --benchmark-json=RUN.json`.

Its parts may be run apart, by -k, on one machine: give their files in the order in which to show them.

  pytest benchmarks -m gate --benchmark-json=gate.json
  python -m reports reliability gate.json
"""

import argparse
from pathlib import Path

HELP = "print the rates of false alarms, refusals and detections of the gate's own test"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json")
    parser.add_argument("--into", type=Path, metavar="FILE", help="write it into FILE between the markers of --section")
    parser.add_argument("--section", default="gate", help="<!-- begin SECTION --> and <!-- end SECTION --> (gate)")


def run(options: argparse.Namespace) -> int:
    from reports.embed import embed, machine_line
    from reports.reliability import rates_of, reliability_table
    from reports.runs import read_run

    found = read_run(options.runs[0])
    rates = [rate for path in options.runs for rate in rates_of(path)]
    text = reliability_table(rates, "github" if options.into else "simple")
    if options.into:
        embed(options.into, options.section, f"{text}\n\n{machine_line(found)}")
    else:
        print(text)
    return 0
