"""The measures a limit can be set on: where a record holds each, which direction is better, and what must agree."""

import math
from dataclasses import dataclass
from typing import Literal

from reports.record import Record


@dataclass(frozen=True)
class Measure:
    """One measure.

    section, key  where a record holds it
    better        which direction; None where the record says
    meaning       in words, with its unit
    comparable    what must agree between two runs: nothing but the data, the runtime, or the whole machine
    kinds         of the records it is judged in
    """

    section: str
    key: str
    better: Literal["higher", "lower"] | None
    meaning: str
    comparable: Literal["anywhere", "runtime", "machine"] = "anywhere"
    kinds: tuple[str, ...] = ("inference", "generate")

    def value(self, record: Record) -> float | None:
        """Return the figure, or None where it is not known."""
        figure = record[self.section].get(self.key)
        return figure if isinstance(figure, int | float) and math.isfinite(figure) else None

    def reason(self, record: Record) -> str:
        """Return why the figure is not known."""
        return record[self.section].get("reason") or f"the record has no {self.section}.{self.key}"

    def higher_is_better(self, record: Record) -> bool:
        return (self.better or record[self.section].get("better")) == "higher"


MEASURES = {
    "accuracy": Measure("accuracy", "value", None, "the model's own metric, whatever its name"),
    "error": Measure("fidelity", "error", "lower", "L2 distance of the outputs to float's, over theirs"),
    "sqnr_db": Measure("fidelity", "sqnr_db", "higher", "signal to quantization noise, in decibels"),
    "cosine": Measure("fidelity", "cosine", "higher", "mean cosine of the outputs with float's"),
    "agreement": Measure("fidelity", "agreement", "higher", "share of samples with float's best class"),
    "kl": Measure("fidelity", "kl", "lower", "mean divergence of class probabilities from float's, in nats"),
    "speed": Measure("speed", "ratio", "higher", "time of float / time of case, same backend", "runtime"),
    "time": Measure("speed", "p50", "lower", "median seconds of a call", "machine"),
    "size": Measure("size", "bytes", "lower", "bytes of the saved artefact"),
    "bits_per_weight": Measure("size", "bits_per_weight", "lower", "bits stored for each parameter"),
    "cost": Measure("cost", "seconds", "lower", "seconds the quantizer takes", "machine", ("quantize", "peer")),
    "memory": Measure("memory", "peak_bytes", "lower", "most bytes resident while the case runs", "machine"),
}
SHARES = ("accuracy", "agreement", "cosine")
"""Measures that may be limited in points."""


def is_share(record: Record) -> bool:
    """Whether the model's own metric lies between 0 and 1 with higher better, so that it can be told in points."""
    figures = [record["accuracy"].get(name) for name in ("baseline", "value")]
    return all(f is not None and 0 <= f <= 1 for f in figures) and record["accuracy"].get("better") == "higher"
