"""Find which quantization of a model to ship on this machine, and write it down as a recipe.

Candidates that suit the kind of network are priced: bytes and, where the runtime computes in their numbers, time. They
are raced from the cheapest on, the fastest first if any is faster than float, else the smallest. Those that lose too
much are dropped after a few samples; the first that looks good is verified on samples that no look has used. It is
chosen only where the far end of the 95 % interval of its loss is within --max-drop.

  python -m benchmarks search minilm --max-drop 1pp
  python -m benchmarks search mine.py --max-drop 1pp --max-size 20MB --max-latency 10ms --budget 20min
  python -m benchmarks search reviews_gpt --max-drop 1% --target onnxruntime -o gpt.json

The recipe names the method, the scheme, the weights, the data and the libraries; quant.replay(graph, "recipe.json",
calibration) makes the same tables again, bit for bit. Whatever was made, answered and timed is kept in the cache: a
search that was stopped goes on where it was.

Exit status: 0 where a recipe was written, 1 where nothing was shown to hold, 4 for input that cannot be used.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.commands import CommandError, opened, positive, writable, write_json
from benchmarks.environment import pin_threads

if TYPE_CHECKING:
    from benchmarks.lines import Lines
    from benchmarks.searching import Bounds, Search

HELP = "find which quantization of a model to ship, and write its recipe"

_BUDGET = "20min"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model of the zoo by its name, or the file of your own")
    parser.add_argument(
        "--max-drop",
        metavar="DROP",
        help="the most it may lose against float: 1pp of a share, 1%% of any metric, or agreement:5pp "
        "(1pp of a share, which without labels is agreement with float; 1%% of another metric)",
    )
    parser.add_argument("--max-size", metavar="SIZE", help="the largest artefact, such as 20MB (any)")
    parser.add_argument("--max-latency", metavar="TIME", help="the longest measured call, such as 10ms (any)")
    parser.add_argument(
        "--target",
        default="this-machine",
        metavar="BACKEND",
        help="one backend, such as onnxruntime; this-machine means all that run here (this-machine)",
    )
    parser.add_argument(
        "--budget", default=_BUDGET, metavar="TIME", help=f"stop by then with the best so far, such as 90s ({_BUDGET})"
    )
    parser.add_argument("-o", "--output", default="recipe.json", type=Path, metavar="FILE", help="(recipe.json)")
    parser.add_argument("--threads", default="1", metavar="N", help="threads of every runtime (1)")
    parser.add_argument("--imagenet", type=Path, metavar="DIR", help="labelled photographs for image classifiers")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where all is kept that was made (.cache/quant)")


def run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    pin_threads(positive(options.threads, "--threads"))
    # These import numpy and torch, before which threads must be pinned.
    from benchmarks.explaining import explanation, recipe_document
    from benchmarks.lines import Lines

    writable(options.output)
    lines = Lines()
    search, bounds = _prepared(options, lines, started)
    found = search.run()
    print(explanation(found, search.drop, bounds))
    if found.chosen is None:
        return 1
    document = recipe_document(found, search.drop, bounds)
    write_json(options.output, document)
    print(f"\nWrote {options.output}, which quant.replay(graph, {str(options.output)!r}, calibration) makes again.")
    return 0


def _prepared(options: argparse.Namespace, lines: "Lines", started: float) -> "tuple[Search, Bounds]":
    """Return the search that the options describe.

    Raises:
        CommandError: they cannot be used.
    """
    from benchmarks.candidates import rungs
    from benchmarks.losses import Losses, drop_of, parts_of
    from benchmarks.searching import Search
    from fixtures.model import DataError
    from quant.search import OutOfTime

    try:
        bounds, backends = _bounds(options), _backends(options)
        progress = _until(started + _seconds(options.budget), lines.progress)
        workshop, name = opened(options, progress)
        model = workshop.model(name)
        drop = drop_of(model, options.max_drop)
        parts = parts_of(model, drop)
        lines.result(
            f"{name} ({model.family}) on {', '.join(backends)}: at most {drop} may be lost; {len(parts.race)} samples "
            f"to race on, {len(parts.verification)} fresh ones to verify on, of {parts.sources} sources"
        )
        found = rungs(name, model.family, backends)
        return Search(workshop, Losses(workshop, model, drop, parts), found, bounds, lines.result), bounds
    except OutOfTime:
        raise CommandError(f"--budget {options.budget} was over before the model was ready: give more.") from None
    except (DataError, ValueError) as error:
        raise CommandError(str(error)) from None


def _bounds(options: argparse.Namespace) -> "Bounds":
    from benchmarks.searching import Bounds
    from reports.requirements import parse_size, parse_time

    size = None if options.max_size is None else parse_size(options.max_size)
    return Bounds(size, None if options.max_latency is None else parse_time(options.max_latency))


def _backends(options: argparse.Namespace) -> list[str]:
    from benchmarks.candidates import backends_of
    from quant.backends import target

    backends = backends_of(options.target)
    untimed = [name for name in backends if not target(name).runs_here]
    if untimed and options.max_latency is not None:
        raise CommandError(
            f"{untimed[0]} does not run here, so no time of it can be taken: leave --max-latency out, or search where "
            "it runs."
        )
    return backends


def _until(end: float, report: Callable[[str], None]) -> Callable[[str], None]:
    """Return ``report``, ended by OutOfTime: whatever takes long calls it again and again."""
    from quant.search import OutOfTime

    def progress(text: str) -> None:
        if time.monotonic() > end:
            raise OutOfTime
        report(text)

    return progress


def _seconds(text: str) -> float:
    """Read a time that may be of minutes or hours."""
    from reports.limits import LimitError
    from reports.requirements import parse_time

    for unit, seconds in (("min", 60), ("h", 3600)):
        if text.endswith(unit):
            try:
                return seconds * parse_time(f"{text.removesuffix(unit)}s")
            except LimitError:
                break
    try:
        return parse_time(text)
    except LimitError:
        raise CommandError(f"--budget {text} is not a time such as 20min, 90s or 1h.") from None
