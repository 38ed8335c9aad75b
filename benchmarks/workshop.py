"""The workshop: models, tables, artefacts and outputs, each made once and shared by all cases, runs and workers.

Everything goes through the cache, under a key that names all it was made from: weights, data, settings, library
versions, the machine's instruction set, and the source of every module of ours that took part.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import cascading, footprint, judging
from benchmarks.answers import Answers, answer, answers_of_module
from benchmarks.footprint import Footprint
from benchmarks.ingredients import runtime_versions, state_digest, training_of
from benchmarks.matrix import Case
from benchmarks.matrix import model as model_entry
from benchmarks.tuned import Tuning
from fixtures.cache import Cache, Entry, digest_of, source_digest
from fixtures.model import DataOptions, Model, Reference, Samples
from fixtures.own_files import OwnEntry
from quant.backends import Executable
from quant.graph import FloatGraph, QuantizedModel, simulate, simulate_perturbed
from quant.methods import quantize
from quant.replaying import environment
from quant.storage import load, load_graph, save, save_graph
from quant.tracing import capture

CALIBRATION_BATCH = 16
PARITY_SAMPLES = 32

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What a run sets for all cases.

    threads             of every runtime
    batch               samples per call
    evaluation_samples  samples judged; None for the model's own number
    case_seconds        after which judging stops
    data                where labelled data of the user's lies
    memory              whether the memory of artefacts is measured
    max_drop            the share of its answers that an adaptive case may lose against float
    tuning              settings of runtimes that were found best on this machine, where they are to be used
    """

    threads: int = 1
    batch: int = 1
    evaluation_samples: int | None = None
    case_seconds: float = 300.0
    data: DataOptions = field(default_factory=DataOptions)
    memory: bool = False
    max_drop: float = 0.01
    tuning: Tuning = field(default_factory=Tuning)


@dataclass(frozen=True)
class Prepared:
    """A model ready to be quantized: the zoo's description, its float graph, and the digest of both."""

    model: Model
    graph: FloatGraph
    entry: Entry


@dataclass(frozen=True)
class Tables:
    """What a method made of a model."""

    quantized: QuantizedModel
    entry: Entry


@dataclass(frozen=True)
class Artifact:
    """A case's saved artefact, loaded into its runtime.

    parts          those that a cascade is made of
    settings       of the runtime, where they are not its defaults
    start_seconds  that loading it took, and a first call where there was something to call it with
    """

    case: Case
    executable: Executable
    entry: Entry
    tables: Tables | None
    parts: "tuple[Artifact, ...]" = ()
    settings: dict[str, object] = field(default_factory=dict)
    start_seconds: float | None = None


class CannotRun(ValueError):
    """A backend lacks something that a model needs; the message names it, and the line that asks for it."""


