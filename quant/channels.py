"""Linear layers that read one value: they share one scale for each of its channels, and what calibration saw of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.calibrate import Batch, Observer, observe_edges
from quant.graph import Edge, FloatGraph
from quant.layers import Moments, layer_of

_MOST_ROWS = 512
"""Rows kept of each value: enough to compare scales on."""
SEED = 0
"""Of whatever a method draws at random."""


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
    energy     float32 [c], the mean square of every channel
    rows       float32 [about 512 at most, c], rows taken at random
    moments    second moments of the rows, where they were asked for
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    energy: Tensor
    rows: Tensor
    moments: Moments | None

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


def sample_inputs(
    graph: FloatGraph,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    moments: bool = False,
    enough: int | None = None,
    others: Mapping[tuple[str, int], Observer] | None = None,
) -> dict[Group, InputSample]:
    """Return what calibration saw of the inputs of each group; nothing of groups that ``forward`` never comes to.

    Args:
        moments: whether second moments are wanted, which cost as much as the model itself.
        enough: stop after the batch by which every group has seen so many rows; None takes all.
        others: observers of further edges of ``forward``, for what one run through it can tell as well.

    Raises:
        ValueError: there is no calibration data, or an input was NaN or infinite.
    """
    if not batches:
        raise ValueError("this method needs calibration data: pass at least one batch of inputs.")
    samplers = {group: _Sampler(graph, group, len(batches), moments, enough) for group in groups}
    edges = {edge[1:]: sampler for group, sampler in samplers.items() for edge in group.edges if edge[0] == "forward"}

    def done() -> bool:
        return enough is not None and all(sampler.count >= enough for sampler in edges.values())

    observe_edges(graph, {**edges, **(others or {})}, batches, done=done)
    return {group: sampler.sample() for group, sampler in samplers.items() if sampler.count}


class _Sampler:
    """Observes the input of a group of layers."""

    def __init__(self, graph: FloatGraph, group: Group, batches: int, moments: bool, enough: int | None) -> None:
        self.parameter, self.batches, self.enough = group.parameters[0], batches, enough
        self.moments = Moments(layer_of(graph, self.parameter)) if moments else None
        self.generator = torch.Generator().manual_seed(SEED)
        self.at_once = 0
        self.lows: list[Tensor] = []
        self.highs: list[Tensor] = []
        self.rows: list[Tensor] = []
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    def __call__(self, values: Tensor) -> Tensor:
        rows = values.reshape(-1, values.shape[-1])
        if not self.rows:
            batches = self.batches if self.enough is None else min(self.batches, -(-self.enough // len(rows)))
            self.at_once = -(-_MOST_ROWS // batches)
        if self.moments:
            self.moments.add(rows)
        self.lows.append(rows.amin(0))
        self.highs.append(rows.amax(0))
        self.count += len(rows)
        self.total = self.total + rows.sum(0)
        self.squares = self.squares + torch.linalg.vecdot(rows, rows, dim=0)
        self.rows.append(rows[torch.randperm(len(rows), generator=self.generator)[: self.at_once]])
        return values

    def sample(self) -> InputSample:
        if not torch.isfinite(self.squares).all():
            raise ValueError(
                f"calibration saw NaN or infinity at the input of {self.parameter!r}: check the calibration data."
            )
        low, high = torch.stack(self.lows).amin(0), torch.stack(self.highs).amax(0)
        mean, energy = self.total / self.count, self.squares / self.count
        return InputSample(low, high, mean, energy, torch.cat(self.rows), self.moments)


def _union(groups: Sequence[Group]) -> Group:
    values = dict.fromkeys(value for group in groups for value in group.values)
    parameters = tuple(parameter for group in groups for parameter in group.parameters)
    return Group(tuple(values), parameters, tuple(edge for group in groups for edge in group.edges))
