"""Does mixed precision keep its promises: better than one format for all weights, and bytes and errors as foreseen?

    python -m benchmarks.mixed_check minilm reviews_gpt --backend onnxruntime mlx torch

For each model and backend, on held-out samples and by the runtime itself: the int4 formats, each taken by all weights
alike, and the integer program's choice in no more bytes than each; then a budget of bits, met by the program and by the
greedy choice. Foreseen and realised bytes stand side by side. Last, every weight of a mixed model is put into the float
model alone, to see whether the errors that were foreseen rank weights as the realised ones do.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
from scipy.stats import spearmanr
from tabulate import tabulate

from benchmarks import judging
from benchmarks.environment import pin_threads
from benchmarks.lines import Lines
from benchmarks.mixing import Choice, Mixer
from benchmarks.workshop import Artifact, Settings, Workshop
from fixtures.cache import Cache
from fixtures.model import Samples
from fixtures.plugin import DEFAULT_CACHE
from quant.backends import target
from quant.calibrate import as_tensors
from quant.graph import QuantizedModel, simulate
from quant.mixed import greedy

UNIFORM = ("int4_g32", "int4_g64", "int4_g128")
BUDGET = 4.5
ALONE = 64
"""How many samples single weights are tried on."""
COLUMNS = ("formats", "bits/weight", "MB foreseen", "MB", "error foreseen", "error", "metric")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="models of the zoo")
    parser.add_argument("--backend", nargs="+", default=["onnxruntime"], metavar="NAME", help="(onnxruntime)")
    parser.add_argument("--samples", type=int, default=500, metavar="N", help="held-out samples (500)")
    options = parser.parse_args()
    pin_threads(1)
    lines = Lines()
    settings = Settings(evaluation_samples=options.samples, case_seconds=math.inf)
    workshop = Workshop(Cache(Path.cwd() / DEFAULT_CACHE), settings, lines.progress)
    for model in options.models:
        for backend in options.backend:
            rows, count, correlation = _checked(Mixer(workshop, model, target(backend)), workshop)
            lines.done()
            print(f"{model} on {backend}\n{tabulate(rows, COLUMNS, floatfmt='.4g')}")
            print(f"foreseen and realised errors of {count} weights alone: Spearman {correlation:.2f}\n")


def _checked(mixer: Mixer, workshop: Workshop) -> tuple[list[list[object]], int, float]:
    """Return the table's rows, how many weights there are, and the correlation of their errors."""
    samples = workshop.evaluation(mixer.model)
    rows = []

    def judged(label: str, choice: Choice) -> Artifact:
        artifact = mixer.make(choice)
        error, metric = _error_and_metric(workshop, artifact, samples)
        foreseen, size = choice.size / 1e6, artifact.executable.size_bytes / 1e6
        rows.append([label, choice.bits_per_weight, foreseen, size, choice.error**0.5, error, metric])
        return artifact

    for word in UNIFORM:
        alike = judged(word, mixer.alike(word))
        judged("mixed, no larger", mixer.made_within_size(alike.executable.size_bytes)[0])
    judged(f"greedy, {BUDGET:g} bits", mixer.within_bits(BUDGET, greedy))
    choice = mixer.within_bits(BUDGET)
    artifact = judged(f"mixed, {BUDGET:g} bits", choice)
    return rows, len(choice.chosen), _correlation(mixer, choice, artifact.tables.quantized, samples)


def _error_and_metric(workshop: Workshop, artifact: Artifact, samples: Samples) -> tuple[float, str]:
    """Return the distance of the outputs from float's, relative, and what the model's own metric says of both."""
    model, baseline = workshop.model(artifact.case.model), workshop.baseline(artifact.case)
    before, after = (workshop.answers(made, samples) for made in (baseline, artifact))
    own = None if after.contributions is None else (before.contributions, after.contributions)
    reference = workshop.reference(model.name)
    outcomes = judging.outcomes(model, reference, before.outputs, after.outputs, samples, own)
    judged = judging.accuracy(model, outcomes, samples)
    metric = "{metric} {baseline:.4g} to {value:.4g}".format(**judged) if "metric" in judged else judged["reason"]
    return judging.fidelity(outcomes)["error"], metric


def _correlation(mixer: Mixer, choice: Choice, quantized: QuantizedModel, samples: Samples) -> float:
    """Return how what was foreseen of weights ranks them as what each does alone, as rounded, to samples never seen."""
    known = mixer.sensitivity.among(mixer.offer.weights, mixer.offer.words)
    foreseen = known[range(len(choice.chosen)), choice.chosen]
    inputs = as_tensors(samples.first(ALONE).inputs)
    with torch.inference_mode():
        expected = mixer.offer.graph.module()(*inputs)[0]
        realised = []
        for name in mixer.offer.weights:
            alone = replace(
                quantized,
                weights={key: table for key, table in quantized.weights.items() if key == name},
                floats={key: value for key, value in quantized.floats.items() if key == name},
            )
            realised.append(judging.relative_error(simulate(alone)(*inputs)[0].numpy(), expected.numpy()))
    return float(spearmanr(foreseen, realised).statistic)


if __name__ == "__main__":
    main()
