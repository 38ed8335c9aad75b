"""Write the runs as one HTML page that works from disk: verdict or advice, table, fronts, history, environment.

With several runs it shows the last record of each case on each machine, and how the figures moved. With --baseline
the last run is judged beside that one.

  python -m reports html run.json -o report.html
  python -m reports html run.json --baseline main --fail accuracy:0.5pp -o report.html
"""

import argparse
from pathlib import Path

from reports import baseline
from reports.files import write
from reports.storage import open_run

HELP = "write the runs as one self-contained HTML page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a file, or the name of a save such as main or 0003")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="(report.html)")
    baseline.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from reports.html import page

    runs = sorted(map(open_run, options.runs), key=lambda found: found.saved or "")
    text = page(runs, baseline.judged(runs[-1], options))
    write(options.output, text)
    print(f"Written to {options.output}")
    return 0
