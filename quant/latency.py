"""A latency model: what each operator of a model takes in each format, measured on one backend, added up.

As the tables of operators in Cai et al., "ProxylessNAS", 2019 (arXiv:1812.00332) and Wang et al., "HAQ", 2019
(arXiv:1811.08886). An operator alone is no faster than in the model, and often slower, because a runtime fuses what
lies beside it; so tables are fitted to the time of the whole model in each format (:func:`fitted`), and conversions to
those of mixtures (:func:`fitted_conversions`). What is not measured is estimated from multiply-accumulates, which ranks
operators of one kind and knows no runtime.
"""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quant.graph import FloatGraph, QuantizedModel
from quant.methods.static import makers
from quant.mixed import Conversion
from quant.nodes import QUANTIZABLE, Node, data_of, weights_of
from quant.reading import readable

ESTIMATED = "multiply-accumulates"
"""The backend of a latency model that nobody measured; its seconds are multiply-accumulates in 8 bits."""

_FLOAT_MAC = 4
"""So many numbers of 8 bits fit into the place of a float, in a register as in memory."""
_CONVERSION = 30
"""Multiply-accumulates in 8 bits in the time of converting one number: ONNX Runtime's on a core with AVX512-VNNI."""


@dataclass(frozen=True)
class Latency:
    """Seconds of the operators of a model, by their weights.

    backend         that ran them, or :data:`ESTIMATED`
    conditions      what else the times depend on, in words: processor, runtime, threads, batch
    weights         names of the operators' weights
    formats         bits words, such as ("int8", "fp32")
    seconds         float64 [weights, formats]; where an operator always has to convert what it reads, with that
    conversions     (maker, reader, seconds): what it takes that of two neighbours, between which integers could pass,
                    one computes in float
    rest            seconds of all other operators
    weights_sha256  of the model
    """

    backend: str
    conditions: dict[str, str]
    weights: tuple[str, ...]
    formats: tuple[str, ...]
    seconds: np.ndarray
    conversions: tuple[tuple[str, str, float], ...]
    rest: float
    weights_sha256: str

    def __post_init__(self) -> None:
        shape = (len(self.weights), len(self.formats))
        numbers = [*self.seconds.flat, *(edge[2] for edge in self.conversions), self.rest]
        if self.seconds.shape != shape:
            raise ValueError(f"seconds {self.seconds.shape} are not those of {shape[0]} weights in {shape[1]} formats.")
        if not (np.isfinite(numbers).all() and min(numbers) >= 0):
            raise ValueError("a time is negative or not finite: measure the operators again.")
        strangers = {name for edge in self.conversions for name in edge[:2]} - set(self.weights)
        if strangers:
            raise ValueError(
                f"a conversion is at {strangers.pop()!r}, which has no times: measure the operators again."
            )

    def of(self, weights: Sequence[str], formats: Sequence[str]) -> np.ndarray:
        """Return float64 [weights, formats], the cost table of :class:`quant.mixed.Problem`.

        Raises:
            ValueError: a weight or a format was not measured.
        """
        rows = _positions(self.weights, weights, "weight")
        return self.seconds[np.ix_(rows, _positions(self.formats, formats, "format"))]

    def between(self, weights: Sequence[str]) -> tuple[Conversion, ...]:
        """Return the conversions between those ``weights``, numbered in their order."""
        position = {name: index for index, name in enumerate(weights)}
        inside = [edge for edge in self.conversions if edge[0] in position and edge[1] in position]
        return tuple(Conversion(position[maker], position[reader], cost) for maker, reader, cost in inside)

    def save(self, path: Path | str) -> None:
        """Write the latency model as JSON."""
        Path(path).write_text(json.dumps({**vars(self), "seconds": self.seconds.tolist()}, indent=1))


def load(path: Path | str, graph: FloatGraph) -> Latency:
    """Read what :meth:`Latency.save` wrote.

    Raises:
        ValueError: the file is damaged, or of a model with other weights.
    """
    with readable(f"{path} holds no readable latency model", "measure it again"):
        entry = json.loads(Path(path).read_text())
        found = Latency(
            str(entry["backend"]),
            dict(entry["conditions"]),
            tuple(entry["weights"]),
            tuple(entry["formats"]),
            np.array(entry["seconds"], dtype=np.float64).reshape(len(entry["weights"]), -1),
            tuple((str(maker), str(reader), float(seconds)) for maker, reader, seconds in entry["conversions"]),
            float(entry["rest"]),
            entry["weights_sha256"],
        )
    if found.weights_sha256 != graph.weights_sha256:
        raise ValueError(f"{path} was measured of other weights than this graph's: measure the model again.")
    return found


def fitted(parts: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, float]:
    """Return factors (float64 [formats]) of the operators' seconds and those of the rest, from times of whole models.

    Args:
        parts: float64 [formats], the sum over all operators of what each takes alone.
        whole: float64 [formats], seconds of the model with all operators in one format.

    The rest is the same in every format, and as long as it can be without any operator getting faster than it is alone.
    Then factors of one or more make up for what is left.
    """
    rest = max(0.0, float((whole - parts).min()))
    return (whole - rest) / parts, rest


