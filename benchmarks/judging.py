"""Judging outputs: accuracy on labels, fidelity to the float model, parity with the simulation.

Each measure has one meaning, stated in its function; all compare with the float model on the same backend.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fixtures.model import Model, Reference, Samples
from reports.paired import Contributions, change
from reports.record import pack_outcomes
from reports.scores import pack_scores
from reports.statistics import flips

_NO_LIMIT = "a verdict needs a limit: --metric-compare-fail"


@dataclass(frozen=True)
class Outcomes:
    """What each sample contributes to every measure of a case.

    before, after  to the model's own metric, of float and of the case; None where there are no labels
    error          squared distance of the outputs from float's, over the squared norm of float's
    cosine         of the outputs with float's
    agreement      whether the best class is float's, a share where a sample has several answers; None without classes
    divergence     KL(float || case) of the class probabilities, in nats; None where scores are no probabilities
    """

    before: Contributions | None
    after: Contributions | None
    error: Contributions
    cosine: Contributions
    agreement: Contributions | None
    divergence: Contributions | None

    def __len__(self) -> int:
        """How many samples were judged; their outputs may have been compared with float's on the first of them only."""
        return len(self.error if self.after is None else self.after)


def outcomes(
    model: Model,
    reference: Reference | None,
    baseline: np.ndarray,
    outputs: np.ndarray,
    samples: Samples,
    own: tuple[Contributions | None, Contributions | None] | None = None,
) -> Outcomes:
    """Return the outcomes of outputs [n, ...] beside float's, on the first n of the samples.

    ``own`` is what float and the case add to the metric where it is known for more samples than there are outputs of.
    """
    if own is None:
        samples = samples.first(len(outputs))
        own = tuple(contributions(model, reference, values, samples) for values in (baseline, outputs))
    error, cosine = _error(baseline, outputs), _cosine(baseline, outputs)
    if model.scores is None:
        return Outcomes(*own, error, cosine, None, None)
    before, after = (model.scores(values, reference) for values in (baseline, outputs))
    divergence = Contributions(_divergence(before, after)) if model.logits else None
    return Outcomes(*own, error, cosine, _agreement(before, after), divergence)


def accuracy(model: Model, outcomes: Outcomes, samples: Samples) -> dict[str, object]:
    """Return the accuracy section: the model's metric, its paired difference to float and the flips both ways."""
    before, after = outcomes.before, outcomes.after
    if before is None or after is None:
        return {"reason": model.no_metric_reason or "the samples have no labels"}
    found = change(before, after, samples.clusters[: len(after)])
    counts = before.counts and after.counts
    section = {
        "metric": model.metric.name,
        "better": model.metric.better,
        "n": len(after),
        "truncated": len(after) < len(samples),
        "baseline": found.before,
        "value": found.after,
        "delta": found.after - found.before,
        "ci95": [found.interval.low, found.interval.high] if found.interval else None,
        "interval_method": found.interval.method if found.interval else None,
        "p_value": found.p_value,
        "flips": flips(before.numerators, after.numerators)._asdict() if counts else None,
        "verdict": None,
    }
    reasons = [] if counts else ["a sample is not right or wrong, so none flips"]
    reasons += [] if found.interval else ["a single cluster has no interval"]
    return {**section, "reason": "; ".join([*reasons, _NO_LIMIT])}


def fidelity(outcomes: Outcomes) -> dict[str, object]:
    """Return how close the outputs are to float's.

    error      L2 norm of the difference over that of float's outputs, all samples stacked
    sqnr_db    -20 log10(error)
    cosine     mean over samples
    agreement  share of samples with the same best class
    kl         mean KL(float || variant) of the class probabilities, in nats
    """
    error, divergence = outcomes.error.value(), outcomes.divergence
    error = error if np.isfinite(error) else float(outcomes.error.numerators.any())
    section = {
        "error": error,
        "sqnr_db": -20 * np.log10(error) if error > 0 else None,
        "cosine": outcomes.cosine.value(),
        "agreement": outcomes.agreement.value() if outcomes.agreement else None,
        "kl": max(0.0, divergence.value()) if divergence else None,
        "n": len(outcomes.error),
    }
    reasons = []
    if section["sqnr_db"] is None:
        reasons.append("the outputs equal float's, so the ratio is infinite")
    if outcomes.agreement is None:
        reasons.append("the outputs are no classes")
    elif section["kl"] is None:
        reasons.append("the scores are no probabilities")
    return {**section, "reason": "; ".join(reasons)} if reasons else section


