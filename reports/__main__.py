"""``python -m reports``: what can be done with saved runs; one file in ``reports/commands`` per command."""

import sys

from reports import commands
from reports.cli import BAD_INPUT, command_parser
from reports.runs import RunError

EXAMPLE = """\
example:
  pytest benchmarks -k int4 --benchmark-json=run.json
  python -m reports validate run.json
  python -m reports table run.json --format markdown > table.md
  python -m reports html run.json -o report.html
"""
DESCRIPTION = "Read runs that `pytest benchmarks` saved; nothing is measured again."


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit status, 4 after one sentence for each problem of the input."""
    options = command_parser(commands, "python -m reports", DESCRIPTION, EXAMPLE).parse_args(arguments)
    try:
        return options.run(options)
    except RunError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
