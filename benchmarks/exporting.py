"""Cases of the matrix in formats that are shipped, each checked on held-out samples and by the model's own metric."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks import judging
from benchmarks.generating import Decoders
from benchmarks.lines import Lines
from benchmarks.matrix import Case
from benchmarks.matrix import model as model_entry
from benchmarks.own import model_named
from benchmarks.workshop import CannotRun, Tables, Workshop
from fixtures.cache import digest_of, source_digest
from fixtures.model import Samples
from fixtures.own_files import OwnEntry
from quant.backends import target, targets
from quant.exporting import Format, RejectedExport
from quant.exporting.expected import Expected
from quant.exporting.shipping import VALIDATION, ship, standing
from quant.methods import method
from quant.replaying import environment
from quant.scheme import parse
from reports.exports import Export, exports_table
from reports.record import plain

SAMPLES = 100

_DEFAULT_BACKEND = "torch"


@dataclass(frozen=True)
class Result:
    """What became of one case in one format: the validation of what was written, or why nothing was.

    ``found`` says that it was there already.
    """

    case: str
    format: str
    validation: dict[str, object] | None
    reason: str | None = None
    found: bool = False

    @property
    def rejected(self) -> bool:
        return self.validation is not None and self.validation["verdict"] != "pass"

    def __str__(self) -> str:
        outcome = self.validation["verdict"] if self.validation else "not written"
        return f"{self.case} to {self.format}: {outcome}{', found unchanged' * self.found}"


@dataclass(frozen=True)
class Order:
    """Which tables are shipped: those of a case; without a backend each format has those of its own."""

    model: str
    method: str
    bits: str
    backend: str | None

    @property
    def name(self) -> str:
        return "-".join((self.model, self.method, self.bits, *filter(None, [self.backend])))

    def case(self, format: Format) -> Case:
        return Case(self.model, self.method, self.bits, self.backend or format.backend or _DEFAULT_BACKEND)


def order(text: str) -> Order:
    """Read a case's id, with or without its backend.

    Raises:
        ValueError: it is none, or what it names has no tables to ship; one sentence says what.
    """
    parts = text.rsplit("-", 3) if text.rpartition("-")[2] in targets() else [*text.rsplit("-", 2), None]
    if len(parts) != 4:
        raise ValueError(f"{text!r} is no case: write model-method-bits, as minilm-gptq-int4, and perhaps -backend.")
    model, named, bits, backend = parts
    chosen = method(named)
    if chosen.native:
        raise ValueError(f"{named} is a runtime's own quantizer and has no tables: use another method, such as rtn.")
    parse(bits, chosen.family)
    return Order(model_named(model), named, bits, backend)


class Shipping:
    """Ships orders, each in several formats, from a workshop's cache into folders below one."""

    def __init__(
        self,
        workshop: Workshop,
        folder: Path,
        samples: int,
        memory_limit: int | None,
        lines: Lines,
    ) -> None:
        self._workshop, self._folder, self._count = workshop, folder, samples
        self._memory_limit, self._lines = memory_limit, lines
        self._expected: dict[str, Expected] = {}
        self._held_out: dict[str, Samples] = {}
        self._decoders = Decoders(workshop)

    def ship(self, order: Order, formats: Sequence[Format]) -> list[Result]:
        """Return what became of one order in each format."""
        self._expected.clear()
        results = []
        for format in formats:
            self._lines.progress(f"exporting {order.name} to {format.name}")
            start = time.monotonic()
            results.append(self._one(order, format))
            self._lines.result(f"{results[-1]} after {time.monotonic() - start:.0f} s")
        return results

    def _one(self, order: Order, format: Format) -> Result:
        folder = self._folder / order.name / format.name
        try:
            case = order.case(format)
            calibration = self._workshop.calibration(order.model)
            tables = self._workshop.quantize(case, calibration)
            made_from = self._made_from(order, format, tables)
            known = standing(folder, made_from)
            if known:
                return Result(order.name, format.name, known, found=True)
            built = self._built(case, format, tables, calibration)
            expected = self._expectation(order, tables)
            if format.steps and self._workshop.model(order.model).generation:
                expected.step = self._decoders.prepare(order.model).graph
            ship(expected, format, folder, self._memory_limit, built, made_from)
        except RejectedExport as error:
            return Result(order.name, format.name, error.validation, "; ".join(error.validation["reasons"]))
        except (ModuleNotFoundError, CannotRun, ValueError, RuntimeError) as error:
            return Result(order.name, format.name, None, (str(error).strip() or type(error).__name__).splitlines()[0])
        return Result(order.name, format.name, json.loads((folder / VALIDATION).read_text()))

    def _made_from(self, order: Order, format: Format, tables: Tables) -> str:
        """Return the digest of all that an artefact and its validation come from."""
        backend = [target(format.backend).entry.module] if format.backend else []
        key = {
            "tables": tables.entry.digest,
            "samples": self._samples(order).digest,
            "memory_limit": self._memory_limit,
            "writer": source_digest(format.entry.module, "quant.exporting.shipping", "quant.exporting.child", *backend),
            "metric": _metric_source(order.model),
            "installed": format.installed(),
            "machine": environment(),
        }
        return digest_of(key)

    def _samples(self, order: Order) -> Samples:
        """Return the held-out samples, which are read once for a model."""
        if order.model not in self._held_out:
            model = self._workshop.model(order.model)
            count = min(self._count, model.fidelity_samples or self._count)
            self._held_out = {order.model: model.evaluation(count)}
        return self._held_out[order.model]

    def _built(self, case: Case, format: Format, tables: Tables, calibration: Samples) -> Path | None:
        """Return the folder that the format's backend has made, of the tables or of the model; None if it has none."""
        if format.backend is None or format.steps or format.missing():
            return None
        case = replace(case, backend=format.backend)
        if format.from_template:
            return self._workshop.template(case)
        return self._workshop.compile(case, tables, calibration).entry.path

    def _expectation(self, order: Order, tables: Tables) -> Expected:
        """Return what the tables mean on held-out samples; it is found out once for all formats that share them."""
        digest = tables.entry.digest
        if digest not in self._expected:
            model, reference = self._workshop.model(order.model), self._workshop.reference(order.model)
            samples = self._samples(order)

            def scores(outputs: np.ndarray) -> np.ndarray:
                return model.scores(outputs, reference)

            def metric(simulated: np.ndarray, outputs: np.ndarray) -> dict[str, object]:
                outcomes = judging.outcomes(model, reference, simulated, outputs, samples)
                return plain(judging.accuracy(model, outcomes, samples.first(len(outputs))))

            known = metric if model.metric and samples.labels is not None else None
            self._expected[digest] = Expected(tables.quantized, samples.inputs, scores if model.scores else None, known)
        return self._expected[digest]


def table(results: Sequence[Result]) -> str:
    """Return a table of all that was written, and below it a sentence on each that was not, or was rejected."""
    written = [Export(result.case, result.format, result.validation) for result in results if result.validation]
    reasons = [f"{result.case} to {result.format}: {result.reason}" for result in results if result.reason]
    parts = [exports_table(written)] if written else []
    return "\n\n".join([*parts, *(["\n".join(reasons)] if reasons else [])])


def _metric_source(model: str) -> str:
    """Return the digest of the code that judges a model; of one's own model the file, whose imports are unknown."""
    entry, judging = model_entry(model), "benchmarks.judging"
    if isinstance(entry, OwnEntry):
        return digest_of({"file": entry.path.read_text(encoding="utf-8"), "judging": source_digest(judging)})
    return source_digest(entry.module, judging)
