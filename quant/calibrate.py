"""Calibration: running sample inputs through the float graph, observing its edges, and choosing ranges from that.

An observer is called with the values of an edge, batch after batch, and keeps a summary whose size does not depend on
how many there were. With an ``axis`` it summarizes each channel of that axis by itself, without one all values
together; everything it holds then has one row per channel, or a single row.

The calibrators choose the range to quantize from such a summary:

minmax          the extremes of all values
moving_average  the extremes of each batch, averaged exponentially: Jacob et al., 2018 (arXiv:1712.05877), section 3.1
percentile      the outermost share of values on each side is clipped: Wu et al., 2020 (arXiv:2004.09602), section 3.2
mse             the clip of least mean squared error: Nagel et al., 2021 (arXiv:2106.08295), section 3.1
entropy         the clip of least Kullback-Leibler divergence: Migacz, "8-bit Inference with TensorRT", 2017
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from quant.execution import build_module
from quant.graph import FloatGraph
from quant.progress import steps
from quant.scheme import NumberFormat
from quant.tensor import scale_and_zero_point

Batch = Sequence[object]
"""One array (numpy or torch) per input of the graph."""
Observer = Callable[[Tensor], Tensor]
"""Looks at the values of an edge and returns them unchanged."""

CALIBRATORS = ("minmax", "moving_average", "percentile", "mse", "entropy")
PERCENT = 99.99
MOMENTUM = 0.9
"""What a moving average keeps of its past at each batch."""

_BINS = 8192
_CHUNK = 2**20
_SMALLEST_EXPONENT = -60
_CANDIDATES = 64
_ROUNDS = 3


class Extremes:
    """The smallest and largest value, ``low`` and ``high``: float32 [rows]; NaN once a value was NaN."""

    def __init__(self, axis: int | None = None) -> None:
        self._axis = axis
        self.low, self.high = torch.tensor(float("inf")), torch.tensor(float("-inf"))

    def __call__(self, values: Tensor) -> Tensor:
        rows = as_rows(values, self._axis)
        if rows.shape[1]:
            low, high = torch.aminmax(rows, dim=1)
            self.update(rows, low.float(), high.float())
        return values

    def update(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        """Take in ``rows``, [rows, n], which lie between ``low`` and ``high``."""
        self.low, self.high = torch.minimum(low, self.low), torch.maximum(high, self.high)


class MovingAverage(Extremes):
    """The extremes of each batch, averaged with weight ``MOMENTUM`` on what was before."""

    def update(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        first = self.low.ndim == 0
        self.low = low if first else MOMENTUM * self.low + (1 - MOMENTUM) * low
        self.high = high if first else MOMENTUM * self.high + (1 - MOMENTUM) * high


class ChannelMean:
    """The mean of each channel, ``mean``: float64 [rows]."""

    def __init__(self, axis: int) -> None:
        self._axis, self._count, self._sum = axis, 0, 0.0

    def __call__(self, values: Tensor) -> Tensor:
        rows = as_rows(values, self._axis)
        self._sum = self._sum + rows.sum(1, dtype=torch.float64)
        self._count += rows.shape[1]
        return values

    @property
    def mean(self) -> Tensor:
        return self._sum / self._count


class Histogram(Extremes):
    """How many values fall into each of ``_BINS`` bins between ``-limit`` and ``limit``, beside their extremes.

    counts  int64 [rows, bins], values that are exactly zero not among them
    zeros   int64 [rows]; zero has a code of its own in every format, so that it costs nothing wherever the range ends
    limit   float64 [rows], a power of two above every value seen

    A larger value doubles the limit by merging neighbouring bins two by two. Because limits are powers of two this is
    exact: the counts do not depend on how the values were divided into batches, nor on their order.
    """

    def __init__(self, axis: int | None = None) -> None:
        super().__init__(axis)
        self._exponent: Tensor | None = None

    @property
    def limit(self) -> Tensor:
        return torch.exp2(self._exponent.double())

    @property
    def centres(self) -> Tensor:
        """The middle of each bin: float64 [rows, bins]."""
        return (torch.arange(_BINS, dtype=torch.float64) + 0.5 - _BINS / 2) * self._width[:, None]

    @property
    def _width(self) -> Tensor:
        return self.limit * (2 / _BINS)

    def update(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        super().update(rows, low, high)
        if not (torch.isfinite(self.low).all() and torch.isfinite(self.high).all()):
            return
        self._widen(torch.maximum(-low, high))
        offsets = torch.arange(len(rows))[:, None] * _BINS + _BINS // 2
        per_unit = (1 / self._width).float()[:, None]
        for chunk in rows.split(max(1, _CHUNK // len(rows)), dim=1):
            bins = (chunk.float() * per_unit).floor_().long() + offsets
            self.counts += torch.bincount(bins.flatten(), minlength=self.counts.numel()).reshape(self.counts.shape)
            zeros = (chunk == 0).sum(1)
            self.counts[:, _BINS // 2] -= zeros
            self.zeros += zeros

    def _widen(self, extent: Tensor) -> None:
        """Make the limit of each row a power of two above ``extent``, and no less than it was."""
        exponent = torch.frexp(extent)[1].long().clamp(min=_SMALLEST_EXPONENT)
        if self._exponent is None:
            self.counts = torch.zeros(len(extent), _BINS, dtype=torch.int64)
            self.zeros = torch.zeros(len(extent), dtype=torch.int64)
            self._exponent = torch.full_like(exponent, _SMALLEST_EXPONENT)
        while (short := self._exponent < exponent).any():
            merged = self.counts[short].reshape(-1, _BINS // 2, 2).sum(2)
            self.counts[short] = torch.nn.functional.pad(merged, (_BINS // 4, _BINS // 4))
            self._exponent[short] += 1


def observe_ranges(
    graph: FloatGraph,
    values: Sequence[str],
    batches: Sequence[Batch],
    calibrator: str = "minmax",
    format: NumberFormat | None = None,
) -> dict[str, tuple[float, float]]:
    """Return the (low, high) that ``calibrator`` chooses for each named value of ``forward``, one for all its channels.

    Args:
        format: what the values become; ``mse`` and ``entropy`` need it.

    Raises:
        ValueError: there is no calibration data, a value was NaN or infinite, or the calibrator is unknown.
    """
    observers = {value: _observer(calibrator, None) for value in values}
    observe(graph, observers, batches)
    found = {}
    for value, observer in observers.items():
        require_finite(value, observer)
        low, high = _choose(observer, calibrator, format)
        found[value] = low.item(), high.item()
    return found


def range_of(
    values: Tensor, calibrator: str, format: NumberFormat | None = None, axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the low and high (float32 [rows]) that ``calibrator`` chooses for a tensor at hand, such as a weight.

    Raises:
        ValueError: the tensor is empty or holds NaN or infinity, or the calibrator is unknown.
    """
    observer = _observer(calibrator, axis)
    observer(values)
    require_finite("the tensor", observer)
    return _choose(observer, calibrator, format)


