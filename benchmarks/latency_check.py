"""How well a latency model predicts what mixtures of 8 bits and float take: predicted against realised times.

    python -m benchmarks.latency_check                             # minilm on onnxruntime, one sample a call
    python -m benchmarks.latency_check digits --backend torch --batch 8

Half of the mixtures are those that the integer program chooses at growing latencies, half are drawn at random. All are
timed in turns, in one process.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tabulate import tabulate

from benchmarks.layer_latency import compiled, measure_static, medians
from benchmarks.lines import Lines
from benchmarks.matrix import Case
from benchmarks.mixing_static import BITS, METHOD, rank
from benchmarks.timing import Call
from benchmarks.workshop import Settings, Workshop
from fixtures.cache import Cache
from fixtures.metrics import spearman
from fixtures.plugin import DEFAULT_CACHE
from quant.graph import QuantizedModel
from quant.latency import Latency
from quant.methods.mixed_static import choose, foreseen

MODEL, BACKEND = "minilm", "onnxruntime"
MIXTURES = 8
SECONDS = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", nargs="?", default=MODEL, help=f"a model of the zoo ({MODEL})")
    parser.add_argument("--backend", default=BACKEND, metavar="NAME", help=f"({BACKEND})")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="samples per call (1)")
    parser.add_argument("--mixtures", type=int, default=MIXTURES, metavar="N", help=f"how many ({MIXTURES})")
    parser.add_argument("--cache-dir", type=Path, default=Path(DEFAULT_CACHE), metavar="DIR", help=f"({DEFAULT_CACHE})")
    options = parser.parse_args()
    lines = Lines()
    workshop = Workshop(Cache(options.cache_dir), Settings(batch=options.batch), lines.progress)
    text = report(workshop, options.model, options.backend, options.mixtures)
    lines.done()
    print(text)


def report(workshop: Workshop, name: str, backend: str, mixtures: int) -> str:
    """Return the times of operators, and the predicted and realised times of mixtures."""
    latency, ranked = measure_static(workshop, name, backend), rank(workshop, name)
    chosen = _mixtures(ranked.errors, latency, mixtures)
    calls = [_call(workshop, name, backend, ranked.smoothed.leaving(wide)) for wide in chosen]
    realised = medians(calls, SECONDS, workshop.settings.threads)
    predicted = np.array([foreseen(ranked.errors, latency, wide).seconds for wide in chosen])
    above, below = spearman(predicted[None], realised[None])
    rows = [
        [f"{1e3 * expected:.2f}", f"{1e3 * found:.2f}", f"{100 * (expected / found - 1):+.1f} %", len(wide)]
        for wide, expected, found in zip(chosen, predicted, realised, strict=True)
    ]
    operators = [
        [weight, *(f"{1e3 * seconds:.3f}" for seconds in row)]
        for weight, row in zip(latency.weights, latency.seconds, strict=True)
    ]
    return "\n\n".join(
        [
            ", ".join(f"{key} {value}" for key, value in latency.conditions.items()),
            tabulate(operators, ["operator, ms", *latency.formats], disable_numparse=True),
            f"all else: {1e3 * latency.rest:.2f} ms",
            tabulate(rows, ["predicted, ms", "realised, ms", "off by", "wide operators"], disable_numparse=True),
            f"Spearman's rank correlation: {float(np.sum(above) / np.sum(below)):.3f}",
        ]
    )


def _mixtures(errors: Mapping[str, float], latency: Latency, count: int) -> list[list[str]]:
    """Return the operators left wide in each mixture, with none and all of them first and last."""
    names, generator = list(errors), np.random.default_rng(0)
    ends = [foreseen(errors, latency, wide).seconds for wide in ([], names)]
    bounds = np.linspace(*ends, count // 2 + 2)[1:-1]
    chosen = [choose(errors, latency, max_latency=float(bound)).wide for bound in bounds]
    sizes = np.linspace(0, len(names), count - len(chosen) + 2).round().astype(int)[1:-1]
    drawn = [generator.choice(names, size, replace=False).tolist() for size in sizes]
    return [[], *chosen, *drawn, names]


def _call(workshop: Workshop, name: str, backend: str, quantized: QuantizedModel) -> Call:
    """Return a call of tables on a backend with the batch that is timed."""
    artifact = compiled(workshop, Case(name, METHOD, BITS, backend), quantized)
    inputs = workshop.first_batch(workshop.calibration(name))
    return lambda: artifact.executable(*inputs)


if __name__ == "__main__":
    main()
