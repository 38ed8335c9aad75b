"""Print how a figure of each case moved over saved runs, and name the saves in which it changed.

Each machine (processor and threads) has series of its own. A change is named once two saves show it.
"""

import argparse
import sys
from pathlib import Path

from reports.runs import RunError

HELP = "print how figures moved over saved runs, and in which save they changed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = Path(".benchmarks")
    parser.add_argument("runs", nargs="*", type=Path, default=[default], metavar="FOLDER|RUN.json")
    parser.add_argument("--case", default="*", metavar="PATTERN", help="only cases such as 'minilm-*-int4-*' (all)")
    parser.add_argument("--metric", default="speed", help="accuracy, agreement, speed, time, size, … (speed)")


def run(options: argparse.Namespace) -> int:
    from reports.history import histories, history_text, saved_runs

    missing = [path for path in options.runs if not path.exists()]
    if missing:
        raise RunError(f"{missing[0]} does not exist; save runs with --benchmark-save=NAME, or name their folder.")
    runs, left_out = saved_runs(options.runs)
    series = histories(runs, options.metric, options.case)
    if not series:
        raise RunError(f"No case matching {options.case!r} has a figure {options.metric!r} in these runs.")
    print(history_text(series))
    for message in left_out:
        print(f"Left out: {message}", file=sys.stderr)
    return 0