def observe(graph: FloatGraph, observers: Mapping[str, Observer], batches: Sequence[Batch]) -> None:
    """Run all batches through ``forward`` and show each named value to its observer.

    Raises:
        ValueError: there is no calibration data.
    """
    users = graph.graphs["forward"].users
    edges = {(node.name, position): seen for value, seen in observers.items() for node, position in users(value)}
    observe_edges(graph, edges, batches, {value: seen for value, seen in observers.items() if not users(value)})


def observe_edges(
    graph: FloatGraph,
    edges: Mapping[tuple[str, int], Observer],
    batches: Sequence[Batch],
    outputs: Mapping[str, Observer] | None = None,
    done: Callable[[], bool] | None = None,
) -> None:
    """Run all batches through ``forward`` with an observer on each (node, position), and on values called ``outputs``.

    These may be what no argument is by itself: an output of the graph, or one of a list, such as what ``cat`` joins.
    It stops early, after the batch by which all is ``done``.

    Raises:
        ValueError: there is no calibration data.
    """
    if not batches:
        raise ValueError("static quantization needs calibration data: pass at least one batch of inputs.")
    source, watched = graph.graphs["forward"], outputs or {}
    source = replace(source, outputs=tuple(dict.fromkeys((*source.outputs, *watched))))
    module = build_module(source, graph.parameters, dict(edges))
    with torch.inference_mode():
        for batch in steps(batches, "calibration batch"):
            found = dict(zip(source.outputs, module(*as_tensors(batch)), strict=True))
            for value, observer in watched.items():
                observer(found[value])
            if done and done():
                break


