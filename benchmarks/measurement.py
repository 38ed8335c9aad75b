"""What one case measured, gathered step by step and put together as its record."""

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from benchmarks import judging, timing
from benchmarks.answers import Answers, refuse_not_finite
from benchmarks.matrix import Case
from benchmarks.tuned import settings_text
from benchmarks.workshop import PARITY_SAMPLES, Artifact, Tables, Workshop
from fixtures.model import Samples
from reports.paired import Contributions
from reports.record import SCHEMA, plain

_NO_TABLES = "the runtime's own quantizer has no tables to count or to simulate"
_NO_OWN_TABLES = "a cascade has no tables of its own: those of its first model are judged in that model's case"
_NO_PEAK = "a quantizer's peak memory is measured with -m quantize"
_NO_MEMORY = {"reason": "memory is measured with --memory"}


class Measurement:
    """Collects the figures of a case; :meth:`record` returns them in the schema of ``reports/record.py``."""

    def __init__(self, case: Case, kind: str, workshop: Workshop, benchmark, seconds: float) -> None:
        self.case, self.kind = case, kind
        self._workshop, self._benchmark, self._seconds = workshop, benchmark, seconds
        self._sections: dict[str, dict] = {}
        self._settings: dict[str, dict] = {}

    def judge(self, artifact: Artifact, baseline: Artifact, samples: Samples) -> None:
        """Compare the artefact's outputs with float's on the same backend, and with the simulation of its tables.

        Raises:
            ValueError: an output is NaN or infinite.
        """
        workshop, model = self._workshop, self._workshop.model(self.case.model)
        reference = workshop.reference(self.case.model)
        answers = workshop.answers(baseline, samples), workshop.answers(artifact, samples)
        for case, answer in zip((baseline.case, self.case), answers, strict=True):
            refuse_not_finite(case, answer)
        common = min(len(answer.outputs) for answer in answers)
        before, after = (answer.outputs[:common] for answer in answers)
        outcomes = judging.outcomes(model, reference, before, after, samples, _own(answers))
        self._sections |= {
            "accuracy": judging.accuracy(model, outcomes, samples),
            "fidelity": {**judging.fidelity(outcomes), "truncated": any(answer.truncated for answer in answers)},
            "parity": self._parity(artifact, samples, after),
            "scores": judging.scores(outcomes, after, samples),
            **self._artifact_sections(artifact, baseline),
            **_sensitivity(artifact.tables),
        }

    def time(self, artifact: Artifact, baseline: Artifact, samples: Samples) -> None:
        """Time the artefact interleaved with float on the same backend, on the first batch of the samples."""
        inputs = self._workshop.first_batch(samples)
        reason = artifact.executable.untimed_reason
        if reason:
            self._benchmark.pedantic(artifact.executable, args=inputs)
            self._sections["speed"] = {"reason": reason}
            return
        twin = self._workshop.twin(baseline)
        models = timing.Models(
            variant=lambda: artifact.executable(*inputs),
            baseline=lambda: baseline.executable(*inputs),
            twin=lambda: twin(*inputs),
        )
        times = timing.time_paired(self._benchmark, models, self._seconds, self._threads(artifact, baseline))
        self._sections["speed"] = timing.speed(times) if times else {"reason": timing.DISABLED}
        self._sections["speed"]["batch"] = self._workshop.settings.batch

    def memory(self, artifact: Artifact, baseline: Artifact, samples: Samples) -> None:
        """Measure the memory that the artefact and float on the same backend take, where the run asks for it.

        Raises:
            ProcessError: one of them does not load or run in a process of its own.
        """
        if not self._workshop.settings.memory:
            return
        if artifact.executable.untimed_reason:
            self._sections["memory"] = {"reason": artifact.executable.untimed_reason}
            return
        own, floats = (self._workshop.footprint(made, samples) for made in (artifact, baseline))
        self._sections["memory"] = {
            **asdict(own),
            **{f"baseline_{name}": value for name, value in asdict(floats).items()},
            "ratio": own.growth_bytes / floats.growth_bytes if floats.growth_bytes else None,
        }
        if not floats.growth_bytes:
            self._sections["memory"]["reason"] = "float grew by nothing, so there is no ratio to it"

    def record(self) -> dict[str, object]:
        """Return the record, in plain JSON types."""
        graph = self._workshop.prepare(self.case.model).graph
        case = {axis: getattr(self.case, axis) for axis in ("model", "method", "bits", "backend")}
        described = self._workshop.model(self.case.model)
        model = {
            "family": described.family,
            "parameters": graph.parameter_count,
            "weights_sha256": graph.weights_sha256,
            "provenance": described.provenance,
        }
        scheme = self.case.scheme.as_dict()
        if self.case.method_entry.native:
            scheme = {
                "name": self.case.bits,
                "quantizer": self.case.target.constant("NATIVE")[self.case.method][self.case.bits],
            }
        settings = {"settings": self._settings} if any(self._settings.values()) else {}
        return plain(
            {
                "schema": SCHEMA,
                "kind": self.kind,
                "case": case,
                "model": model,
                "scheme": scheme,
                "memory": _NO_MEMORY,
                **settings,
                **self._sections,
            }
        )

    def _threads(self, *artifacts: Artifact) -> int:
        """Return the most threads that one of them computes with."""
        return max(made.settings.get("threads", self._workshop.settings.threads) for made in artifacts)

    def _parity(self, artifact: Artifact, samples: Samples, outputs: np.ndarray) -> dict[str, object]:
        if artifact.tables is None:
            return {"error": None, "reason": no_tables(artifact)}
        count = min(PARITY_SAMPLES, len(outputs))
        shared = samples.first(count)
        simulated = self._workshop.simulated(artifact, shared)
        section = {"error": judging.relative_error(outputs[:count], simulated), "n": count}
        if artifact.tables.quantized.activations:
            perturbed = self._workshop.simulated(artifact, shared, perturbed=True)
            section["floor"] = judging.relative_error(perturbed, simulated)
        return section

    def _artifact_sections(self, artifact: Artifact, baseline: Artifact) -> dict[str, dict]:
        parameters = self._workshop.prepare(self.case.model).graph.parameter_count
        executable, tables = artifact.executable, artifact.tables
        size = {
            "bytes": executable.size_bytes,
            "baseline_bytes": 4 * parameters,
            "ratio": executable.size_bytes / (4 * parameters),
            "float_bytes": baseline.executable.size_bytes,
            "bits_per_weight": tables.quantized.bits_per_weight if tables else None,
        }
        coverage = dict(executable.coverage())
        if tables:
            coverage["parameters_quantized"] = tables.quantized.parameters_quantized
            coverage["left_float"] = tables.quantized.left_float()
        coverage.setdefault("parameters_quantized", None)
        coverage["notes"] = [*coverage.get("notes", ()), *about_start(artifact)]
        self._settings = {"case": artifact.settings, "float": baseline.settings}
        if tables is None:
            size["reason"] = coverage["reason"] = no_tables(artifact)
        maker = tables.entry if tables else artifact.entry
        return {
            "evidence": executable.evidence,
            "artifact": {"path": str(executable.path), "sha256": artifact.entry.content_sha256},
            "size": size,
            "coverage": coverage,
            "cost": {
                "seconds": maker.seconds,
                "peak_bytes": None,
                "cached": maker.cached,
                "compile_seconds": artifact.entry.seconds,
                "start_seconds": artifact.start_seconds,
                "reason": _NO_PEAK,
            },
        }