def fitted_conversions(converting: np.ndarray, crossed: np.ndarray, beyond: np.ndarray) -> np.ndarray:
    """Return what conversions take (float64 [units]) where mixtures of formats show it: more than one alone does.

    A runtime lays out values otherwise for its kernels of another format, which an operator alone does not show. So a
    conversion becomes a multiple of what it takes alone, and as much for each, by least squares, nothing negative.

    Args:
        converting: float64 [units], seconds of each conversion alone.
        crossed: float64 [mixtures, units], how much of each conversion a mixture needs, from 0 to 1.
        beyond: float64 [mixtures], seconds that it takes beside those of its operators and the rest.
    """
    columns = np.stack([crossed @ converting, crossed.sum(1)], 1)
    best, least = np.zeros(2), float(np.square(beyond).sum())
    for used in ([0, 1], [0], [1]):
        found = np.zeros(2)
        found[used] = np.linalg.lstsq(columns[:, used], beyond, rcond=None)[0]
        error = float(np.square(columns @ found - beyond).sum())
        if (found >= 0).all() and error < least:
            best, least = found, error
    return best[0] * converting + best[1]


@dataclass(frozen=True)
class Unit:
    """Operators that read one value, which is converted once for all of them.

    weights  of each operator
    makers   weights of the operators from which the value could come in integers, or none
    """

    value: str
    nodes: tuple[Node, ...]
    weights: tuple[tuple[str, ...], ...]
    makers: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All weights, in the order of the operators."""
        return tuple(name for of_node in self.weights for name in of_node)


def units(quantized: QuantizedModel) -> list[Unit]:
    """Return the operators of ``forward`` whose times the formats of their weights decide.

    Where the tables quantize activations, these are the operators that read quantized values, else all with quantized
    weights.
    """
    graph = quantized.graph.graphs["forward"]
    found: dict[str, list[tuple[Node, tuple[str, ...]]]] = {}
    for node in graph.nodes:
        weights = tuple(weight.name for weight in weights_of(node) if weight.name in quantized.weights)
        if weights and (not quantized.activations or _reads_quantized(quantized, node)):
            found.setdefault(_data_of(node), []).append((node, weights))
    names = [name for of_value in found.values() for _, weights in of_value for name in weights]
    made = makers if quantized.activations else lambda *_: []
    return [
        Unit(value, *zip(*of_value, strict=True), tuple(made(graph, value, names))) for value, of_value in found.items()
    ]


def crossed(found: Sequence[Unit], wide: Collection[str]) -> np.ndarray:
    """Return float64 [units], of the makers and readers of each value the share of pairs that only one is ``wide`` of.

    It is 0 where integers could not pass between them anyway.
    """
    pairs = [[(maker, name) for maker in unit.makers for name in unit.names] for unit in found]
    differing = [[(maker in wide) != (name in wide) for maker, name in of_unit] for of_unit in pairs]
    return np.array([np.mean(of_unit) if of_unit else 0.0 for of_unit in differing])


def work(graph: FloatGraph, unit: Unit) -> list[float]:
    """Return the multiply-accumulates of each weight of a unit, for one sample."""
    operators = zip(unit.nodes, unit.weights, strict=True)
    return [graph.macs("forward", node) / len(weights) for node, weights in operators for _ in weights]


def assembled(
    found: Sequence[Unit], operators: Sequence[np.ndarray], converting: Sequence[float], narrow: np.ndarray
) -> tuple[tuple[str, ...], np.ndarray, tuple[tuple[str, str, float], ...]]:
    """Return weights, seconds and conversions of a latency model from the times of units.

    Args:
        operators: float64 [weights of the unit, formats] for each unit, without the conversion of what it reads.
        converting: for each unit, seconds of converting what it reads. Its operators share them evenly.
        narrow: bool [formats], which of them read converted values.
    """
    names = tuple(dict.fromkeys(name for unit in found for name in unit.names))
    seconds, conversions = np.zeros((len(names), len(narrow))), []
    for unit, of_unit, conversion in zip(found, operators, converting, strict=True):
        share = conversion / len(unit.names)
        for row, name in zip(of_unit, unit.names, strict=True):
            seconds[names.index(name)] += row + (0 if unit.makers else share * narrow)
            conversions += [(maker, name, share / len(unit.makers)) for maker in unit.makers]
    return names, seconds, tuple(conversions)


def estimated(quantized: QuantizedModel) -> Latency:
    """Return what stands in for a latency model that nobody measured, of "int8" against "fp32".

    Its unit is a multiply-accumulate in 8 bits, for one sample.
    """
    graph = quantized.graph
    found, shapes, batch = units(quantized), graph.graphs["forward"].shapes, graph.examples["forward"][0].shape[0]
    operators, converting = [], []
    for unit in found:
        operators.append(np.outer(work(graph, unit), [1, _FLOAT_MAC]))
        converting.append(_CONVERSION * math.prod(shapes[unit.value]) / batch)
    names, seconds, conversions = assembled(found, operators, converting, np.array([True, False]))
    inside = {node.name for unit in found for node in unit.nodes}
    others = [node for node in graph.graphs["forward"].nodes if node.name not in inside]
    rest = float(_FLOAT_MAC * sum(graph.macs("forward", node) for node in others))
    return Latency(ESTIMATED, {}, names, ("int8", "fp32"), seconds, conversions, rest, graph.weights_sha256)


def _positions(known: Sequence[str], asked: Sequence[str], noun: str) -> list[int]:
    missing = [name for name in asked if name not in known]
    if missing:
        raise ValueError(f"the latency model has no times of the {noun} {missing[0]!r}: measure it as well.")
    return [known.index(name) for name in asked]


def _data_of(node: Node) -> str:
    operator = QUANTIZABLE.get(node.operator)
    return data_of(node, operator.data if operator else "x").name


def _reads_quantized(quantized: QuantizedModel, node: Node) -> bool:
    operator = QUANTIZABLE.get(node.operator)
    positions = (operator.data,) if operator else ("x", "h")
    return any(("forward", node.name, position) in quantized.activations for position in positions)
