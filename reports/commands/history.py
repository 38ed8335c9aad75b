"""Print how a figure of each case moved over saved runs, and name the saves in which it changed.

Each machine (processor and threads) has series of its own. A change is named once two saves show it.

  python -m reports history
  python -m reports history .benchmarks --metric accuracy --case 'minilm-*-int4-*'
"""

import argparse
import sys

from reports.runs import RunError
from reports.storage import STORAGE

HELP = "print how figures moved over saved runs, and in which save they changed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    help = f"a folder of saves, a file, or the name of a save ({STORAGE})"
    parser.add_argument("runs", nargs="*", default=[str(STORAGE)], metavar="FOLDER|RUN", help=help)
    parser.add_argument("--case", default="*", metavar="PATTERN", help="only cases such as 'minilm-*-int4-*' (all)")
    parser.add_argument("--metric", default="speed", help="accuracy, agreement, speed, time, size, … (speed)")


def run(options: argparse.Namespace) -> int:
    from reports.history import histories, history_text, saved_runs

    runs, left_out = saved_runs(options.runs)
    series = histories(runs, options.metric, options.case)
    if not series:
        raise RunError(f"No case matching {options.case!r} has a figure {options.metric!r} in these runs.")
    print(history_text(series))
    for message in left_out:
        print(f"Left out: {message}", file=sys.stderr)
    return 0