def as_tensors(batch: Batch) -> tuple[Tensor, ...]:
    return tuple(torch.as_tensor(array) for array in batch)


def first_samples(batches: Sequence[Batch], count: int) -> list[tuple[Tensor, ...]]:
    """Return the first ``count`` samples of ``batches``, or all if there are fewer."""
    found, missing = [], count
    for batch in map(as_tensors, batches):
        if missing <= 0:
            break
        found.append(tuple(values[:missing] for values in batch))
        missing -= len(batch[0])
    return found


def as_rows(values: Tensor, axis: int | None) -> Tensor:
    """View ``values`` as [channels of the axis, n], or as [1, n] without an axis."""
    return values.reshape(1, -1) if axis is None else values.movedim(axis, 0).flatten(1)


def require_finite(value: str, observer: Extremes) -> None:
    """Raise a ValueError that names ``value`` unless its observer saw finite values only."""
    if not (torch.isfinite(observer.low).all() and torch.isfinite(observer.high).all()):
        nothing = (observer.low > observer.high).any()
        seen = "no value" if nothing else "NaN or infinity"
        raise ValueError(f"calibration saw {seen} at {value!r}: check the calibration data.")


def _observer(calibrator: str, axis: int | None) -> Extremes:
    if calibrator not in CALIBRATORS:
        raise ValueError(f"unknown calibrator {calibrator!r}: use one of {', '.join(CALIBRATORS)}.")
    kinds = {"minmax": Extremes, "moving_average": MovingAverage}
    return kinds.get(calibrator, Histogram)(axis)


def _choose(observer: Extremes, calibrator: str, format: NumberFormat | None) -> tuple[Tensor, Tensor]:
    if calibrator == "percentile":
        return percentile_range(observer)
    if calibrator == "mse":
        return mse_range(observer, format)
    if calibrator == "entropy":
        return entropy_range(observer, format)
    return observer.low, observer.high


