"""What two models would answer, and what follows for a cascade of them: which threshold, and what is lost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fixtures.model import Model, Samples
from quant.adaptive import margin
from quant.certificate import Certificate, certify

RESPLITS = 20


class NoCascade(ValueError):
    """A model or its data do not allow a cascade; the message says why, and the remedy."""


@dataclass(frozen=True)
class Decisions:
    """What two models would answer, answer by answer: a sample has one, or one for each token of its text.

    sureness        float32 [m], of the first model
    first_right     bool [m]; without labels, whether it agrees with the stronger model
    stronger_right  bool [m]
    sample          int64 [m], the position of the answer's sample
    source          int64 [m], its cluster
    """

    sureness: np.ndarray
    first_right: np.ndarray
    stronger_right: np.ndarray
    sample: np.ndarray
    source: np.ndarray

    def __len__(self) -> int:
        return len(self.sureness)

    @property
    def lost(self) -> np.ndarray:
        """Bool [m]: where the first model is wrong and the stronger one right."""
        return self.stronger_right & ~self.first_right

    def where(self, chosen: np.ndarray) -> "Decisions":
        """Return those of the answers, bool [m] or positions, that are chosen."""
        return Decisions(*(values[chosen] for values in vars(self).values()))

    def right(self, threshold: float) -> np.ndarray:
        """Bool [m]: where the cascade is right."""
        return np.where(self.sureness >= threshold, self.first_right, self.stronger_right)


@dataclass(frozen=True)
class Resplits:
    """Certificates on other divisions of the same answers: in how many the loss on the rest was within the limit."""

    count: int
    held: int
    largest_loss: float


def certified(found: Decisions, limit: float) -> Certificate:
    """Return the certificate on these answers; of samples with one answer each, one a source, so that it is exact."""
    if len(np.unique(found.sample)) == len(found):
        found = found.where(np.unique(found.source, return_index=True)[1])
    return certify(found.sureness, found.lost, found.source, limit)


def resplit(found: Decisions, sources: int, limit: float, count: int = RESPLITS) -> Resplits:
    """Certify on so many sources drawn at random, and see what is lost on all others, ``count`` times."""
    names, losses = np.unique(found.source), []
    for seed in range(count):
        drawn = np.random.default_rng(seed).permutation(names)[:sources]
        inside = np.isin(found.source, drawn)
        rest = found.where(~inside)
        right = rest.right(certified(found.where(inside), limit).threshold)
        losses.append(float(rest.stronger_right.mean() - right.mean()))
    return Resplits(count, sum(loss <= limit for loss in losses), max(losses))


def compared(model: Model, first: np.ndarray, stronger: np.ndarray, samples: Samples, begin: int) -> Decisions:
    """Return the decisions of two models by their scores [n, classes], or [n, t, classes] of the tokens of texts.

    ``begin`` is the position of the first of the n samples.

    Raises:
        NoCascade: they are no scores of the classes that the labels name.
    """
    answers = stronger.argmax(axis=-1)
    truth = answers if samples.labels is None or model.metric is None else samples.labels
    if truth.shape != answers.shape or first.shape[-1] < 2:
        raise NoCascade(f"the outputs of {model.name} are no scores of the classes that its labels name")
    inside = np.broadcast_to(np.arange(len(truth)).reshape(-1, *[1] * (truth.ndim - 1)), truth.shape)
    values = margin(first).astype(np.float32), first.argmax(axis=-1) == truth, answers == truth, inside + begin
    found = Decisions(*(value.reshape(-1) for value in (*values, samples.clusters[inside])))
    return found.where(truth.reshape(-1) >= 0)  # a label below zero is none


def joined(parts: Sequence[Decisions]) -> Decisions:
    """Return the decisions of several parts of the samples as one."""
    return Decisions(*(np.concatenate(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))
