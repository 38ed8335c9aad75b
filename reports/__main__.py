"""``python -m reports``: what can be done with saved runs; one file in ``reports/commands`` per command."""

import argparse
import importlib
import pkgutil
import sys

from reports import commands
from reports.runs import RunError

EXAMPLE = """\
example:
  pytest benchmarks -k int4 --benchmark-json=run.json
  python -m reports validate run.json
  python -m reports table run.json --format markdown > table.md
  python -m reports html run.json -o report.html
"""
BAD_INPUT = 4


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit status, 4 after one sentence for each problem of the input."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except RunError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m reports",
        description="Read runs that `pytest benchmarks` saved; nothing is measured again.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in sorted(pkgutil.iter_modules(commands.__path__), key=lambda module: module.name):
        command = importlib.import_module(f"{commands.__name__}.{module.name}")
        command.add_arguments(_subparser(subparsers, module.name, command))
    return parser


def _subparser(subparsers: argparse._SubParsersAction, name: str, command: object) -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    subparser = subparsers.add_parser(name, help=command.HELP, description=command.__doc__, formatter_class=formatter)
    subparser.set_defaults(run=command.run)
    return subparser


if __name__ == "__main__":
    sys.exit(main())
