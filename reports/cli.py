"""Command lines with one file per command: ``python -m reports`` and its like."""

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

BAD_INPUT = 4
"""The exit status after one sentence on what cannot be used."""
INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""
_UNREAD = 1


def command_parser(commands: ModuleType, program: str, description: str, example: str) -> argparse.ArgumentParser:
    """Return the parser of a program whose commands are the modules of the package ``commands``.

    A command has a docstring, which its ``--help`` prints; ``HELP``, one line; ``add_arguments(parser)``; and
    ``run(options)``, which returns the exit status.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(program, description=description, epilog=example, formatter_class=formatter)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in sorted(pkgutil.iter_modules(commands.__path__), key=lambda module: module.name):
        command = importlib.import_module(f"{commands.__name__}.{module.name}")
        subparser = subparsers.add_parser(
            module.name, help=command.HELP, description=command.__doc__, formatter_class=formatter
        )
        subparser.set_defaults(run=command.run)
        command.add_arguments(subparser)
    return parser


def run_command(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    refused: type[Exception],
    stopped: str = "Stopped.",
) -> int:
    """Run the command that ``arguments`` name; returns its exit status.

    That is 4 after the sentence of one of ``refused``, or on a file or folder that cannot be used, and 130 after
    Ctrl-C and ``stopped``. A reader that has seen enough, such as ``head``, ends the command quietly.
    """
    options = parser.parse_args(arguments)
    try:
        status = options.run(options)
        sys.stdout.flush()
    except refused as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        # Python flushes once more as it ends, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _UNREAD
    except OSError as error:
        if error.filename is None:
            raise
        print(f"{error.filename} cannot be used: {error.strerror}.", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        return INTERRUPTED
    return status
