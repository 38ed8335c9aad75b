"""What a cascade of two models measured: its guarantee and how it held, who answered, and the time of a stream."""

from dataclasses import asdict, replace

import numpy as np

from benchmarks import streaming, timing
from benchmarks.cascading import certifying_samples, decisions
from benchmarks.decisions import Decisions, joined, resplit
from benchmarks.measurement import Measurement
from benchmarks.timing import Models
from benchmarks.workshop import Artifact
from fixtures.model import Samples
from quant.adaptive import Cascade
from quant.certificate import Certificate
from reports.paired import Contributions, change

_NO_MEMORY = {"reason": "a cascade takes the memory of both its models, which is measured in their own cases"}


class AdaptiveMeasurement(Measurement):
    """Collects the figures of a cascade."""

    def judge(self, artifact: Artifact, baseline: Artifact, samples: Samples) -> None:
        """Compare the cascade's outputs with float's, and see what became of its guarantee.

        Raises:
            ValueError: an output is NaN or infinite.
        """
        super().judge(artifact, baseline, samples)
        certificate, (first, stronger) = artifact.executable.certificate, artifact.parts
        held_out = certifying_samples(self._workshop, self.case.model)
        certifying, evaluated = (decisions(self._workshop, first, stronger, part) for part in (held_out, samples))
        apart = replace(evaluated, sample=evaluated.sample + len(held_out))
        resplits = resplit(joined([certifying, apart]), certificate.sources, certificate.limit)
        self._sections["adaptive"] = {
            "first": f"{first.case.method}-{first.case.bits}",
            "stronger": f"{stronger.case.method}-{stronger.case.bits}",
            **_guarantee(certificate),
            **_evaluated(evaluated, certificate, samples),
            "resplits": asdict(resplits),
        }

    def time(self, artifact: Artifact, baseline: Artifact, samples: Samples) -> None:
        """Time the cascade over the stream of the samples, interleaved with float, and a call that escalates."""
        reason = artifact.executable.untimed_reason
        if reason:
            super().time(artifact, baseline, samples)
        else:
            reason = self._time_stream(artifact, baseline, samples)
        if reason:
            unknown = {"expected_seconds": None, "worst_seconds": None, "reason": reason}
            self._sections["adaptive"] = unknown | self._sections["adaptive"]

    def memory(self, artifact: Artifact, baseline: Artifact, samples: Samples) -> None:
        """Say where the memory of its models is measured."""
        if self._workshop.settings.memory:
            self._sections["memory"] = _NO_MEMORY

    def record(self) -> dict[str, object]:
        """Return the record, in plain JSON types."""
        record = super().record()
        section = record["adaptive"]
        record["scheme"]["stronger"] = section["stronger"]
        record["coverage"]["notes"] = [*(record["coverage"].get("notes") or []), _note(section)]
        return record

    def _time_stream(self, artifact: Artifact, baseline: Artifact, samples: Samples) -> str | None:
        """Time both; return why there are no times, or None."""
        cascade: Cascade = artifact.executable
        batch, threads = self._workshop.settings.batch, self._threads(*artifact.parts)
        twin = self._workshop.twin(baseline)
        blocks = streaming.blocks_of(samples, batch)
        self._workshop.report(f"timing {self.case} over {len(samples)} samples")
        executables = Models(cascade, baseline.executable, twin)
        times = streaming.time_stream(self._benchmark, executables, blocks, threads)
        if times is None:
            self._sections["speed"] = {"reason": timing.DISABLED}
            return timing.DISABLED
        self._sections["speed"] = {**streaming.speed(times), "batch": batch}
        if self._sections["speed"]["refused"]:
            return self._sections["speed"]["reason"]
        inputs = blocks[0][0]
        always = cascade.with_threshold(np.inf)
        calls = Models(*(lambda one=one: one(*inputs) for one in (always, baseline.executable, twin)))
        worst = timing.compare(calls, self._seconds, threads)
        self._sections["adaptive"] |= {
            "expected_seconds": times.variant.mean(),
            "worst_seconds": None if timing.refusal(worst) else np.median(worst.variant),
        }
        return timing.refusal(worst)


def _guarantee(certificate: Certificate) -> dict[str, object]:
    """Return what was certified; an infinite threshold is no number."""
    section = {
        "threshold": certificate.threshold,
        "max_drop": certificate.limit,
        "confidence": certificate.confidence,
        "sources": certificate.sources,
        "lost_when_certified": certificate.lost,
    }
    if np.isfinite(certificate.threshold):
        return section
    return {**section, "threshold": None, "reason": "no threshold was shown to keep the limit, so float always answers"}


def _evaluated(found: Decisions, certificate: Certificate, samples: Samples) -> dict[str, object]:
    """Return who answered on samples that certified nothing, and the paired difference in right answers."""
    right = found.right(certificate.threshold)
    before, after = (_by_sample(found, values) for values in (found.stronger_right, right))
    paired = change(before, after, samples.clusters[: len(after)])
    unsure = ~(found.sureness >= certificate.threshold)
    section = {
        "answers": len(found),
        "escalated": unsure.mean(),
        "difference": paired.after - paired.before,
        "ci95": paired.interval[:2] if paired.interval else None,
        "sureness": "margin",
    }
    return section if paired.interval else {**section, "reason": "a single source has no interval"}


def _by_sample(found: Decisions, right: np.ndarray) -> Contributions:
    """Return the right answers of each sample as a share of all answers."""
    answers = np.bincount(found.sample)
    if len(answers) == len(found):
        return Contributions(right)
    return Contributions(np.bincount(found.sample, weights=right), answers)


def _note(section: dict) -> str:
    resplits = section["resplits"]
    worst = "" if section["worst_seconds"] is None else f", a call in {1000 * section['worst_seconds']:.3g} ms"
    return (
        f"{section['stronger']} answered {100 * section['escalated']:.1f} % of the time{worst}; a loss within "
        f"{100 * section['max_drop']:g} points of it was shown on {section['sources']} other sources, at "
        f"{100 * section['confidence']:g} % confidence, and held on {resplits['held']} of {resplits['count']} resplits."
    )
