"""A cascade: a cheap model answers first, and a stronger one where the first is unsure.

An answer is a class, or each token of a text. The first model's stands where its sureness, the margin between the two
best scores or the certainty of their softmax, reaches the threshold of a certificate (``quant.certificate``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from quant.backends import Executable
from quant.certificate import Certificate
from quant.generation import bytes_of, places

Scores = Callable[[np.ndarray], np.ndarray]
"""Outputs [n, ...] of a model -> a score of each class, [n, classes], or of each token, [n, t, vocabulary]."""

_EVIDENCE = ("measured", "simulated", "evaluated")


def margin(scores: np.ndarray) -> np.ndarray:
    """Return float [...]: by how much the best of scores [..., classes] exceeds the next."""
    _refuse_no_classes(scores)
    with np.errstate(invalid="ignore"):
        next_best, best = np.moveaxis(np.partition(scores, (-2, -1), axis=-1)[..., -2:], -1, 0)
        return best - next_best


def certainty(scores: np.ndarray) -> np.ndarray:
    """Return float [...], at most 0: minus the entropy, in nats, of the softmax of scores [..., classes]."""
    _refuse_no_classes(scores)
    with np.errstate(invalid="ignore"):
        shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
        probabilities = np.exp(shifted)
        total = probabilities.sum(axis=-1, keepdims=True)
        # The logarithm of a probability of zero is finite here, and its product with it zero.
        logs = np.maximum(shifted, np.finfo(np.float64).min) - np.log(total)
        return (probabilities / total * logs).sum(axis=-1)


class Cascade:
    """Two executables as one: outputs of the first where it is sure, of the stronger one elsewhere.

    Batches are split, not padded: the samples with an answer that escalates are gathered, and run together in the
    stronger model. ``asked`` and ``escalated`` count the answers that were given, and those of the stronger model.
    """

    def __init__(
        self,
        path: Path,
        first: Executable,
        stronger: Executable,
        certificate: Certificate,
        scores: Scores = lambda outputs: outputs,
        sureness: Scores = margin,
    ) -> None:
        self.path, self.first, self.stronger, self.certificate = path, first, stronger, certificate
        self.asked = self.escalated = 0
        self._scores, self._sureness = scores, sureness

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Run one batch."""
        outputs = self.first(*inputs)
        unsure = self._unsure(outputs[0])
        samples = unsure.reshape(len(unsure), -1).any(axis=1)
        if not samples.any():
            return outputs
        stronger = self.stronger(*(values[samples] for values in inputs))
        merged = [_merged(*pair, samples) for pair in zip(outputs, stronger, strict=True)]
        # Of a text, only the tokens that are unsure are the stronger model's.
        kept = ~unsure
        merged[0][kept] = np.asarray(outputs[0])[kept]
        return merged

    def step(self, tokens: np.ndarray, positions: np.ndarray, past: np.ndarray, *caches: object) -> tuple:
        """Go on with texts as a decoder does, whose stronger model reads what it missed when it is asked.

        Each text has a backlog of its own, so the texts of a batch take their steps one after the other.
        """
        texts = [
            caches[index]
            if isinstance(caches[0], _Kept)
            else _Kept.at_start([cache[index : index + 1] for cache in caches])
            for index in range(len(tokens))
        ]
        steps = [self._step(tokens[index : index + 1], positions, past, text) for index, text in enumerate(texts)]
        return np.concatenate([logits for logits, _ in steps]), [kept for _, kept in steps]

    @property
    def evidence(self) -> str:
        """That of the model whose evidence is weaker."""
        return max(self.first.evidence, self.stronger.evidence, key=_EVIDENCE.index)

    @property
    def untimed_reason(self) -> str | None:
        return self.first.untimed_reason or self.stronger.untimed_reason

    @property
    def size_bytes(self) -> int:
        """Bytes of both artefacts."""
        return self.first.size_bytes + self.stronger.size_bytes

    def coverage(self) -> dict[str, object]:
        """Return that of the first model."""
        return self.first.coverage()

    def with_threshold(self, threshold: float) -> "Cascade":
        """Return a cascade of the same executables; with an infinite threshold the stronger one always answers."""
        certificate = replace(self.certificate, threshold=threshold)
        return Cascade(self.path, self.first, self.stronger, certificate, self._scores, self._sureness)

    def _unsure(self, outputs: np.ndarray) -> np.ndarray:
        """Return bool [n], or [n, t] of a text's tokens, and count them."""
        # Written so that NaN is unsure.
        unsure = ~(self._sureness(self._scores(outputs)) >= self.certificate.threshold)
        self.asked += unsure.size
        self.escalated += int(unsure.sum())
        return unsure

    def _step(self, tokens: np.ndarray, positions: np.ndarray, past: np.ndarray, text: "_Kept") -> tuple:
        logits, first = self.first.step(tokens, positions, past, *text.first)
        missed = np.concatenate([text.missed, tokens], axis=1)
        if not self._unsure(logits).any():
            return logits, _Kept(first, text.stronger, missed)
        end = int(positions[-1]) + 1
        logits, stronger = self.stronger.step(missed, *places(end - missed.shape[1], missed.shape[1]), *text.stronger)
        return logits, _Kept(first, stronger, missed[:, :0])


@dataclass(frozen=True)
class _Kept:
    """What a cascade keeps of one text: both models' caches, and the tokens int64 [1, k] the stronger has not read."""

    first: Sequence[object]
    stronger: Sequence[object]
    missed: np.ndarray

    @classmethod
    def at_start(cls, caches: Sequence[np.ndarray]) -> "_Kept":
        return cls(caches, caches, np.empty((1, 0), np.int64))

    @property
    def nbytes(self) -> int:
        return bytes_of(self.first) + bytes_of(self.stronger)


def _merged(before: np.ndarray, after: np.ndarray, samples: np.ndarray) -> np.ndarray:
    merged = np.array(before)
    merged[samples] = after
    return merged


def _refuse_no_classes(scores: np.ndarray) -> None:
    if scores.ndim < 2 or scores.shape[-1] < 2:
        raise ValueError(
            f"scores of the shape {scores.shape} are not those of two classes or more: nothing tells how sure."
        )
