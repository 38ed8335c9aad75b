"""Say what a model is made of, and what each backend can quantize of it.

The operators by kind, with their shares of parameters, of multiply-accumulates and of float time; and for each backend
here the share of the work that it has kernels for, weights alone or with activations, or the operator it lacks and the
line of the model's code that calls it.

  python -m benchmarks describe minilm
  python -m benchmarks describe mine.py --backend onnxruntime --backend mlx
"""

import argparse
from pathlib import Path

from benchmarks.commands import CommandError
from benchmarks.environment import pin_threads

HELP = "say what a model is made of, and what each backend can quantize of it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model of the zoo by its name, or the file of your own")
    parser.add_argument(
        "--backend", action="append", metavar="NAME", help="ask this backend alone; repeatable (all that run here)"
    )
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where all is kept that was made (.cache/quant)")


def run(options: argparse.Namespace) -> int:
    pin_threads(1)
    # These import numpy and torch, before which threads must be pinned.
    from benchmarks.describing import description
    from benchmarks.lines import Lines
    from benchmarks.matrix import model as model_entry
    from benchmarks.own import model_named
    from benchmarks.workshop import Settings, Workshop
    from fixtures.cache import Cache
    from fixtures.model import DataError
    from fixtures.plugin import DEFAULT_CACHE
    from quant.backends import target
    from quant.registry import missing

    try:
        name = model_named(options.model)
        absent = missing(model_entry(name).constants["PACKAGES"])
        if absent:
            raise CommandError(f"{name} needs packages that are not installed: {absent}")
        for backend in options.backend or ():
            elsewhere = target(backend).elsewhere()
            if elsewhere:
                raise CommandError(f"{elsewhere}.")
        lines = Lines()
        workshop = Workshop(Cache(options.cache_dir or Path.cwd() / DEFAULT_CACHE), Settings(), lines.progress)
        text = description(workshop, name, options.backend, whole=True)
    except (DataError, ValueError) as error:
        raise CommandError(str(error)) from None
    lines.done()
    print(text)
    return 0
