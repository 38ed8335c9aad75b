"""``python -m quant``: what can be done without a benchmark; one file in ``quant/commands`` per command."""

import argparse
import importlib
import pkgutil
import sys

from quant import commands

EXAMPLE = """\
example:
  python -m quant hardware
  python -m quant export saved --format onnx -o build      # saved by quant.save(model, "saved", with_graph=True)
"""
INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m quant",
        description="What this machine can do, and what can be done with quantized models on it.",
        epilog=EXAMPLE,
        formatter_class=formatter,
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in sorted(module.name for module in pkgutil.iter_modules(commands.__path__)):
        command = importlib.import_module(f"{commands.__name__}.{name}")
        subparser = subparsers.add_parser(
            name, help=command.HELP, description=command.__doc__, formatter_class=formatter
        )
        subparser.set_defaults(run=command.run)
        command.add_arguments(subparser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
