"""``python -m benchmarks``: what needs models, data and judgement; one file in ``benchmarks/commands`` per command."""

import sys

from benchmarks import commands
from benchmarks.commands import CommandError
from reports.cli import command_parser, run_command

DESCRIPTION = "Work on models with the whole of the suite. The benchmarks themselves are run by `pytest benchmarks`."
EXAMPLE = """\
example:
  python -m fixtures new mine.py                                # a file for a model of your own; it runs as it is
  python -m benchmarks search mine.py --max-drop 1pp            # which quantization of it to ship on this machine
  python -m benchmarks search minilm --max-drop 1pp --max-size 20MB --target onnxruntime -o minilm.json
"""
STOPPED = "Stopped. The same command goes on from here: what was made is kept in the cache."


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit status: 4 after one sentence on input that cannot be used."""
    parser = command_parser(commands, "python -m benchmarks", DESCRIPTION, EXAMPLE)
    return run_command(parser, arguments, CommandError, STOPPED)


if __name__ == "__main__":
    sys.exit(main())
