"""``python -m reports``: what can be done with saved runs; one file in ``reports/commands`` per command."""

import os
import sys

from reports import commands
from reports.cli import command_parser, run_command
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
    return run_command(command_parser(commands, "python -m reports", DESCRIPTION, EXAMPLE), arguments, RunError)


if __name__ == "__main__":
    # The products of a report are small: the threads of a BLAS, which starts them as numpy is imported, would cost more
    # than they save.
    for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        os.environ.setdefault(_variable, "1")
    sys.exit(main())