def scores(outcomes: Outcomes, outputs: np.ndarray, samples: Samples) -> dict[str, object]:
    """Return the per-sample outcomes, packed, so that two runs can be paired."""
    parts = {"accuracy": outcomes.after, "baseline": outcomes.before, "kl": outcomes.divergence}
    parts |= {name: getattr(outcomes, name) for name in ("error", "cosine", "agreement")}
    n, digest = len(outcomes), hashlib.sha256(np.ascontiguousarray(outputs).data)
    if len(outputs) < n:
        digest.update(np.ascontiguousarray(outcomes.after.numerators).data)  # what is kept of the other outputs
    section = {
        "dataset_sha256": samples.digest,
        "samples": pack_outcomes(samples.digests[:n]),
        "outputs_sha256": digest.hexdigest(),
        **pack_scores({name: part for name, part in parts.items() if part is not None}, samples.clusters[:n]),
    }
    return section if outcomes.after else {**section, "reason": "without labels there are no outcomes"}


def relative_error(outputs: np.ndarray, expected: np.ndarray) -> float:
    """Return the L2 norm of the difference over that of ``expected``, all samples stacked, in float64."""
    difference = outputs.astype(np.float64) - expected
    norm = np.linalg.norm(expected.astype(np.float64))
    return float(np.linalg.norm(difference) / norm) if norm else float(np.linalg.norm(difference) > 0)


def contributions(
    model: Model, reference: Reference | None, outputs: np.ndarray, samples: Samples
) -> Contributions | None:
    """Return what the samples add to the model's own metric by their outputs [n, ...]; None without labels."""
    metric = model.metric
    if metric is None or samples.labels is None:
        return None
    if metric.contributions is not None:
        return Contributions(*metric.contributions(outputs, samples, reference), metric.form)
    return Contributions(np.argmax(model.scores(outputs, reference), axis=1) == samples.labels, None, metric.form)


def joined_contributions(parts: Sequence[Contributions | None]) -> Contributions | None:
    """Return the contributions of consecutive batches as those of all their samples."""
    if parts[0] is None:
        return None
    weights = None if parts[0].denominators is None else np.concatenate([part.denominators for part in parts])
    return Contributions(np.concatenate([part.numerators for part in parts]), weights, parts[0].form)


def _error(baseline: np.ndarray, outputs: np.ndarray) -> Contributions:
    baseline, outputs = _rows(baseline), _rows(outputs)
    return Contributions(((outputs - baseline) ** 2).sum(axis=1), (baseline**2).sum(axis=1), "root_mean")


def _cosine(baseline: np.ndarray, outputs: np.ndarray) -> Contributions:
    baseline, outputs = _rows(baseline), _rows(outputs)
    norms = np.linalg.norm(baseline, axis=1) * np.linalg.norm(outputs, axis=1)
    return Contributions((baseline * outputs).sum(axis=1) / np.where(norms > 0, norms, 1))


def _agreement(before: np.ndarray, after: np.ndarray) -> Contributions:
    equal = before.argmax(axis=-1) == after.argmax(axis=-1)
    return Contributions(equal if equal.ndim == 1 else equal.reshape(len(equal), -1).mean(axis=1))


def _divergence(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    before, after = (_log_softmax(values.astype(np.float64)) for values in (before, after))
    return (np.exp(before) * (before - after)).sum(axis=-1).reshape(len(before), -1).mean(axis=1)


def _log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _rows(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).astype(np.float64)
