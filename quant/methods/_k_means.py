"""k-means in one dimension, for many tables at once, deterministic.

Few values are clustered optimally by dynamic programming, as Grønlund et al. describe ("Fast exact k-means, k-medians
and Bregman divergence clustering in 1D", 2017, arXiv:1701.07204). Many go through Lloyd's algorithm ("Least squares
quantization in PCM", 1982) on sorted values, whose prefix sums give the mean of any interval at once: an iteration
costs a binary search per entry, however many values there are. It starts where Panter and Dite ("Quantization
distortion in pulse-count modulation", 1951) found the entries of a good table, as dense as the cube root of the density
of the values, and then is within a few parts in a thousand of the optimum.
"""

import numpy as np
import torch
from torch import Tensor

_EXACT_UP_TO = 512
_ITERATIONS = 100
_START_POINTS = 2048
_START_ROUNDS = 5
_CHUNK = 2**18


def k_means(values: Tensor, entries: int, importance: Tensor | None = None) -> Tensor:
    """Return tables (float32 [tables, entries], ascending) with a small sum of squared distances to the values.

    Of few values the sum is the smallest there is.

    Args:
        values: float32 [tables, n], finite.
        importance: float [tables, n], positive: what the squared error of each value counts; alike by default.
    """
    if values.shape[1] <= _EXACT_UP_TO:
        shares = torch.ones_like(values) if importance is None else importance
        return torch.stack([_optimal(row, share, entries) for row, share in zip(values, shares, strict=True)])
    ordered, mass, moment = _prefix_sums(values, importance)
    table, before = _start(ordered, mass, entries), None
    for _ in range(_ITERATIONS):
        cuts = torch.searchsorted(ordered, middles(table))
        if before is not None and torch.equal(cuts, before):
            break
        before = cuts
        edges = torch.nn.functional.pad(cuts, (1, 1))
        edges[:, -1] = ordered.shape[1]
        masses, moments = ((edges if sums is None else sums.gather(1, edges)).diff() for sums in (mass, moment))
        table = torch.where(masses > 0, moments / masses, table).float()
    return table


def middles(table: Tensor) -> Tensor:
    return ((table[:, 1:] + table[:, :-1]) / 2).contiguous()


def _optimal(values: Tensor, importance: Tensor, entries: int) -> Tensor:
    """Return the best table (float32 [entries]) of one row of values, by the best ends of ever more clusters."""
    values, order = values.double().sort()
    importance = importance.double()[order]
    distinct = values.unique()
    if len(distinct) <= entries:
        return torch.cat([distinct, distinct[-1:].expand(entries - len(distinct))]).float()
    centre = values.mean()
    powers = [importance * (values - centre) ** power for power in range(3)]
    mass, moment, square = (_running(summands[None])[0] for summands in powers)
    masses, moments, squares = (sums - sums[:, None] for sums in (mass, moment, square))
    cost = torch.where(masses > 0, squares - moments**2 / masses, 0.0).clamp(min=0)
    cost = torch.where(torch.ones_like(cost, dtype=torch.bool).triu(), cost, torch.inf)
    best, starts = cost[0], []
    for _ in range(entries - 1):
        best, start = (best[:, None] + cost).min(0)
        starts.append(start)
    edges = [len(values)]
    for start in reversed(starts):
        edges.insert(0, int(start[edges[0]]))
    edges = torch.tensor([0, *edges])
    table = moment[edges].diff() / mass[edges].diff() + centre
    known = table[~table.isnan()]  # fewer clusters than entries may be as good
    return torch.cat([known, known[-1:].expand(entries - len(known))]).float()


def _prefix_sums(values: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the values in ascending order, and sums of importance (None: counts) and of value times importance.

    Both are float64 [tables, n + 1], from the first value to before each.
    """
    if importance is None:
        ordered = torch.from_numpy(np.sort(values.numpy(), 1))  # many times faster than torch's, and without indices
        return ordered, None, _running(ordered)
    ordered, order = values.sort(1)
    shares = importance.gather(1, order).double()
    return ordered, _running(shares), _running(shares * ordered)


def _running(summands: Tensor) -> Tensor:
    count = summands.shape[1]
    sums = torch.zeros(summands.shape[0], count + 1, dtype=torch.float64)
    for start in range(0, count, _CHUNK):  # all at once they would be copied to widen them
        part = summands[:, start : start + _CHUNK].double().cumsum(1)
        sums[:, start + 1 : start + 1 + _CHUNK] = part.add_(sums[:, start : start + 1])
    return sums


def _start(ordered: Tensor, mass: Tensor | None, entries: int) -> Tensor:
    """Return tables with entries as dense as the cube root of the values' density.

    Between neighbours among equally heavy parts of the values, the cube root of density times distance is distance to
    the power of 2/3. No gap is given more than one entry, as between it and an outlier there is nothing to represent.
    """
    tables, count = ordered.shape
    levels = torch.linspace(0, 1, min(count, _START_POINTS), dtype=torch.float64)
    if mass is None:
        points = (levels * (count - 1)).long().expand(tables, -1)
    else:
        points = torch.searchsorted(mass[:, 1:].contiguous(), mass[:, -1:] * levels).clamp(max=count - 1)
    values = ordered.gather(1, points).double()
    shares = values.diff().pow(2 / 3)
    for _ in range(_START_ROUNDS):
        shares = shares.minimum(shares.sum(1, keepdim=True) / entries)
    running = _running(shares)
    wanted = (torch.arange(entries, dtype=torch.float64) + 0.5) / entries * running[:, -1:]
    right = torch.searchsorted(running, wanted).clamp(1, max(values.shape[1] - 1, 1))
    if values.shape[1] == 1:
        return values.expand(tables, entries).float()
    left = right - 1
    passed = (wanted - running.gather(1, left)) / shares.gather(1, left)
    between = values.gather(1, right) - values.gather(1, left)
    return (values.gather(1, left) + passed.nan_to_num(0, 0, 0).clamp(0, 1) * between).float()
