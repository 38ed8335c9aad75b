"""Cascades of a case's tables and float: their thresholds certified on samples beyond those that are evaluated.

What both models would answer on a sample is decided once, piece by piece, and kept in the cache: a run that was stopped
decides nothing twice, and thresholds, losses and other divisions of the samples are computed from it in no time.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.decisions import Decisions, NoCascade, certified, compared, joined
from benchmarks.matrix import model as model_entry
from fixtures.cache import source_digest
from fixtures.model import Model, Reference, Samples
from quant.adaptive import Cascade, Scores
from quant.certificate import fewest_sources
from reports.record import plain

if TYPE_CHECKING:
    from benchmarks.matrix import Case
    from benchmarks.workshop import Artifact, Workshop

CERTIFYING_SAMPLES = 1500
"""Beyond the evaluated ones, if the model has as many."""
PIECE = 250


def cascade(workshop: "Workshop", case: "Case", first: "Artifact") -> "Artifact":
    """Return the artefact of a case that escalates from ``first`` to float on the same backend.

    Raises:
        NoCascade: the model has no classes, or too few samples to certify anything on.
    """
    model, stronger, limit = workshop.model(case.model), workshop.baseline(case), workshop.settings.max_drop
    held_out = certifying_samples(workshop, case.model)
    found = decisions(workshop, first, stronger, held_out)
    sources, needed = len(np.unique(found.source)), fewest_sources(limit)
    if sources < needed:
        raise NoCascade(
            f"{case.model} has {sources} sources to certify a threshold on, beyond the evaluated samples: to show a "
            f"loss within {100 * limit:g} points takes {needed}, so lower --eval-samples, raise --max-drop or add data"
        )
    certificate = certified(found, limit)
    key = {"models": [first.entry.digest, stronger.entry.digest], "certificate": repr(certificate)}

    def build(folder: Path) -> None:
        (folder / "certificate.json").write_text(json.dumps(plain(asdict(certificate)), indent=2))

    entry = workshop.cache.entry("cascades", key | {"source": source_digest("quant.adaptive")}, build)
    scores = scores_of(model, workshop.reference(case.model))
    executable = Cascade(entry.path, first.executable, stronger.executable, certificate, scores)
    return replace(first, case=case, executable=executable, entry=entry, tables=None, parts=(first, stronger))


def certifying_samples(workshop: "Workshop", name: str) -> Samples:
    """Return samples beyond the evaluated ones that share no source with them.

    Raises:
        NoCascade: there are none.
    """
    evaluated = workshop.evaluation(name)
    more = workshop.model(name).evaluation(len(evaluated) + CERTIFYING_SAMPLES)
    chosen = ~np.isin(more.clusters, evaluated.clusters)
    if not chosen.any():
        raise NoCascade(f"{name} has no samples beyond the {len(evaluated)} evaluated ones: lower --eval-samples")
    return more.where(chosen)


def decisions(workshop: "Workshop", first: "Artifact", stronger: "Artifact", samples: Samples) -> Decisions:
    """Return what both would answer on the samples; on fewer if the time cap was reached.

    Raises:
        NoCascade: the outputs are no scores of classes.
    """
    start, found = time.perf_counter(), []
    for begin in range(0, len(samples), PIECE):
        path = _decided(workshop, (first, stronger), samples.between(begin, begin + PIECE), begin)
        with np.load(path) as arrays:
            found.append(Decisions(**arrays))
        if time.perf_counter() - start > workshop.settings.case_seconds:
            break
    return joined(found)


def scores_of(model: Model, reference: Reference | None) -> Scores:
    """Return what makes scores of a model's outputs.

    Raises:
        NoCascade: its outputs are no classes.
    """
    if model.scores is None:
        raise NoCascade(f"the outputs of {model.name} are no classes, so nothing tells where it is unsure")
    return lambda outputs: model.scores(outputs, reference)


def _decided(workshop: "Workshop", artifacts: "Sequence[Artifact]", samples: Samples, begin: int) -> Path:
    """Return the file of the decisions of the first and the stronger artefact on the samples from ``begin`` on."""
    model, size = workshop.model(artifacts[0].case.model), workshop.settings.batch
    scores = scores_of(model, workshop.reference(model.name))
    key = {
        "models": [artifact.entry.digest for artifact in artifacts],
        "backend": artifacts[0].case.backend,
        "data": samples.digest,
        "clusters": samples.clusters.tolist(),
        "begin": begin,
        "batch": size,
        "threads": workshop.settings.threads,
        "settings": [artifact.settings for artifact in artifacts],
        "source": source_digest(model_entry(model.name).module, "benchmarks.decisions", "quant.adaptive"),
    }

    def build(folder: Path) -> None:
        parts = []
        for start in range(0, len(samples), size):
            batch = samples.between(start, start + size)
            pair = [scores(np.asarray(one.executable(*batch.inputs)[0], np.float32)) for one in artifacts]
            parts.append(compared(model, *pair, batch, begin + start))
            workshop.report(f"{artifacts[0].case} beside float: {begin + start + len(batch)} samples")
        np.savez(folder / "decisions.npz", **vars(joined(parts)))

    return workshop.cache.entry("decisions", key, build).path / "decisions.npz"
