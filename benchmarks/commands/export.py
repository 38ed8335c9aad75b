"""Write cases of the matrix in formats that runtimes load without any code of ours, and check each.

A case is model-method-bits, and perhaps -backend where tables depend on it; the model may be a file of your own. Every
format becomes a folder DIR/CASE/FORMAT: the artefact; sample.npz, one sample with what the tables make of it; and
validation.json, what a fresh process found of the artefact on held-out samples. That is how its outputs compare with
the simulation of its tables, the model's own metric, whether its codes are the tables' own when read back, the memory
it took, and checksums. An artefact that does not compute what its tables mean is left there as *.rejected. What is
there already, passed and was made from the same tables, samples, code and libraries is left as it is, so a command that
was stopped goes on.

  python -m benchmarks export minilm-gptq-int4 --format onnxruntime -o build
  python -m benchmarks export minilm-rtn-int8 mobilenet_v2-static-int8 -o build              # in all formats
  python -m benchmarks export mine.py-smoothquant-int8 --format onnx -o build                # a model of your own
  python -m benchmarks export digits-rtn-int4 --format onnxruntime --memory-limit 256MB -o build

Exit status: 0 where all that was asked for was written and passed, 1 where something was rejected, 4 for input that
cannot be used. Without --format, formats that cannot hold a case are told and left out.
"""

import argparse
from pathlib import Path

from benchmarks.commands import CommandError
from benchmarks.environment import pin_threads
from quant.exporting import format_named, formats

HELP = "write cases in the formats of runtimes, and check each on held-out samples"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cases", metavar="CASE", nargs="+", help="such as minilm-gptq-int4, or with -onnxruntime")
    parser.add_argument(
        "--format", action="append", metavar="NAME", help=f"repeatable; of {', '.join(formats())} (all that suit)"
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="where all folders go")
    parser.add_argument("--samples", default="100", metavar="N", help="held-out samples to check on (100)")
    parser.add_argument("--memory-limit", metavar="SIZE", help="the most its process may hold, such as 256MB (any)")
    parser.add_argument("--imagenet", type=Path, metavar="DIR", help="labelled photographs for image classifiers")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where all is kept that was made (.cache/quant)")


def run(options: argparse.Namespace) -> int:
    pin_threads(1)
    # These import numpy and torch, before which threads must be pinned.
    from benchmarks.exporting import Shipping, order, table
    from benchmarks.lines import Lines
    from benchmarks.matrix import model as model_entry
    from benchmarks.workshop import Settings, Workshop
    from fixtures.cache import Cache
    from fixtures.model import DataError, DataOptions
    from fixtures.options import count
    from fixtures.plugin import DEFAULT_CACHE
    from quant.registry import missing
    from reports.limits import LimitError
    from reports.requirements import parse_size

    try:
        limit = None if options.memory_limit is None else int(parse_size(options.memory_limit))
        chosen = [format_named(name) for name in options.format or formats()]
        orders, samples = [order(text) for text in options.cases], count(options.samples)
        for wanted in orders:
            absent = missing(model_entry(wanted.model).constants["PACKAGES"])
            if absent:
                raise CommandError(f"{wanted.model} needs packages that are not installed: {absent}")
        lines = Lines()
        cache = Cache(options.cache_dir or Path.cwd() / DEFAULT_CACHE)
        workshop = Workshop(cache, Settings(data=DataOptions(options.imagenet)), lines.progress)
        shipping = Shipping(workshop, options.output, samples, limit, lines)
        results = [result for wanted in orders for result in shipping.ship(wanted, chosen)]
    except (DataError, ValueError, LimitError, argparse.ArgumentTypeError) as error:
        raise CommandError(str(error)) from None
    lines.done()
    refused = [result for result in results if result.validation is None]
    if options.format and refused:
        if len(refused) < len(results):
            print(table([result for result in results if result.validation]))
        raise CommandError("\n".join(f"{result.case} to {result.format}: {result.reason}" for result in refused))
    print(table(results))
    return int(any(result.rejected for result in results))
