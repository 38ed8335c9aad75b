"""Judging outputs: accuracy on labels, fidelity to the float model, parity with the simulation.

Each measure has one meaning, stated in its function; all compare with the float model on the same backend.
"""

import numpy as np

from fixtures.model import Model, Reference, Samples
from reports.record import pack_outcomes
from reports.statistics import accuracy_interval, flips, mcnemar, paired_p_value

_NO_LIMIT = "a verdict needs a limit: --metric-compare-fail"


def relative_error(outputs: np.ndarray, expected: np.ndarray) -> float:
    """Return the L2 norm of the difference over that of ``expected``, all samples stacked, in float64."""
    difference = outputs.astype(np.float64) - expected
    norm = np.linalg.norm(expected.astype(np.float64))
    return float(np.linalg.norm(difference) / norm) if norm else float(np.linalg.norm(difference) > 0)


def accuracy(
    model: Model, reference: Reference | None, baseline: np.ndarray, outputs: np.ndarray, samples: Samples
) -> dict[str, object]:
    """Return the accuracy section: the model's metric, its paired difference to float and the flips both ways."""
    if model.metric is None or samples.labels is None:
        return {"reason": model.no_metric_reason or "the samples have no labels"}
    labels = samples.labels[: len(outputs)]
    before, after = (np.argmax(model.scores(values, reference), axis=1) == labels for values in (baseline, outputs))
    clusters = samples.clusters[: len(outputs)]
    interval = accuracy_interval(before, after, clusters)
    turned = flips(before, after)
    clustered = len(np.unique(clusters)) < len(clusters)
    p_value = paired_p_value(after.astype(float) - before, clusters) if clustered else mcnemar(*turned)
    return {
        "metric": model.metric.name,
        "better": model.metric.better,
        "n": len(outputs),
        "truncated": len(outputs) < len(samples),
        "baseline": before.mean(),
        "value": after.mean(),
        "delta": after.mean() - before.mean(),
        "ci95": [interval.low, interval.high],
        "interval_method": interval.method,
        "p_value": p_value,
        "flips": turned._asdict(),
        "verdict": None,
        "reason": _NO_LIMIT,
    }


def fidelity(model: Model, reference: Reference | None, baseline: np.ndarray, outputs: np.ndarray) -> dict[str, object]:
    """Return how close the outputs are to float's.

    error      L2 norm of the difference over that of float's outputs, all samples stacked
    sqnr_db    -20 log10(error)
    cosine     mean over samples
    agreement  share of samples with the same best class
    kl         mean KL(float || variant) of the class probabilities, in nats
    """
    error = relative_error(outputs, baseline)
    before, after = (model.scores(values, reference) for values in (baseline, outputs))
    section = {
        "error": error,
        "sqnr_db": -20 * np.log10(error) if error > 0 else None,
        "cosine": _mean_cosine(baseline, outputs),
        "agreement": (before.argmax(axis=1) == after.argmax(axis=1)).mean(),
        "kl": _mean_divergence(before, after) if model.logits else None,
        "n": len(outputs),
    }
    reasons = []
    if section["sqnr_db"] is None:
        reasons.append("the outputs equal float's, so the ratio is infinite")
    if section["kl"] is None:
        reasons.append("the scores are no probabilities")
    return {**section, "reason": "; ".join(reasons)} if reasons else section


def scores(model: Model, reference: Reference | None, outputs: np.ndarray, samples: Samples) -> dict[str, object]:
    """Return the per-sample outcomes, packed, so that two runs can be paired."""
    if samples.labels is None or model.metric is None:
        return {"dataset_sha256": samples.digest, "packed": None, "reason": "without labels there are no outcomes"}
    right = np.argmax(model.scores(outputs, reference), axis=1) == samples.labels[: len(outputs)]
    return {"dataset_sha256": samples.digest, "packed": pack_outcomes(right)}


def _mean_cosine(first: np.ndarray, second: np.ndarray) -> float:
    first, second = (values.reshape(len(values), -1).astype(np.float64) for values in (first, second))
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(np.mean((first * second).sum(axis=1) / np.where(norms > 0, norms, 1)))


def _mean_divergence(before: np.ndarray, after: np.ndarray) -> float:
    before, after = (_log_softmax(values.astype(np.float64)) for values in (before, after))
    return float(max(0.0, (np.exp(before) * (before - after)).sum(axis=1).mean()))


def _log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
