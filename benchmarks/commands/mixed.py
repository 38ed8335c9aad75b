"""Choose the number format of every weight for one backend, and write it down as a recipe.

What each format costs the output is measured for each weight alone; an integer program then finds the formats that lose
least together within the bits, the bytes or the accuracy that is asked for. By default those formats are on offer that
the backend stores without padding. Weights that a runtime may join, as query, key and value, have one format.

Within a latency, activations are in 8 bits as well, and operators are left in float while there is time for them: those
whose rounding costs the output most for what they take. With --formats it is weights alone, in those of them that there
is time for, where the backend has kernels for such weights. Each operator is timed alone in every format, then what was
chosen, on this machine with nothing else running.

  python -m benchmarks mixed minilm --backend onnxruntime --bits-per-weight 4.5
  python -m benchmarks mixed minilm --max-size 13MB -o minilm.json
  python -m benchmarks mixed minilm --max-drop 1pp --evaluations 7      # the smallest model shown to lose no more
  python -m benchmarks mixed reviews_gpt --backend mlx --pareto         # several budgets, a recipe for each
  python -m benchmarks mixed minilm --max-latency 25ms                  # 8 bits and float, as fast as that
  python -m benchmarks mixed minilm --max-latency 30ms --formats int4_g32,int8_g32,fp16   # weights alone

The recipe names the format of each weight; quant.replay(graph, "recipe.json", calibration) makes the same tables again,
bit for bit, without measuring anything. Sensitivities, times, models and answers are kept in the cache: the same
command goes on where it was stopped.

Exit status: 0 where a recipe was written, 1 where nothing was shown to hold, 4 for input that cannot be used.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.commands import CommandError, opened, positive, writable, write_json
from benchmarks.environment import pin_threads

if TYPE_CHECKING:
    from benchmarks.lines import Lines
    from benchmarks.losses import Losses
    from benchmarks.mixing import Choice
    from benchmarks.mixing_text import Point
    from benchmarks.workshop import Workshop

HELP = "choose the number format of every weight by an integer program, and write a recipe"

_BACKEND = "onnxruntime"
_BITS = "4.5"
_PARETO = ("3.5", "4", "4.5", "5", "6", "8")
_EVALUATIONS = 7
_MOST = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model of the zoo by its name, or the file of your own")
    parser.add_argument("--backend", default=_BACKEND, metavar="NAME", help=f"the runtime to choose for ({_BACKEND})")
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument(
        "--bits-per-weight", nargs="+", metavar="BITS", help=f"of all parameters; several make a recipe each ({_BITS})"
    )
    goal.add_argument("--max-size", metavar="SIZE", help="the largest artefact, such as 13MB")
    goal.add_argument(
        "--max-drop",
        metavar="DROP",
        help="the smallest model shown to lose no more: 1pp of a share, 1%% of any metric, or agreement:5pp",
    )
    goal.add_argument("--max-latency", metavar="TIME", help="the longest call, such as 25ms")
    goal.add_argument("--pareto", action="store_true", help=f"the same as --bits-per-weight {' '.join(_PARETO)}")
    parser.add_argument(
        "--evaluations",
        default=str(_EVALUATIONS),
        metavar="N",
        help=f"how many models --max-drop may evaluate ({_EVALUATIONS})",
    )
    parser.add_argument(
        "--formats", metavar="WORDS", help="on offer instead, such as int4_g128,int8_g128,fp16 (what the backend has)"
    )
    parser.add_argument(
        "--criterion", default="", metavar="NAME", help="of sensitivity: sqnr, kl, fisher, alignment or hessian (sqnr)"
    )
    parser.add_argument(
        "--sensitivity",
        type=Path,
        metavar="FILE",
        help="of sensitivities: read if it exists, else measured and written",
    )
    parser.add_argument("-o", "--output", default="recipe.json", type=Path, metavar="FILE", help="(recipe.json)")
    parser.add_argument("--batch", default="1", metavar="N", help="samples in the call that --max-latency is about (1)")
    parser.add_argument("--threads", default="1", metavar="N", help="threads of every runtime (1)")
    parser.add_argument("--imagenet", type=Path, metavar="DIR", help="labelled photographs for image classifiers")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where all is kept that was made (.cache/quant)")


def run(options: argparse.Namespace) -> int:
    pin_threads(positive(options.threads, "--threads"))
    # These import numpy and torch, before which threads must be pinned.
    from benchmarks.lines import Lines
    from fixtures.model import DataError

    writable(options.output)
    lines = Lines()
    try:
        in_8_bits = options.max_latency and not options.formats
        return _within_latency(options, lines) if in_8_bits else _Run(options, lines).run()
    except (DataError, ValueError) as error:
        raise CommandError(str(error)) from None
    finally:
        lines.done()


def _within_latency(options: argparse.Namespace, lines: "Lines") -> int:
    """Write the recipe of W8A8 with the operators left in float that ``--max-latency`` has time for."""
    from benchmarks.candidates import backends_of
    from benchmarks.losses import loss_text
    from benchmarks.mixing_static import StaticMixer
    from benchmarks.mixing_static_text import document, explanation
    from benchmarks.mixing_text import verified
    from benchmarks.workshop import calibration_batches
    from quant.backends import target
    from reports.requirements import parse_time

    unused = [name for name in ("criterion", "sensitivity") if getattr(options, name)]
    if unused:
        raise CommandError(f"--{unused[0]} is about weights alone: beside --max-latency it needs --formats as well.")
    seconds = parse_time(options.max_latency)
    (backend,) = backends_of(options.backend)
    if not target(backend).runs_here:
        raise CommandError(f"{backend} does not run here, so no time of it can be taken: choose where it runs.")
    workshop, name = opened(options, lines.progress, positive(options.batch, "--batch"))
    losses = _losses(workshop, name, None, lines)
    mixer = StaticMixer(workshop, name, target(backend), lines.result)
    made = mixer.made_within(seconds)
    recipe = document(mixer, made, calibration_batches(workshop.calibration(name)))
    loss = losses and losses.verified(made.artifact)
    if loss:
        recipe["verified"] = verified(loss, losses.drop)
    _write(recipe, options.output, lines)
    print(explanation(mixer, made))
    if loss:
        print(f"\nIt {loss_text(loss, losses.drop.unit, fresh=True)} ({losses.drop.metric}).")
    return 0


class _Run:
    """One run of the command: what the options ask for, and how to come by it."""

    def __init__(self, options: argparse.Namespace, lines: "Lines") -> None:
        from benchmarks.candidates import backends_of
        from benchmarks.mixing import CRITERION, Mixer
        from quant.backends import target
        from quant.registry import find
        from quant.sensitivity import CRITERIA

        self.options, self.lines = options, lines
        self.bits = _bits(options)
        self.evaluations = _evaluations(options.evaluations)
        criterion = options.criterion or CRITERION
        find(CRITERIA, criterion, "criterion")
        (backend,) = backends_of(options.backend)
        self.workshop, name = opened(options, lines.progress, positive(options.batch, "--batch"))
        words = [word.strip() for word in options.formats.split(",")] if options.formats else ()
        kept = options.sensitivity
        self.mixer: Mixer = Mixer(self.workshop, name, target(backend), words, criterion, kept, lines.result)
        self.losses = _losses(self.workshop, name, options.max_drop, lines)

    def run(self) -> int:
        from benchmarks.mixing_text import explanation, pareto

        if self.options.max_drop:
            return self._smallest()
        if self.options.max_latency:
            return self._as_fast()
        points = []
        for bits in self.bits:
            choice = self._choice(bits)
            points.append(self._made(choice))
            path = self.options.output
            if len(self.bits) > 1:
                path = path.with_stem(f"{path.stem}_{bits:g}".replace(".", "p"))
            _write(points[-1].recipe, path, self.lines)
        drop = self.losses and self.losses.drop
        print(pareto(points, drop) if len(points) > 1 else explanation(self.mixer, points[0], drop))
        return 0

    def _choice(self, bits: float | None) -> "Choice":
        from reports.requirements import parse_size

        if bits is None:
            return self.mixer.made_within_size(parse_size(self.options.max_size))[0]
        return self.mixer.within_bits(bits)

    def _smallest(self) -> int:
        """Write the recipe of the smallest model whose loss is shown to be within the limit, if one is."""
        from benchmarks.losses import loss_text
        from benchmarks.mixing_loop import Loop
        from benchmarks.mixing_text import explanation

        loop, drop = Loop(self.mixer, self.losses, self.evaluations, self.lines.result), self.losses.drop
        trials = loop.run()
        held = next((trial for trial in trials if trial.holds(drop.limit.amount)), None)
        if held is None:
            closest = min((trial.verified or trial.loss for trial in trials), key=lambda loss: loss.high)
            print(
                f"No choice of formats was shown to lose at most {drop} in {loop.done} evaluations; the closest "
                f"{loss_text(closest, drop.unit)}: allow more evaluations, a larger drop, or wider formats."
            )
            return 1
        point = self._made(loop.choices[held.budget])
        _write(point.recipe, self.options.output, self.lines)
        print(explanation(self.mixer, point, drop))
        print(f"\n{loop.done} of at most {loop.most} evaluations; at most {drop} may be lost.")
        return 0

    def _as_fast(self) -> int:
        """Write the recipe of the formats of weights alone that lose least within ``--max-latency``."""
        from benchmarks.mixing_latency import LatencyMixer
        from benchmarks.mixing_text import explanation
        from reports.requirements import parse_time

        mixer = LatencyMixer(self.workshop, self.mixer, self.lines.result)
        timed = mixer.made_within(parse_time(self.options.max_latency))
        point = self._made(timed.choice)
        point.recipe["conditions"] = mixer.latency.conditions
        point.recipe["foreseen"]["seconds"] = timed.foreseen
        point.recipe["measured"] = {"seconds": timed.seconds, "float_seconds": timed.float_seconds}
        _write(point.recipe, self.options.output, self.lines)
        print(f"{explanation(self.mixer, point, self.losses and self.losses.drop)}\n\n{timed}")
        return 0

    def _made(self, choice: "Choice") -> "Point":
        """Return a choice made and judged on samples that had no part in it."""
        from benchmarks.mixing_text import Point, recipe_document, verified
        from benchmarks.workshop import calibration_batches

        artifact = self.mixer.make(choice)
        batches = calibration_batches(self.workshop.calibration(self.mixer.model))
        recipe = recipe_document(self.mixer, choice, artifact, batches)
        size = artifact.executable.size_bytes
        if self.losses is None:
            return Point(choice, size, recipe)
        loss = self.losses.verified(artifact)
        recipe["verified"] = verified(loss, self.losses.drop)
        return Point(choice, size, recipe, self.losses.error(artifact), loss)


def _write(recipe: dict[str, object], path: Path, lines: "Lines") -> None:
    write_json(path, recipe)
    lines.result(f"wrote {path}, which quant.replay(graph, {str(path)!r}, calibration) makes again")


def _losses(workshop: "Workshop", name: str, drop: str | None, lines: "Lines") -> "Losses | None":
    """Return what judges models against float; None where nothing tells what they lose and no limit is asked for."""
    from benchmarks.losses import Losses, drop_of, parts_of
    from fixtures.model import DataError
    from reports.limits import LimitError

    model = workshop.model(name)
    try:
        limit = drop_of(model, drop)
        return Losses(workshop, model, limit, parts_of(model, limit))
    except LimitError as error:
        raise CommandError(str(error)) from None
    except DataError as error:
        if drop:
            raise
        lines.result(f"not judged: {error}")
        return None


def _bits(options: argparse.Namespace) -> list[float | None]:
    """Return the budgets in bits per weight, None for one of another kind."""
    if options.max_size or options.max_drop or options.max_latency:
        return [None]
    texts = _PARETO if options.pareto else options.bits_per_weight or [_BITS]
    try:
        found = sorted({float(text) for text in texts})
    except ValueError as error:
        raise CommandError(f"--bits-per-weight: {error}.") from None
    if not all(0 < bits <= 32 for bits in found):
        raise CommandError("--bits-per-weight takes numbers between 0 and 32, such as 4.5.")
    return found


def _evaluations(text: str) -> int:
    from benchmarks.mixing_loop import FEWEST

    if not text.isdecimal() or not FEWEST <= int(text) <= _MOST:
        raise CommandError(f"--evaluations {text} is not a whole number from {FEWEST} to {_MOST}.")
    return int(text)
