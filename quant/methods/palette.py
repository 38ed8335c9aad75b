"""Palettes: weights share the entries of a look-up table, found by k-means.

``palette_fisher`` weighs the error of each weight as SqueezeLLM does (Kim et al., 2023, arXiv:2306.07629), by the
diagonal of the Fisher information. For an operator that is linear in its weights its entries are the mean squares of
input times output gradient; without labels there are no gradients, and the mean squared input of each channel alone is
what remains: it makes the weighted error that of the operator's own output, of inputs that do not correlate.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from quant.calibrate import Batch, observe_edges
from quant.graph import FloatGraph, QuantizedModel
from quant.layers import weight_formats
from quant.methods._k_means import k_means, middles
from quant.nodes import Node, transposed_groups
from quant.progress import steps
from quant.scheme import NumberFormat, Scheme
from quant.tensor import QuantizedTensor

METHODS = {
    "palette": {"family": "weight_only", "bits": ("lut8", "lut6", "lut4", "lut3", "lut2")},
    "palette_grouped": {
        "family": "weight_only",
        "bits": ("lut8", "lut6", "lut4", "lut3", "lut2"),
        "settings": {"rows": 16},
    },
    "palette_fisher": {
        "family": "weight_only",
        "bits": ("lut8", "lut6", "lut4", "lut3", "lut2"),
        "calibrates": True,
        "settings": {"fisher": True},
    },
}

_LEAST_IMPORTANCE = 1e-4
_LARGEST_ENTRY = 65504.0


def quantize(
    graph: FloatGraph,
    scheme: Scheme,
    calibration: Sequence[Batch] = (),
    rows: int | None = None,
    fisher: bool = False,
) -> QuantizedModel:
    """Return all quantizable weights as indices into look-up tables; activations stay float.

    Args:
        rows: how many indices of the first dimension, output channels but for transposed convolutions, have a table
            together; all of a weight by default.
        fisher: weigh the error of a weight by the mean square of what it multiplies in ``calibration``. Embeddings,
            which multiply nothing, and LSTMs are not weighted.

    Raises:
        ValueError: the scheme has no look-up tables, there is no calibration data for ``fisher``, or a weight or an
            input holds NaN or infinity.
    """
    if scheme.linear.codebook != "learned":
        raise ValueError(f"{scheme} has no look-up tables, which palettes are: use lut4 or another of their words.")
    importance = mean_squared_inputs(graph, calibration) if fisher else {}
    weights = {}
    for parameter, (format, _) in steps(list(weight_formats(graph, scheme).items()), "weight"):
        weight = graph.parameters[parameter]
        if weight.abs().max() > _LARGEST_ENTRY:
            raise ValueError(f"the weight {parameter!r} does not fit half precision, which its table has: rescale it.")
        weights[parameter] = palettize(weight, format, rows, importance.get(parameter))
    return QuantizedModel(graph, scheme, weights)


def palettize(
    weight: Tensor, format: NumberFormat, rows: int | None = None, importance: Tensor | None = None
) -> QuantizedTensor:
    """Return ``weight`` (float, any shape) as codes of the nearest entries of its own tables.

    Up to ``rows`` indices of the first dimension share a table, nearly the same number everywhere. ``importance``
    broadcasts to the weight. Entries are rounded to half precision before codes are chosen.
    """
    tables = 1 if rows is None else -(-weight.shape[0] // rows)
    together = -(-weight.shape[0] // tables)
    codes, codebooks = [], []
    whole = weight.shape[0] // together * together
    for part in (slice(0, whole), slice(whole, None)):  # the last table may have fewer rows
        values = weight[part].float()
        if not len(values):
            continue
        count = -(-len(values) // together)
        shares = None if importance is None else importance.expand(weight.shape)[part].reshape(count, -1)
        table = k_means(values.reshape(count, -1), 2**format.bits, shares).half().float()
        nearest = torch.searchsorted(middles(table), values.reshape(count, -1), out_int32=True)
        codes.append(nearest.to(torch.uint8).reshape(values.shape))
        codebooks.append(table)
    codebook = torch.cat(codebooks) if rows else codebooks[0][0]
    scale = torch.ones((1,) * weight.ndim)
    return QuantizedTensor(torch.cat(codes), scale, None, codebook, tuple(weight.shape), format)


def mean_squared_inputs(graph: FloatGraph, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Return for each linear or convolution weight the mean square of what each element multiplies in ``forward``.

    It broadcasts to the weight; no element has less than a small share of the mean, so that what calibration never
    reached keeps its weights apart. A weight of several operators has the sum of theirs.

    Raises:
        ValueError: there is no calibration data, or it made NaN or infinity.
    """
    if not batches:
        raise ValueError("palettes weighted by Fisher information need calibration data: pass a batch of inputs.")
    observers, places, edges = {}, {}, {}
    for parameter, consumers in graph.quantizable().items():
        for (name, node, _), operator in consumers:
            if operator.kind in ("embedding", "recurrent") or name != "forward":
                continue
            value = graph.node((name, node, 0)).arguments[operator.data].name
            axis = -1 if operator.kind == "linear" else 1
            observer = observers.setdefault((value, axis), _SquaresPerChannel(axis))
            edges[node, operator.data] = observer
            places.setdefault(parameter, []).append((graph.node((name, node, 0)), observer))
    observe_edges(graph, edges, batches)
    for (value, _), observer in observers.items():
        if not torch.isfinite(observer.mean()).all():
            raise ValueError(f"calibration saw NaN or infinity at {value!r}: check the calibration data.")
    return {
        parameter: _with_least(sum(_per_element(node, graph.parameters[parameter], o.mean()) for node, o in found))
        for parameter, found in places.items()
    }


class _SquaresPerChannel:
    """The mean square of each channel along one axis, over any number of batches."""

    def __init__(self, axis: int) -> None:
        self._axis, self._sum, self._count = axis, 0, 0

    def __call__(self, values: Tensor) -> Tensor:
        channels = values.movedim(self._axis, -1).flatten(0, -2)
        self._sum = self._sum + channels.square().sum(0, dtype=torch.float64)
        self._count += len(channels)
        return values

    def mean(self) -> Tensor:
        return self._sum / max(self._count, 1)


def _per_element(node: Node, weight: Tensor, squares: Tensor) -> Tensor:
    """Return the mean squares of input channels (float64 [in]) so that they broadcast to the weight of ``node``."""
    if weight.ndim == 2:
        return squares
    kernel = [1] * (weight.ndim - 2)
    if transposed_groups(node) is not None:
        return squares.reshape(-1, 1, *kernel)
    groups = len(squares) // weight.shape[1]
    return (
        squares.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0).reshape(*weight.shape[:2], *kernel)
    )


def _with_least(importance: Tensor) -> Tensor:
    mean = importance.mean()
    return (importance / mean).clamp(min=_LEAST_IMPORTANCE) if mean > 0 else torch.ones_like(importance)
