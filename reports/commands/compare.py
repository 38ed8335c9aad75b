"""Show what changed between two runs, case by case, or one commit on several chips side by side.

Two runs are paired sample by sample. Of three and more, or with --chips, the figures stand beside each other. Nothing
fails for a loss: `gate` does, under limits.

  python -m reports compare main head.json
  python -m reports compare intel.json amd.json apple.json        # one commit on three chips

Exit status: 0, or 4 for input that cannot be used.
"""

import argparse

from reports.storage import open_run

HELP = "show what changed between two runs, or one commit on several chips"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="a file, or the name of a save such as main or 0003")
    parser.add_argument("head", metavar="HEAD", nargs="+", help="likewise; several are shown side by side by chip")
    parser.add_argument("--chips", action="store_true", help="show two runs side by side too")
    parser.add_argument("--format", choices=("text", "markdown"), default="text")
    parser.add_argument("-v", "--verbose", action="store_true", help="show cases without a change too")


def run(options: argparse.Namespace) -> int:
    from reports.chips import chip_table
    from reports.comparison import comparison
    from reports.judgement import judge

    runs = [open_run(name) for name in (options.base, *options.head)]
    format = "github" if options.format == "markdown" else "simple"
    if options.chips or len(runs) > 2:
        print(chip_table(runs, format))
    else:
        print(comparison(judge(*runs, []), options.verbose, format))
    return 0