class Workshop:
    """Makes what cases need. Holds one model at a time: cases come sorted by model."""

    def __init__(self, cache: Cache, settings: Settings, progress: Progress = lambda text: None) -> None:
        torch.set_num_threads(settings.threads)
        self.cache, self.settings, self._progress = cache, settings, progress
        self._models: dict[str, Model] = {}
        self._prepared: Prepared | None = None
        self._baseline: Artifact | None = None
        self._twin: tuple[Artifact, Executable] | None = None
        self._footprints: dict[str, Footprint] = {}
        self._refusals: dict[str, str] = {}

    def model(self, name: str) -> Model:
        """Return the zoo's description of a model; it loads no weights."""
        if name not in self._models:
            self._models[name] = model_entry(name).load().load(self.settings.data)
        return self._models[name]

    def begin_case(self) -> None:
        """Let what earlier cases used leave a cache that has a limit, but for what is still held here."""
        held = [self._prepared, self._baseline, self._baseline and self._baseline.tables]
        self.cache.release(*(made.entry for made in held if made))

    def report(self, text: str) -> None:
        """Say what a long step is doing."""
        self._progress(text)

    def calibration(self, name: str) -> Samples:
        return self.model(name).calibration()

    def evaluation(self, name: str) -> Samples:
        model = self.model(name)
        return model.evaluation(self.settings.evaluation_samples or model.evaluation_samples)

    def prepare(self, name: str) -> Prepared:
        """Return a model with its float graph."""
        if self._prepared is None or self._prepared.model.name != name:
            self._baseline = self._twin = None
            self._prepared = self._prepare(name)
        return self._prepared

    def quantize(self, case: Case, calibration: Samples) -> Tables | None:
        """Return the case's tables, of a cascade those that answer first; None for the runtime's own quantizer."""
        case = case.first
        if case.method_entry.native:
            return None
        prepared, method = self.prepare(case.model), case.method_entry
        key = {
            "graph": prepared.entry.digest,
            "method": case.method,
            "bits": case.bits,
            "settings": method.settings,
            "scheme": repr(case.scheme),
            "calibration": calibration.digest if method.calibrates else None,
            "source": source_digest(method.entry.module, "quant.methods", "quant.storage"),
            "machine": environment(),
        }
        training = training_of(prepared.model, calibration_batches(calibration)) if method.trains else None
        if training:
            key |= {"training": training.digest, "recipe": asdict(training.recipe)}
            # Outside the entry, which is begun anew after a kill: training goes on.
            training = replace(training, checkpoint=self.cache.folder / "training" / f"{digest_of(key)[:32]}.pt")

        def build(folder: Path) -> None:
            self._progress(f"quantizing with {case.method}")
            batches = calibration_batches(calibration) if method.calibrates else []
            granularity = case.target.constant("DYNAMIC_GRANULARITY", "token")
            made = quantize(prepared.graph, method, case.bits, batches, granularity, self._progress, training)
            save(made, folder)

        entry = self.cache.entry("tables", key, build)
        return Tables(load(entry.path, prepared.graph), entry)

    def compile(self, case: Case, tables: Tables | None, calibration: Samples) -> Artifact:
        """Return the case's artefact, loaded from disk; ``tables`` None means the runtime's own quantizer.

        Raises:
            CannotRun: the backend lacks something that the model needs.
            NoCascade: the case is a cascade, for which its model has no classes or too few samples.
        """
        artifact = self.compile_graph(self.prepare(case.model), case.first, tables, calibration)
        return artifact if case == case.first else cascading.cascade(self, case, artifact)

    def compile_graph(
        self, prepared: Prepared, case: Case, tables: Tables | None, calibration: Samples | None
    ) -> Artifact:
        """Return the artefact of a case's tables in any graph of its model.

        Without ``calibration`` the runtime's own quantizer gets no data.
        """
        template = self._template(prepared, case)
        runtime, data = case.target.load(), calibration.digest if calibration else None
        key = {
            "template": template.digest,
            "tables": tables.entry.digest if tables else [case.method, case.bits, data],
            "source": source_digest(case.target.entry.module),
            "runtime": runtime_versions(case.target, native=tables is None),
        }

        def build(folder: Path) -> None:
            self._progress(f"compiling for {case.backend}")
            if tables is None:
                batches = calibration_batches(calibration) if calibration else []
                runtime.compile_native(case.method, case.bits, template.path, folder, batches)
            else:
                runtime.compile(tables.quantized, template.path, folder)

        entry = self.cache.entry("artifacts", key, build)
        settings, start = self.settings.tuning.of(case, self.settings.batch), time.perf_counter()
        executable = case.target.open(entry.path, self.settings.threads, settings)
        if calibration:
            self._progress(f"starting {case}")
            executable(*self.first_batch(calibration))
        return Artifact(case, executable, entry, tables, settings=settings, start_seconds=time.perf_counter() - start)

    def template(self, case: Case) -> Path:
        """Return the folder of what a case's tables are spliced into, made once per model and backend.

        Raises:
            CannotRun: the backend lacks something that the model needs.
        """
        return self._template(self.prepare(case.model), case).path

    def baseline(self, case: Case) -> Artifact:
        """Return the float model on the case's backend."""
        if self._baseline is None or self._baseline.case != case.baseline:
            calibration = self.calibration(case.model)
            self._baseline = self.compile(case.baseline, self.quantize(case.baseline, calibration), calibration)
        return self._baseline

    def twin(self, baseline: Artifact) -> Executable:
        """Return a baseline's artefact loaded a second time, against which the first is timed."""
        if self._twin is None or self._twin[0] is not baseline:
            opened = baseline.case.target.open(baseline.entry.path, self.settings.threads, baseline.settings)
            self._twin = baseline, opened
        return self._twin[1]

    def footprint(self, artifact: Artifact, samples: Samples) -> Footprint:
        """Return the memory that an artefact takes in a process of its own, measured once a run.

        Raises:
            ProcessError: it does not load or run there.
        """
        digest = artifact.entry.digest
        if digest not in self._footprints:
            self._progress(f"measuring the memory of {artifact.case}")
            batch = self.settings.batch
            inputs = self.inputs_file(samples.first(footprint.BATCHES * batch))
            backend, folder, threads = artifact.case.backend, str(artifact.entry.path), self.settings.threads
            request = footprint.Request(backend, folder, str(inputs), batch, threads, artifact.settings)
            self._footprints[digest] = footprint.measure(request)
        return self._footprints[digest]

    def outputs(self, artifact: Artifact, samples: Samples) -> np.ndarray:
        """Return float32 [n, ...]: the first output on each sample of which outputs are kept."""
        return self.answers(artifact, samples).outputs

    def answers(self, artifact: Artifact, samples: Samples) -> Answers:
        """Return what the artefact answers on the samples; on fewer than asked if the time cap was reached.

        Outputs are cached, and metrics computed anew from them. Where a model's outputs are too large to keep, what
        samples add to the metric is cached, under a key that holds the source of the model and so of the metric.
        """
        model = self.model(artifact.case.model)
        key = {
            "artifact": artifact.entry.digest,
            "backend": artifact.case.backend,
            "data": samples.digest,
            "batch": self.settings.batch,
            "threads": self.settings.threads,
            "machine": environment(),
            **({"settings": artifact.settings} if artifact.settings else {}),
        }
        if model.fidelity_samples is not None:
            key |= {"kept": model.fidelity_samples}
            key |= {"metric": source_digest(model_entry(model.name).module, "benchmarks.judging")}
        unfinished: list[Answers] = []

        def build(folder: Path) -> None:
            answers = self._evaluate(artifact, samples)
            if answers.truncated:
                unfinished.append(answers)
                raise _Truncated
            answers.save(folder)

        try:
            return Answers.load(self.cache.entry("outputs", key, build).path)
        except _Truncated:
            return unfinished[0]

    def simulated(self, artifact: Artifact, samples: Samples, perturbed: bool = False) -> np.ndarray:
        """Return what the artefact's tables mean on ``samples``, run in the same batches as the artefact.

        ``perturbed`` asks for :func:`quant.graph.simulate_perturbed`: how far two correct implementations may differ.
        """
        tables = artifact.tables
        key = {"tables": tables.entry.digest, "data": samples.digest, "batch": self.settings.batch}
        key |= {"source": source_digest("quant.graph"), "machine": environment(), "perturbed": perturbed}

        def build(folder: Path) -> None:
            self._progress("simulating")
            module = (simulate_perturbed if perturbed else simulate)(tables.quantized)
            np.save(folder / "outputs.npy", answers_of_module(module, samples, self.settings.batch))

        return np.load(self.cache.entry("simulated", key, build).path / "outputs.npy")

    def reference(self, name: str) -> Reference | None:
        """Return the float model's outputs on the split that its scores refer to, if it has one."""
        prepared = self.prepare(name)
        if prepared.model.reference is None:
            return None
        samples = prepared.model.reference()
        key = {"graph": prepared.entry.digest, "data": samples.digest, "machine": environment()}

        def build(folder: Path) -> None:
            self._progress("running the reference split")
            np.save(folder / "outputs.npy", answers_of_module(prepared.graph.module(), samples, self.settings.batch))

        entry = self.cache.entry("reference", key, build)
        return Reference(np.load(entry.path / "outputs.npy"), samples.labels)

    def inputs_file(self, samples: Samples) -> Path:
        """Return the inputs of ``samples`` as a file, for another process to read."""

        def build(folder: Path) -> None:
            np.savez(folder / "inputs.npz", *samples.inputs)

        return self.cache.entry("inputs", {"data": samples.digest}, build).path / "inputs.npz"

    def first_batch(self, samples: Samples) -> tuple[np.ndarray, ...]:
        """Return the inputs that are timed."""
        return tuple(array[: self.settings.batch] for array in samples.inputs)

    def _prepare(self, name: str) -> Prepared:
        model = self.model(name)

        def exported(module: torch.nn.Module) -> FloatGraph:
            examples = tuple(torch.from_numpy(array[:2].copy()) for array in model.calibration().inputs)
            return capture(module, examples, model.dynamic_axes)

        return self.export(model, model.build, exported, "quant.tracing")

    def export(
        self,
        model: Model,
        build: Callable[[], torch.nn.Module],
        exported: Callable[[torch.nn.Module], FloatGraph],
        source: str,
    ) -> Prepared:
        """Return the graph that ``exported``, of the module ``source``, makes of what ``build`` makes of a model."""
        self._progress(f"loading {model.name}")
        module, entry = build(), model_entry(model.name)

        def captured() -> FloatGraph:
            self._progress(f"exporting {model.name} with torch.export")
            return exported(module)

        key = {"weights": state_digest(module), "torch": torch.__version__, "exported_by": source}
        if isinstance(entry, OwnEntry):
            # What a user's file imports is not known, so what it computes is the key, found anew by every run.
            graph = captured()
            key |= {"graph": digest_of({"graphs": repr(graph.graphs)}), "source": source_digest("quant.storage")}
        else:
            graph = None
            key |= {"source": source_digest(entry.module, source, "quant.storage")}

        def build(folder: Path) -> None:
            save_graph(graph or captured(), folder)

        made = self.cache.entry("graphs", key, build)
        # A graph captured just now knows the lines of the model's code.
        return Prepared(model, graph or load_graph(made.path), made)

    def _template(self, prepared: Prepared, case: Case) -> Entry:
        target = case.target
        precision = target.precision or case.scheme.float_dtype
        if not target.constant("TEMPLATE_PER_PRECISION", False):
            precision = "float32"
        key = {
            "graph": prepared.entry.digest,
            "source": source_digest(target.entry.module),
            "runtime": runtime_versions(target, native=False),
            "precision": precision,
        }

        def build(folder: Path) -> None:
            self._progress(f"exporting {case.model} for {case.backend}, once")
            try:
                target.load().template(prepared.graph, folder, precision)
            except ValueError as error:
                raise CannotRun(str(error)) from error

        digest = digest_of(key)
        if digest in self._refusals:
            raise CannotRun(self._refusals[digest])
        try:
            return self.cache.entry("templates", key, build)
        except CannotRun as error:
            self._refusals[digest] = str(error)  # every case of the backend would find the same, after as long
            raise

    def _evaluate(self, artifact: Artifact, samples: Samples) -> Answers:
        model, settings, judge = self.model(artifact.case.model), self.settings, None
        if model.fidelity_samples is not None:
            judge = partial(judging.contributions, model, self.reference(model.name))

        def report(done: int) -> None:
            self._progress(f"evaluating {artifact.case}: {done}/{len(samples)}")

        kept = model.fidelity_samples
        return answer(artifact.executable, samples, settings.batch, settings.case_seconds, report, kept, judge)


class _Truncated(Exception):
    """An evaluation reached its time cap; what it has is used, and not cached."""


def calibration_batches(calibration: Samples) -> list[tuple[np.ndarray, ...]]:
    """Return the calibration data as methods take it."""
    return calibration.batches(CALIBRATION_BATCH)
