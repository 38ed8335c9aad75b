"""The latency model of a model on a backend: each of its operators timed alone, in every format, and the whole model.

Operators that do the same are timed once; those that read one value are timed together, because its conversion is
shared. Formats are timed in turns, in one process, and the model as a whole in the same way; to its times the
operators' are fitted. What an operator is in a format is taken from the tables of a case, scales on inputs and all.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

import quant
from benchmarks.load import Watch
from benchmarks.matrix import Case
from benchmarks.timing import TOO_BUSY, Call, garbage_kept, in_turn, seconds_of
from benchmarks.workshop import Artifact, Tables, Workshop
from fixtures.cache import source_digest
from quant import hardware, latency
from quant.cutting import cut, record, signature, values_read, written_in_integers
from quant.graph import ActivationQuantizer, FloatGraph, QuantizedModel
from quant.latency import Latency, Unit
from quant.methods.mixed_static import FORMATS
from quant.methods.static import activations_left
from quant.nodes import Node
from quant.replaying import environment, tables_sha256
from quant.storage import save

SECONDS = 1.0
"""How long an operator is timed in all formats together, if a few rounds fit."""
FEWEST_ROUNDS = 8
MOST_ROUNDS = 200
_WHOLE = 4
"""So many times as long is the whole model timed."""


def measure_static(workshop: Workshop, name: str, backend: str) -> Latency:
    """Return the latency model of W8A8 against float."""
    methods = dict(zip(FORMATS, ("smoothquant", "float"), strict=True))
    return measure(workshop, [Case(name, method, bits, backend) for bits, method in methods.items()])


def measure(workshop: Workshop, cases: Sequence[Case]) -> Latency:
    """Return the latency model of what the ``cases`` hold: one model on one backend, in the format of each case.

    Times once taken on this machine are kept, those of every operator as soon as it is done.

    Raises:
        ValueError: the backend does not run here, or other programs leave too few cores.
    """
    target, settings, model = cases[0].target, workshop.settings, cases[0].model
    calibration = workshop.calibration(model)
    artifacts = [workshop.compile(case, workshop.quantize(case, calibration), calibration) for case in cases]
    reason = artifacts[0].executable.untimed_reason
    if reason:
        raise ValueError(f"no time of {target.name} can be taken: {reason}")
    conditions = {
        "processor": hardware.processor().name,
        "runtime": target.load().version(),
        "threads": str(settings.threads),
        "batch": str(settings.batch),
    }
    where = {
        "backend": target.name,
        "data": calibration.first(settings.batch).digest,
        "conditions": conditions,
        "machine": environment(),
        "source": source_digest("benchmarks.layer_latency"),
    }
    key = where | {"artifacts": [artifact.entry.digest for artifact in artifacts]}

    def build(folder: Path) -> None:
        _Measurement(workshop, artifacts, where).run(conditions).save(folder / "latency.json")

    entry = workshop.cache.entry("latencies", key, build)
    return latency.load(entry.path / "latency.json", workshop.prepare(model).graph)


def compiled(workshop: Workshop, case: Case, quantized: QuantizedModel) -> Artifact:
    """Return the artefact of tables that no method made, on the model and backend of a case."""
    entry = workshop.cache.entry("tables", {"tables": tables_sha256(quantized)}, lambda path: save(quantized, path))
    return workshop.compile(case, Tables(quantized, entry), workshop.calibration(case.model))


def medians(calls: Sequence[Call], seconds: float, threads: int) -> np.ndarray:
    """Return float64 [calls], the median seconds of each, taken in turns for about so many seconds.

    Raises:
        ValueError: other programs left too few cores, twice.
    """
    for call in calls:
        call()
    per_round = 2 * sum(map(seconds_of, calls))
    rounds = max(FEWEST_ROUNDS, int(min(MOST_ROUNDS, seconds / max(per_round, 1e-9))))
    for _ in range(2):
        watch, taken = Watch(threads), np.empty((rounds, len(calls)))
        random, last = np.random.default_rng(0), None
        with garbage_kept():
            for number in range(rounds):
                for position in in_turn(range(len(calls)), last, random):
                    taken[number, position] = seconds_of(calls[position])
                    last = position
        if not watch.read().too_high:
            return np.median(taken, axis=0)
    raise ValueError(f"operators were {TOO_BUSY}.")


class _Measurement:
    """Times the operators of a model in the tables of several artefacts of it.

    Each operator's times are kept as soon as they are known, under ``where`` they hold and what it computes.
    """

    def __init__(self, workshop: Workshop, artifacts: Sequence[Artifact], where: Mapping[str, object]) -> None:
        self._workshop, self._artifacts, self._where = workshop, artifacts, where
        self._case = artifacts[0].case
        self._tables = [artifact.tables.quantized for artifact in artifacts]
        self._units = latency.units(max(self._tables, key=lambda tables: len(tables.weights)))
        self._writing = [written_in_integers(tables) for tables in self._tables]
        self._graph: FloatGraph = workshop.prepare(self._case.model).graph
        self._inputs = workshop.first_batch(workshop.calibration(self._case.model))
        read = {name for unit in self._units for node in unit.nodes for name in values_read(node)}
        self._examples = record(self._graph, self._graph.examples["forward"], read.union(*self._writing))

    def run(self, conditions: dict[str, str]) -> Latency:
        narrow = np.array([bool(tables.activations) for tables in self._tables])
        operators, converting = self._alone(narrow)
        names, seconds, conversions = latency.assembled(self._units, operators, converting, narrow)
        mixtures = _mixtures(names) if conversions and not narrow.all() else []
        whole = self._whole([self._mixed(wide, narrow) for wide in mixtures])
        factors, rest = latency.fitted(seconds.sum(0), whole[: len(narrow)])
        seconds *= factors
        if mixtures:
            formats = [np.where(np.isin(names, list(wide)), narrow.argmin(), narrow.argmax()) for wide in mixtures]
            apart = [rest + seconds[np.arange(len(names)), chosen].sum() for chosen in formats]
            crossed = np.array([latency.crossed(self._units, wide) for wide in mixtures])
            converting = latency.fitted_conversions(np.array(converting), crossed, whole[len(narrow) :] - apart)
            _, _, conversions = latency.assembled(self._units, operators, converting, narrow)
        return Latency(
            self._case.backend,
            conditions,
            names,
            tuple(artifact.case.bits for artifact in self._artifacts),
            seconds,
            conversions,
            rest,
            self._graph.weights_sha256,
        )

    def _alone(self, narrow: np.ndarray) -> tuple[list[np.ndarray], list[float]]:
        """Return of each unit its operators' seconds in each format, and those of converting what it reads."""
        operators, converting = [], []
        for position, unit in enumerate(self._units):
            self._workshop.report(f"timing operators on {self._case.backend}: {position + 1} of {len(self._units)}")
            written = [node.name for node in unit.nodes if any(node.name in writing for writing in self._writing)]
            readers = [{name: writing.get(name) for name in written} for writing in self._writing]
            taken, conversion = self._seconds(unit.nodes, readers), 0.0
            if unit.makers:
                conversion = self._conversion(unit.value, [_read_through(tables, unit) for tables in self._tables])
            writes = sum(self._conversion(name, [of[name] for of in readers]) for name in written)
            taken = np.maximum(taken - narrow * (conversion + writes), 0)
            operators.append(np.outer(_shares(self._graph, unit), taken))
            converting.append(conversion)
        return operators, converting

    def _whole(self, mixtures: Sequence[Artifact]) -> np.ndarray:
        """Return the seconds of the whole model in each format, then those of ``mixtures``."""
        self._workshop.report(f"timing the whole model on {self._case.backend}")
        calls = [lambda one=one: one.executable(*self._inputs) for one in (*self._artifacts, *mixtures)]
        return medians(calls, _WHOLE * SECONDS, self._workshop.settings.threads)

    def _mixed(self, wide: Collection[str], narrow: np.ndarray) -> Artifact:
        """Return the model with the operators ``wide`` left as they are, for its time: its outputs are of no use."""
        tables = self._tables[int(narrow.argmax())]
        weights = {name: weight for name, weight in tables.weights.items() if name not in wide}
        activations = activations_left(self._graph, list(weights), tables.activations)
        return compiled(self._workshop, self._case, replace(tables, weights=weights, activations=activations))

    def _conversion(self, value: str, quantizers: Sequence[ActivationQuantizer | None]) -> float:
        """Return the seconds of quantizing a value, taken as half of those of quantizing and dequantizing it."""
        seconds = self._seconds((), [{value: quantizer} for quantizer in quantizers])
        quantized = np.array([quantizer is not None for quantizer in quantizers])
        if quantized.all() or not quantized.any():
            return 0.0
        return max(0.0, float(seconds[quantized].min() - seconds[~quantized].min())) / 2

    def _seconds(self, nodes: Sequence[Node], readers: Sequence[dict[str, ActivationQuantizer | None]]) -> np.ndarray:
        """Return float64 [tables], the seconds of ``nodes`` alone in each format; what does the same is timed once."""
        parts = [
            cut(tables, nodes, self._examples, of_tables)
            for tables, of_tables in zip(self._tables, readers, strict=True)
        ]

        def build(folder: Path) -> None:
            np.save(folder / "seconds.npy", self._timed(parts))

        key = {**self._where, "operators": list(map(signature, parts))}
        return np.load(self._workshop.cache.entry("operators", key, build).path / "seconds.npy")

    def _timed(self, parts: Sequence[QuantizedModel]) -> np.ndarray:
        names, threads = parts[0].graph.graphs["forward"].inputs, self._workshop.settings.threads
        values = record(self._graph, [torch.from_numpy(array) for array in self._inputs], names)
        inputs = [values[name].numpy() for name in names]
        with TemporaryDirectory() as folder:
            executables = [
                quant.compile(part, self._case.backend, Path(folder, str(index)), threads)
                for index, part in enumerate(parts)
            ]
            return medians([lambda one=one: one(*inputs) for one in executables], SECONDS, threads)


def _mixtures(names: Sequence[str]) -> list[set[str]]:
    """Return operators to leave wide such that many have neighbours in another format."""
    thirds = set(names[::3])
    return [set(names[::2]), set(names[1::2]), thirds, set(names) - thirds]


def _read_through(tables: QuantizedModel, unit: Unit) -> ActivationQuantizer | None:
    """Return the quantizer through which the operators of a unit read their value, None where they read it as it is."""
    for node in unit.nodes:
        for (_, name, _), quantizer in tables.activations.items():
            if name == node.name:
                return quantizer
    return None


def _shares(graph: FloatGraph, unit: Unit) -> np.ndarray:
    """Return float64 [weights], the share of each in the time of its unit: that of its multiply-accumulates."""
    work = np.array(latency.work(graph, unit), dtype=float)
    return work / work.sum() if work.sum() else np.full(len(work), 1 / len(work))
