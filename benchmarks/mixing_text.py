"""What mixed precision chose, in words and as the file of a recipe."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate

from benchmarks.losses import Drop, loss_text
from benchmarks.mixing import Choice, Mixer
from benchmarks.workshop import Artifact
from quant.mixed import greedy, uniform
from quant.replaying import recipe_of
from quant.search import Loss
from reports.record import plain
from reports.tables import NULL, three_digits


@dataclass(frozen=True)
class Point:
    """A choice that was made, and what came of it.

    size    bytes of its artefact
    error   distance of its outputs from float's over theirs, None where it was not judged
    loss    on samples that had no part in the choice, None where nothing tells
    recipe  in plain JSON types
    """

    choice: Choice
    size: int
    recipe: dict[str, object]
    error: float | None = None
    loss: Loss | None = None


def explanation(mixer: Mixer, point: Point, drop: Drop | None) -> str:
    """Say what was chosen, what it is foreseen to lose and did lose, and why each weight has the format it has."""
    choice = point.choice
    sentences = [
        f"{choice.bits_per_weight:.3g} bits per weight, {_megabytes(point.size)} ({_megabytes(choice.size)} foreseen).",
        _beside_others(mixer, choice),
    ]
    if point.loss is not None:
        sentences.append(f"It {loss_text(point.loss, drop.unit, fresh=True)} ({drop.metric}).")
    headers = ("weight", "elements", "format", "kB", "error", "why")
    rows = [list(row.values()) for row in layers(mixer, choice)]
    for row in rows:
        row[1], row[3], row[4] = f"{row[1]:,}", three_digits(row[3] / 1e3), f"{100 * row[4]:.1f} %"
    align = ("left", "right", "left", "right", "right", "left")
    return " ".join(sentences) + "\n\n" + tabulate(rows, headers, disable_numparse=True, colalign=align)


def pareto(points: Sequence[Point], drop: Drop | None) -> str:
    """The table of several choices, the smallest first."""
    rows = [
        (
            f"{point.choice.bits_per_weight:.3g}",
            three_digits(point.size / 1e6),
            f"{point.choice.error:.3g}",
            NULL if point.error is None else f"{point.error:.3g}",
            NULL if point.loss is None else loss_text(point.loss, drop.unit, fresh=True),
        )
        for point in points
    ]
    headers = ("bits/weight", "MB", "error foreseen", "error of outputs", "loss")
    return tabulate(rows, headers, disable_numparse=True, colalign=("right", "right", "right", "right", "left"))


def layers(mixer: Mixer, choice: Choice) -> list[dict[str, object]]:
    """Return of each weight what was chosen and why: its elements, format, bytes and share of the foreseen error."""
    offer, problem = mixer.offer, mixer.by_size
    named, total = offer.named(choice.chosen), choice.error or 1.0
    found = []
    for place, name in enumerate(offer.weights):
        column = choice.chosen[place]
        found.append(
            {
                "name": name,
                "elements": offer.graph.parameters[name].numel(),
                "format": named[name],
                "bytes": float(mixer.stored_bits[place, column] / 8),
                "share": float(problem.error[place, column] / total),
                "why": _why(mixer, choice, place),
            }
        )
    return found


def recipe_document(
    mixer: Mixer, choice: Choice, artifact: Artifact, batches: Sequence[tuple[np.ndarray, ...]]
) -> dict[str, object]:
    """Return the file of a recipe, in plain JSON types: ``quant.replay`` makes the same tables of it."""
    return plain(
        {
            **artifact_document(artifact, batches),
            "foreseen": {
                "criterion": mixer.criterion,
                "error": choice.error,
                "bits_per_weight": choice.bits_per_weight,
                "size_bytes": choice.size,
            },
            "layers": layers(mixer, choice),
        }
    )


def artifact_document(artifact: Artifact, batches: Sequence[tuple[np.ndarray, ...]]) -> dict[str, object]:
    """Return the recipe of an artefact, and what there is to know of it that nobody foresaw or chose."""
    return {
        **recipe_of(artifact.tables.quantized, batches),
        "model": artifact.case.model,
        "backend": artifact.case.backend,
        "runtime": artifact.case.target.load().version(),
        "scheme": artifact.case.scheme.as_dict(),
        "artifact_sha256": artifact.entry.content_sha256,
        "size_bytes": artifact.executable.size_bytes,
    }


def verified(loss: Loss, drop: Drop) -> dict[str, object]:
    """Return what a recipe says of a loss on fresh samples."""
    return {
        "metric": drop.metric,
        "unit": drop.limit.unit,
        "loss": loss.value,
        "ci95": [loss.low, loss.high],
        "samples": loss.samples,
    }


def _beside_others(mixer: Mixer, choice: Choice) -> str:
    """What the two simpler choices would lose in as many bytes."""
    problem = mixer.by_size
    budget = problem.total_cost(choice.chosen) * (1 + 1e-9)
    others = [f"greedily {problem.total_error(greedy(problem, budget)):.3g}"]
    try:
        alike = uniform(problem, budget)
    except ValueError:
        others.append("no single format for all weights would fit")
    else:
        others.append(f"with {mixer.offer.words[alike[0]]} for all weights {problem.total_error(alike):.3g}")
    return f"The error foreseen is {choice.error:.3g} by {mixer.criterion}; in as many bytes, {', '.join(others)}."


def _why(mixer: Mixer, choice: Choice, place: int) -> str:
    """What the best step down and the best step up would change, of all weights that choose with this one."""
    problem, words = mixer.by_size, mixer.offer.words
    unit, now, total = problem.unit_of[place], choice.chosen[place], choice.error or 1.0
    error, cost = problem.units.error[unit], problem.units.cost[unit]
    added, saved = (error - error[now]) / total, (cost[now] - cost) / 8
    with np.errstate(divide="ignore", invalid="ignore"):
        down = np.where((saved > 0) & np.isfinite(error), added / saved, np.inf)
        up = np.where((saved < 0) & (added < 0), added / saved, -np.inf)
    parts = []
    if np.isfinite(down).any():
        step = int(down.argmin())
        parts.append(f"{words[step]} would save {_bytes(saved[step])} and add {100 * added[step]:.2g} % of error")
    if np.isfinite(up).any():
        step = int(up.argmax())
        parts.append(f"{words[step]} would take {_bytes(-saved[step])} and remove {-100 * added[step]:.2g} %")
    joined = [mixer.offer.weights[index] for index in np.flatnonzero(problem.unit_of == unit) if index != place]
    if joined:
        parts.append(f"chooses with {', '.join(joined)}")
    return "; ".join(parts) or "nothing else is on offer"


def _bytes(count: float) -> str:
    return f"{three_digits(count / 1e3)} kB"


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.4g} MB"
