"""Linear layers that read one value: they share one scale for each of its channels, and what calibration saw of it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.calibrate import Batch, observe_edges
from quant.graph import Edge, FloatGraph
from quant.layers import Moments, layer_of

_MOST_ROWS = 512
"""Rows kept of each value: enough to compare scales on."""
_SEED = 0


@dataclass(frozen=True)
class Group:
    """Linear layers bound to one scale per input channel, because they read one value or share a weight.

    values      (graph, value) that are read
    parameters  the weights [out, channels]
    edges       the data arguments of all operators that take these weights
    """

    values: tuple[tuple[str, str], ...]
    parameters: tuple[str, ...]
    edges: tuple[Edge, ...]


@dataclass
class InputSample:
    """What calibration saw of a value with n rows of c channels.

    low, high  float32 [c], the extremes of every channel over all rows
    mean       float32 [c], of all rows
    rows       float32 [about 512 at most, c], rows taken at random
    moments    second moments over all rows
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    rows: Tensor
    moments: Moments

    @property
    def energy(self) -> Tensor:
        """Mean square of every channel (float32 [c])."""
        return torch.diagonal(self.moments.gram[0]) / self.moments.count

    def scaled_moments(self, input_scale: Tensor) -> Moments:
        """Return the second moments of the rows times ``input_scale`` (float32 [c])."""
        scaled = Moments(self.moments.layer)
        scaled.count = self.moments.count
        scaled.gram = scaled.cross = self.moments.gram * input_scale * input_scale.unsqueeze(1)
        return scaled


def linear_groups(graph: FloatGraph, parameters: Collection[str]) -> list[Group]:
    """Return the groups of those ``parameters`` that linear layers alone take, in the order of the graph."""
    found: list[Group] = []
    for parameter, consumers in graph.quantizable().items():
        if parameter not in parameters or any(operator.kind != "linear" for _, operator in consumers):
            continue
        edges = [(*edge[:2], operator.data) for edge, operator in consumers]
        values = {(edge[0], graph.node(edge).arguments[edge[2]].name) for edge in edges}
        bound = [group for group in found if values & set(group.values)]
        found = [group for group in found if group not in bound]
        found.append(_union([*bound, Group(tuple(sorted(values)), (parameter,), tuple(edges))]))
    return found


def sample_inputs(graph: FloatGraph, groups: Sequence[Group], batches: Sequence[Batch]) -> dict[Group, InputSample]:
    """Return what calibration saw of the inputs of each group; nothing of groups that ``forward`` never comes to.

    Raises:
        ValueError: there is no calibration data, or an input was NaN or infinite.
    """
    if not batches:
        raise ValueError("this method needs calibration data: pass at least one batch of inputs.")
    samplers = {group: _Sampler(graph, group, len(batches)) for group in groups}
    edges = {edge[1:]: sampler for group, sampler in samplers.items() for edge in group.edges if edge[0] == "forward"}
    observe_edges(graph, edges, batches)
    return {group: sampler.sample() for group, sampler in samplers.items() if sampler.rows}


class _Sampler:
    """Observes the input of a group of layers."""

    def __init__(self, graph: FloatGraph, group: Group, batches: int) -> None:
        self.moments = Moments(layer_of(graph, group.parameters[0]))
        self.generator = torch.Generator().manual_seed(_SEED)
        self.at_once = -(-_MOST_ROWS // batches)
        self.lows: list[Tensor] = []
        self.highs: list[Tensor] = []
        self.rows: list[Tensor] = []
        self.total = torch.zeros(())

    def __call__(self, values: Tensor) -> Tensor:
        rows = values.reshape(-1, values.shape[-1])
        self.moments.add(rows)
        self.lows.append(rows.amin(0))
        self.highs.append(rows.amax(0))
        self.total = self.total + rows.sum(0)
        self.rows.append(rows[torch.randperm(len(rows), generator=self.generator)[: self.at_once]])
        return values

    def sample(self) -> InputSample:
        low, high = torch.stack(self.lows).amin(0), torch.stack(self.highs).amax(0)
        return InputSample(low, high, self.total / self.moments.count, torch.cat(self.rows), self.moments)


def _union(groups: Sequence[Group]) -> Group:
    values = dict.fromkeys(value for group in groups for value in group.values)
    parameters = tuple(parameter for group in groups for parameter in group.parameters)
    return Group(tuple(values), parameters, tuple(edge for group in groups for edge in group.edges))