def percentile_range(histogram: Histogram, percent: float = PERCENT) -> tuple[Tensor, Tensor]:
    """Return float32 low and high [rows], beyond which ``100 - percent`` percent of the values lie on each side.

    Between two values of the sample they are interpolated linearly; each is known to within its bin.
    """
    counts = histogram.counts.clone()
    counts[:, _BINS // 2] += histogram.zeros
    total = counts.sum(1, keepdim=True).double()
    found = []
    for share in (1 - percent / 100, percent / 100):
        rank = share * (total - 1)
        below, above = (_order_statistic(histogram, counts, whole) for whole in (rank.floor(), rank.ceil()))
        value = torch.lerp(below, above, rank - rank.floor()).flatten().float()
        found.append(torch.minimum(torch.maximum(value, histogram.low), histogram.high))
    return found[0], found[1]


def _order_statistic(histogram: Histogram, counts: Tensor, rank: Tensor) -> Tensor:
    """Return about the value (float64 [rows, 1]) that ``rank`` others are smaller than, spread evenly in its bin."""
    upto = counts.cumsum(1).double()
    bin = torch.searchsorted(upto, rank, right=True)
    inside = (rank - (upto - counts).gather(1, bin) + 0.5) / counts.gather(1, bin)
    return (bin - _BINS // 2 + inside) * histogram._width[:, None]


def mse_range(histogram: Histogram, format: NumberFormat) -> tuple[Tensor, Tensor]:
    """Return float32 low and high [rows] whose codes are nearest to the values in mean square.

    The clip of one side is searched with the other held, side after side, first on a grid over the whole side and then
    around the best; a symmetric format has one side only.
    """
    found = [_least_error(*_occupied(histogram, row), format) for row in range(len(histogram.counts))]
    low, high = torch.tensor(found, dtype=torch.float32).reshape(-1, 2).T
    return low.contiguous(), high.contiguous()


def entropy_range(histogram: Histogram, format: NumberFormat) -> tuple[Tensor, Tensor]:
    """Return float32 low and high [rows] that keep most of the distribution, both sides cut at one threshold.

    For each threshold the reference is the distribution with what lies outside moved into the outermost bins, the
    candidate is the distribution inside, merged into as many levels as there are codes and spread evenly over the
    occupied bins of each; the threshold of least divergence wins.
    """
    thresholds = []
    for row, counts in enumerate(histogram.counts.double()):
        width = histogram._width[row].item()
        first, last = _occupied_bins(histogram, row)
        reach = max(last - _BINS // 2, _BINS // 2 - first, 1)
        levels = format.highest - format.lowest + 1
        least = min(reach, max(levels // 2, 1))
        widths = torch.linspace(least, reach, 2 * _CANDIDATES).round().long().unique()
        divergence = torch.tensor([_divergence(counts, first, last, int(half), levels) for half in widths])
        thresholds.append(width * int(widths[divergence.argmin()]))
    threshold = torch.tensor(thresholds, dtype=torch.float32)
    return torch.maximum(histogram.low, -threshold), torch.minimum(histogram.high, threshold)


def _divergence(counts: Tensor, first: int, last: int, half: int, levels: int) -> float:
    """Return KL(reference ‖ candidate) in nats of a clip to ``half`` bins on both sides of zero."""
    start, end = max(first, _BINS // 2 - half), min(last, _BINS // 2 + half)
    inside = counts[start:end]
    reference = inside.clone()
    reference[0] += counts[:start].sum()
    reference[-1] += counts[end:].sum()
    level = torch.arange(end - start) * levels // (end - start)
    occupied = (inside > 0).double()
    total = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, inside)
    bins = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, occupied)
    candidate = occupied * (total / bins.clamp(min=1))[level]
    if not candidate.sum():
        return float("inf")
    p, q = reference / reference.sum(), candidate / candidate.sum()
    return (p * ((p + 1e-30) / (q + 1e-30)).log()).sum().item()


def _occupied_bins(histogram: Histogram, row: int) -> tuple[int, int]:
    """Return the first occupied bin of a row and one past the last; zero lies between them."""
    occupied = histogram.counts[row].nonzero()
    if not len(occupied):
        return _BINS // 2, _BINS // 2 + 1
    return min(int(occupied[0]), _BINS // 2), max(int(occupied[-1]) + 1, _BINS // 2)


def _occupied(histogram: Histogram, row: int) -> tuple[Tensor, Tensor, float, float]:
    """Return the centres and counts (float64) of a row's occupied bins, and its extremes with zero between them."""
    occupied = histogram.counts[row].nonzero()[:, 0]
    centres = (occupied.double() + 0.5 - _BINS / 2) * histogram._width[row]
    low, high = min(histogram.low[row].item(), 0.0), max(histogram.high[row].item(), 0.0)
    return centres.clamp(low, high), histogram.counts[row, occupied].double(), low, high


def _least_error(values: Tensor, counts: Tensor, low: float, high: float, format: NumberFormat) -> tuple[float, float]:
    if format.symmetric:
        extent = max(-low, high)
        share = _search(lambda shares: _errors(values, counts, -shares * extent, shares * extent, format))
        return -share * extent, share * extent
    if low == high:
        return low, high
    share = _search(lambda shares: _errors(values, counts, shares * low, shares * high, format))
    lowest, highest = share, share
    for _ in range(_ROUNDS if low < 0 < high else 0):
        highest = _search(
            lambda shares, fixed=lowest: _errors(values, counts, fixed * low + 0 * shares, shares * high, format)
        )
        lowest = _search(
            lambda shares, fixed=highest: _errors(values, counts, shares * low, fixed * high + 0 * shares, format)
        )
    return lowest * low, highest * high


def _search(error: Callable[[Tensor], Tensor]) -> float:
    """Return the share in (0, 1] of least error: on a grid, then on a finer one between the neighbours of its best."""
    step = 1 / _CANDIDATES
    coarse = torch.arange(1, _CANDIDATES + 1, dtype=torch.float64) * step
    best = coarse[error(coarse).argmin()]
    fine = (best + torch.linspace(-step, step, 33, dtype=torch.float64)).clamp(step / 16, 1)
    return fine[error(fine).argmin()].item()


def _errors(values: Tensor, counts: Tensor, low: Tensor, high: Tensor, format: NumberFormat) -> Tensor:
    """Return the summed squared error (float64 [candidates]) of quantizing ``values`` [n] in each range."""
    scale, zero_point = scale_and_zero_point(low, high, format)
    scale = scale.double()[:, None]
    offset = 0 if zero_point is None else zero_point.double()[:, None]
    codes = (values / scale).round_().add_(offset).clamp_(format.lowest, format.highest)
    return ((codes - offset) * scale - values).square_() @ counts
