"""Find the settings of each runtime that are the fastest on this machine; `pytest benchmarks --tuned` runs with them.

Threads, and what the runtime offers beside them (graph optimization, memory arena, memory format, compiling), are timed
in turns with the defaults, one setting after the other; what is clearly slower is dropped, what is shown to be faster
is taken over, and all of it together is timed against the defaults once more. Numbers that a kernel may be faster with,
such as other groups, are timed as well; what they lose is another question.

  python -m benchmarks tune minilm
  python -m benchmarks tune minilm --backend onnxruntime --bits int8 --threads 1
  python -m benchmarks tune mine.py --batch 8 --seconds 10

What is found is kept in a file for this machine and these libraries; another processor or version begins another one.

Exit status: 0 where something was tuned, 1 where nothing could be, 4 for input that cannot be used.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.commands import CommandError
from benchmarks.environment import pin_threads

if TYPE_CHECKING:
    from benchmarks.matrix import Case
    from benchmarks.tuning import Tuned

HELP = "find the fastest settings of each runtime on this machine"

_MODEL = "minilm"
_BITS = ("fp32", "int8", "int4")
_SECONDS = 4.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from fixtures.options import count, seconds

    parser.add_argument(
        "model",
        nargs="?",
        default=_MODEL,
        metavar="MODEL",
        help=f"a model of the zoo, or the file of your own ({_MODEL})",
    )
    parser.add_argument(
        "--backend", action="append", metavar="NAME", help="tune this backend alone; repeatable (all that run here)"
    )
    parser.add_argument(
        "--bits", action="append", metavar="WORD", help=f"tune cases of these numbers; repeatable ({', '.join(_BITS)})"
    )
    parser.add_argument(
        "--threads", type=count, metavar="N", help="the most threads to try (all that this process may use)"
    )
    parser.add_argument("--batch", type=count, default=1, metavar="N", help="samples per call (1)")
    parser.add_argument(
        "--seconds", type=seconds, default=_SECONDS, metavar="S", help=f"how long each race takes ({_SECONDS:g})"
    )
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where all is kept that was made (.cache/quant)")


def run(options: argparse.Namespace) -> int:
    pin_threads(1)
    # These import numpy and torch, before which threads must be pinned.
    from benchmarks import tuned
    from benchmarks.lines import Lines
    from benchmarks.own import model_named
    from benchmarks.tuning import Tuner, usable_threads
    from benchmarks.workshop import Settings, Workshop
    from fixtures.cache import Cache
    from fixtures.model import DataError
    from fixtures.plugin import DEFAULT_CACHE

    try:
        cases = _cases(model_named(options.model), options)
        lines = Lines()
        cache = Cache(options.cache_dir or Path.cwd() / DEFAULT_CACHE)
        workshop = Workshop(cache, Settings(batch=options.batch), lines.progress)
        tuner = Tuner(workshop, options.threads or usable_threads(), options.seconds, lines.result)
        found = []
        for case in cases:
            lines.result(str(case))
            try:
                found.append(tuner.tune(case))
            except (ValueError, RuntimeError) as error:
                lines.result(f"  not tuned: {next(iter(str(error).splitlines()), type(error).__name__)}")
                continue
            if found[-1].refused is None:
                tuned.keep(cache.folder, found[-1].entry)
        lines.done()
    except (DataError, ValueError) as error:
        raise CommandError(str(error)) from None
    if not found:
        print("Nothing could be tuned.")
        return 1
    print(_report(found))
    print(f"\nKept in {tuned.file_of(cache.folder)}; pytest benchmarks --tuned runs with it.")
    return 0


def _cases(model: str, options: argparse.Namespace) -> "list[Case]":
    """Return what to tune, of each kind of numbers the case that is quickest to make.

    Raises:
        CommandError: there is no such case, or what it needs is not here.
    """
    from benchmarks.candidates import THIS_MACHINE, backends_of
    from benchmarks.matrix import model as model_entry
    from benchmarks.tuning import quickest_cases
    from quant.registry import missing

    absent = missing(model_entry(model).constants["PACKAGES"])
    if absent:
        raise CommandError(f"{model} needs packages that are not installed: {absent}")
    named = [name for text in options.backend or (THIS_MACHINE,) for name in backends_of(text)]
    cases = quickest_cases(model, named, options.bits or _BITS)
    if not cases:
        raise CommandError(f"{model} has no case of {', '.join(options.bits or _BITS)} on {', '.join(named)}.")
    return cases


def _report(found: "list[Tuned]") -> str:
    from tabulate import tabulate

    from benchmarks.tuned import speed_text

    rows = [_row(one) for one in found]
    headers = ("case", "ms", "tuned", "speed", "settings")
    align = ("left", "right", "right", "left", "left")
    lines = [
        f"{one.case}, other numbers: " + ", ".join(f"{word} {speed_text(*speed)}" for word, speed in one.others.items())
        for one in found
        if one.others
    ]
    return "\n".join([tabulate(rows, headers, disable_numparse=True, colalign=align), *lines])


def _row(tuned: "Tuned") -> list[str]:
    from benchmarks.tuned import settings_text, speed_text
    from reports.tables import three_digits

    before, after = (three_digits(1e3 * seconds) for seconds in tuned.seconds)
    if tuned.refused:
        return [str(tuned.case), before, "", "", tuned.refused]
    if not tuned.entry.settings:
        nothing = f"the defaults: nothing is more than {100 * tuned.within:.1f} % faster"
        return [str(tuned.case), before, "", "", nothing]
    speed = speed_text(tuned.entry.speed, tuned.entry.ci95)
    return [str(tuned.case), before, after, speed, settings_text(tuned.entry.settings)]