def _sensitivity(tables: Tables | None) -> dict[str, object]:
    """Return what each format would cost each weight, and what was chosen, where a method chose."""
    recipe = tables.quantized.recipe if tables else {}
    measured, formats = recipe.get("sensitivity"), recipe.get("formats")
    if not measured:
        return {}
    words = list(measured["formats"])
    layers = [
        {"name": name, "format": formats[name], "error": errors[words.index(formats[name])], "errors": errors}
        for name, errors in zip(measured["weights"], measured["errors"], strict=True)
    ]
    return {"sensitivity": {"criterion": measured["criterion"], "formats": words}, "layers": layers}


def _own(answers: tuple[Answers, Answers]) -> tuple[Contributions, Contributions] | None:
    """Return what both add to the metric on the samples they share, where the workshop computed it."""
    own = [answer.contributions for answer in answers]
    if None in own:
        return None
    common = min(map(len, own))
    return own[0].first(common), own[1].first(common)


def about_start(artifact: Artifact) -> Iterator[str]:
    """Yield what is to be known of how an artefact was opened."""
    if artifact.settings:
        yield f"Ran tuned: {settings_text(artifact.settings)}."
    if artifact.case.target.opt_in and artifact.start_seconds is not None:
        yield f"Loading it and a first call took {artifact.start_seconds:.0f} s."


def no_tables(artifact: Artifact) -> str:
    """Return why an artefact has no tables."""
    return _NO_OWN_TABLES if artifact.parts else _NO_TABLES
