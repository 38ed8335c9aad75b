"""What a captured model is made of: its operators by kind, and their shares of parameters, work and time."""

import time
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import fx

from quant.graph import FloatGraph
from quant.nodes import Parameter, references

ROUNDS = 5


@dataclass(frozen=True)
class OperatorKind:
    """All calls of one operator.

    name        as torch calls it, such as "linear"
    count       of calls
    parameters  share of all parameters that these calls take; one that several take counts where it is first taken
    work        share of all multiply-accumulates
    time        share of the time that torch takes in float on the example inputs
    """

    name: str
    count: int
    parameters: float
    work: float
    time: float


def operator_kinds(graph: FloatGraph) -> list[OperatorKind]:
    """Return the kinds of operators of ``forward``, those that take longest first."""
    nodes = graph.graphs["forward"].nodes
    seconds, taken = _seconds(graph), set()
    counts, parameters, work, times = (defaultdict(float) for _ in range(4))
    for node in nodes:
        kind = _short(node.operator)
        names = {item.name for item in references(node.arguments) if isinstance(item, Parameter)} - taken
        taken |= names
        counts[kind] += 1
        values = (graph.parameters[name] for name in names)
        parameters[kind] += sum(value.numel() for value in values if value.is_floating_point())
        work[kind] += graph.macs("forward", node)
        times[kind] += seconds[node.name]
    totals = graph.parameter_count or 1, sum(work.values()) or 1, sum(times.values()) or 1
    found = [
        OperatorKind(kind, int(count), parameters[kind] / totals[0], work[kind] / totals[1], times[kind] / totals[2])
        for kind, count in counts.items()
    ]
    return sorted(found, key=lambda kind: kind.time, reverse=True)


class _Timed(fx.Interpreter):
    """Runs a module node by node and keeps the least seconds that each took."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seconds: dict[str, float] = {}

    def run_node(self, node: fx.Node) -> object:
        start = time.perf_counter()
        result = super().run_node(node)
        elapsed = time.perf_counter() - start
        self.seconds[node.name] = min(elapsed, self.seconds.get(node.name, elapsed))
        return result


def _seconds(graph: FloatGraph) -> dict[str, float]:
    timed = _Timed(graph.module())
    with torch.inference_mode():
        for _ in range(ROUNDS):
            timed.run(*graph.examples["forward"])
    return timed.seconds


def _short(operator: str) -> str:
    return operator.split(".")[1].strip("_")
