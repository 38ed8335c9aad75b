"""Per-sample scores in a record: packed, so that two runs can be paired sample by sample.

The section ``scores`` holds, each packed by :func:`reports.record.pack_outcomes`:

    n                             samples
    n_fidelity                    how many of them, from the first on, were compared with float's outputs: n if absent
    dataset_sha256                of all samples and labels
    samples                       a digest of each sample, by which two runs find the data they share
    clusters                      the number of each sample's cluster; null where each is its own
    outputs_sha256                of the outputs
    packed, weights, form         contributions to the model's own metric (weights null where each counts one)
    baseline                      float's contributions, the numerators alone
    agreement, cosine, kl         of the outputs with float's
    squared_error, squared_norm   of the outputs' difference from float's, and of float's
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy

from reports.paired import FORMS, Contributions
from reports.record import Record, pack_outcomes, unpack_outcomes

_WITH_FLOAT = ("agreement", "cosine", "kl")
_OF_SAMPLES = ("samples", "clusters")
_ERRORS = {"error": "root_mean", "sqnr_db": "decibels"}
PAIRED = ("accuracy", *_WITH_FLOAT, *_ERRORS)
"""Metrics that samples contribute to."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What the samples of one case contribute to its metrics.

    digests  uint32 [n], one of each sample; None in records that do not have them
    """

    dataset: str
    digests: numpy.ndarray | None
    clusters: numpy.ndarray | None
    outputs: str | None
    contributions: dict[str, Contributions]


def pack_scores(parts: dict[str, Contributions], clusters: numpy.ndarray) -> dict[str, object]:
    """Return the packed part of the section from contributions by metric, those of ``baseline`` among them."""
    own, errors = parts.get("accuracy"), parts["error"]
    section = {
        "n": len(errors if own is None else own),
        "n_fidelity": len(errors),
        "clusters": pack_outcomes(clusters) if len(numpy.unique(clusters)) < len(clusters) else None,
        "squared_error": pack_outcomes(errors.numerators),
        "squared_norm": pack_outcomes(errors.denominators),
        "packed": None,
    }
    if own is not None:
        weights = None if own.denominators is None else pack_outcomes(own.denominators)
        section |= {"packed": pack_outcomes(own.numerators), "weights": weights, "form": own.form}
        section["baseline"] = pack_outcomes(parts["baseline"].numerators)
    return section | {name: pack_outcomes(parts[name].numerators) for name in _WITH_FLOAT if name in parts}


def scores_of(record: Record) -> Scores:
    """Return the scores of a record, as far as it has them.

    Raises:
        ValueError: they are damaged.
    """
    section = record["scores"]
    n = section.get("n") or record["accuracy"].get("n") or 0
    found = dict(_contributions(section, n, section.get("n_fidelity", n)))
    digests, clusters = (unpack_outcomes(section[key], n) if section.get(key) else None for key in _OF_SAMPLES)
    return Scores(section.get("dataset_sha256") or "", digests, clusters, section.get("outputs_sha256"), found)


def shared_samples(first: Scores, second: Scores) -> int:
    """Return how many samples both were judged on: the common beginning of their fixed order."""
    lengths = [len(next(iter(scores.contributions.values()), ())) for scores in (first, second)]
    if first.digests is None or second.digests is None:
        return min(lengths) if first.dataset == second.dataset else 0
    equal = first.digests[: min(lengths)] == second.digests[: min(lengths)]
    return int(equal.argmin()) if not equal.all() else len(equal)


def _contributions(section: Record, n: int, n_fidelity: int) -> Iterator[tuple[str, Contributions]]:
    if section.get("packed"):
        weights = unpack_outcomes(section["weights"], n) if section.get("weights") else None
        form = section.get("form", "mean")
        if form not in FORMS:
            raise ValueError(f"The scores are of the unknown form {form!r}; measure the run again.")
        yield "accuracy", Contributions(unpack_outcomes(section["packed"], n), weights, form)
    for metric in _WITH_FLOAT:
        if section.get(metric):
            yield metric, Contributions(unpack_outcomes(section[metric], n_fidelity))
    if section.get("squared_error"):
        error, norm = (unpack_outcomes(section[key], n_fidelity) for key in ("squared_error", "squared_norm"))
        for metric, form in _ERRORS.items():
            yield metric, Contributions(error, norm, form)
