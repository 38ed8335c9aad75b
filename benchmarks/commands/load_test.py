"""Answer a changing load within a latency target, and see which precision it takes and what that loses.

Requests arrive at random, one sample each, in phases: calm, busy, calm, a rush that float cannot answer in time, calm.
A ladder of precisions answers them one at a time, and goes down or up by what the last hundred took from their arrival
on; a request that has waited long is answered by a narrower one at once. The table shows, for every few seconds, the
load, who answered, the 99th percentile of the latency, the share within the target, and what was lost against the
widest precision on the very samples that were asked.

  python -m benchmarks load_test minilm --target 150ms
  python -m benchmarks load_test reviews_lstm --target 50ms --seconds 30s --rung float-fp32 --rung dynamic-int8

Choose a target of six times a call of the widest precision or so: requests wait for one another even on a calm machine.

Exit status: 0 where 99 % of all requests were answered within the target, 1 where not, 4 for input that cannot be used.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.commands import CommandError
from benchmarks.environment import pin_threads

if TYPE_CHECKING:
    import numpy as np

    from benchmarks.lines import Lines
    from benchmarks.workshop import Artifact, Workshop
    from fixtures.model import Samples
    from quant.ladder import Ladder

HELP = "hold a latency target under a changing load, by choosing the precision at run time"

_RUNGS = ("float-fp32", "dynamic-int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model of the zoo by its name, or the file of your own")
    parser.add_argument(
        "--target", required=True, metavar="TIME", help="what 99 %% of the requests may take at most, such as 150ms"
    )
    parser.add_argument(
        "--rung",
        action="append",
        metavar="METHOD-BITS",
        help=f"a precision, the widest first; repeatable ({' and '.join(_RUNGS)})",
    )
    parser.add_argument("--backend", default="onnxruntime", metavar="NAME", help="(onnxruntime)")
    parser.add_argument("--seconds", default="20s", metavar="TIME", help="of each of the five phases (20s)")
    parser.add_argument("--samples", default="200", metavar="N", help="how many take turns in being asked (200)")
    parser.add_argument("--threads", default="1", metavar="N", help="threads of the runtime (1)")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where all is kept that was made (.cache/quant)")


def run(options: argparse.Namespace) -> int:
    from fixtures.options import count

    try:
        threads, samples = count(options.threads), count(options.samples)
    except argparse.ArgumentTypeError as error:
        raise CommandError(f"--threads and --samples: {error}.") from None
    pin_threads(threads)
    # These import numpy and torch, before which threads must be pinned.
    from benchmarks.lines import Lines
    from benchmarks.workshop import Settings, Workshop
    from fixtures.cache import Cache
    from fixtures.plugin import DEFAULT_CACHE

    lines = Lines()
    settings = Settings(threads, evaluation_samples=samples)
    workshop = Workshop(Cache(options.cache_dir or Path.cwd() / DEFAULT_CACHE), settings, lines.progress)
    try:
        return _tested(options, workshop, lines)
    except ValueError as error:
        raise CommandError(str(error)) from None


def _tested(options: argparse.Namespace, workshop: "Workshop", lines: "Lines") -> int:
    from benchmarks import serving
    from benchmarks.load import Watch
    from quant.ladder import Ladder
    from reports.requirements import parse_time

    target, seconds = parse_time(options.target), parse_time(options.seconds)
    artifacts = _artifacts(options, workshop)
    names = [f"{artifact.case.method}-{artifact.case.bits}" for artifact in artifacts]
    samples = workshop.evaluation(artifacts[0].case.model)
    lost = _lost(workshop, artifacts, samples)
    samples = samples.first(lost.shape[1])
    ladder = Ladder([artifact.executable for artifact in artifacts], target, samples.first(1).inputs)
    _tell(ladder, names, target, lines)
    slowest, fastest = ladder.services[0], ladder.services[-1]
    rates = [share / (fastest if phase == "rush" else slowest) for phase, share in serving.PHASES]
    times = serving.arrivals(rates, seconds)
    if not len(times):
        raise CommandError(f"--seconds {options.seconds} is over before the first request arrives: give more.")
    lines.result(f"{len(times)} requests in {len(rates)} phases of {options.seconds}")

    def report(served: serving.Served) -> None:
        lines.progress(f"answered by {names[served.response.rung]} in {1000 * served.response.latency:.0f} ms")

    watch = Watch(workshop.settings.threads)
    served = serving.serve(ladder, times, samples, report)
    load = watch.read()
    lines.done()
    start = served[0].response.arrived - times[0]
    print(serving.table(served, names, target, lost, seconds / 2, start))
    held = serving.within([one.response.latency for one in served], target)
    print(f"\n{100 * held:.1f} % of {len(served)} requests within {options.target}.")
    for name, service, losses in zip(names, ladder.services, lost, strict=True):
        alone = serving.within(serving.latencies_alone(times, service), target)
        print(f"{name} alone: {100 * alone:.1f} %, reckoned from its calls, losing {100 * losses.mean():.2f} points.")
    if load.too_high:
        print(f"Other programs kept {load.others:.1f} cores busy meanwhile, which tells in the latencies.")
    return 0 if held >= 0.99 else 1


def _artifacts(options: argparse.Namespace, workshop: "Workshop") -> "list[Artifact]":
    """Return the rungs, the widest first."""
    from benchmarks.matrix import Case
    from benchmarks.matrix import model as model_entry
    from benchmarks.own import model_named
    from quant.registry import missing

    name = model_named(options.model)
    absent = missing(model_entry(name).constants["PACKAGES"])
    if absent:
        raise CommandError(f"{name} needs packages that are not installed: {absent}")
    cases = []
    for text in options.rung or _RUNGS:
        method, _, bits = text.partition("-")
        cases.append(Case(name, method, bits, options.backend))
        _refuse(cases[-1], text)
    calibration = workshop.calibration(name)
    return [workshop.compile(case, workshop.quantize(case, calibration), calibration) for case in cases]


def _refuse(case: object, text: str) -> None:
    from benchmarks.matrix import matrix

    if case in matrix()[0]:
        missing = case.missing()
        if missing:
            raise CommandError(f"{case.backend} is not installed: {missing}")
        if not case.target.runs_here:
            raise CommandError(f"{case.backend} does not run here, so no time of it can be taken: choose another.")
        return
    _ = case.scheme  # says which word of the three is unknown
    reason = next((entry.reason for entry in matrix()[1] if entry.case == case), f"there is no case {case}")
    raise CommandError(f"--rung {text}: {reason.rstrip('.')}.")


def _lost(workshop: "Workshop", artifacts: "Sequence[Artifact]", samples: "Samples") -> "np.ndarray":
    """Return what each rung's answer to each sample loses against the widest one's, float [rungs, samples].

    That is a right answer, or without labels the same answer. Of a model whose outputs are too large to keep, the first
    samples alone are known.
    """
    import numpy as np

    from benchmarks.cascading import scores_of

    model = workshop.model(artifacts[0].case.model)
    scores = scores_of(model, workshop.reference(model.name))
    answers = [scores(workshop.outputs(artifact, samples)).argmax(axis=-1) for artifact in artifacts]
    labels = samples.first(len(answers[0])).labels
    truth = answers[0] if labels is None or model.metric is None else labels
    right = np.stack([(answer == truth).reshape(len(truth), -1).mean(axis=1) for answer in answers])
    return right[0] - right


def _tell(ladder: "Ladder", names: Sequence[str], target: float, lines: "Lines") -> None:
    for name, service in zip(names, ladder.services, strict=True):
        lines.result(f"{name}: {1000 * service:.3g} ms a call")
    if target < 2 * ladder.services[0]:
        lines.result(f"{names[0]} leaves no time to wait for another request within the target: it will hardly be used")
