"""Round to nearest: every weight to the closest code, scaled by the extremes of its block. The baseline of methods."""

from collections.abc import Sequence

import torch
from torch import Tensor

from quant.calibrate import Batch
from quant.graph import FloatGraph, QuantizedModel
from quant.scheme import Scheme
from quant.tensor import QuantizedTensor, block_of
from quant.tensor import quantize as quantize_tensor

METHODS = {
    "rtn": {
        "family": "weight_only",
        "bits": (
            "int8", "int6", "int5", "int4", "int3", "int2",
            "e4m3", "e5m2", "mxfp8", "mxfp4", "nvfp4", "nf4",
        ),
        "core": ("int4",),
    }
}  # fmt: skip


def quantize(graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch] = ()) -> QuantizedModel:
    """Return all quantizable weights rounded to nearest; activations stay float and calibration is not used."""
    return QuantizedModel(graph, scheme, weights=round_weights(graph, scheme))


def round_weights(graph: FloatGraph, scheme: Scheme) -> dict[str, QuantizedTensor]:
    """Return the rounded weights of every operator the scheme has a format for, by parameter.

    A parameter that several operators share takes the format of the first.

    Raises:
        ValueError: a weight holds NaN or infinity; the sentence names it.
    """
    rounded = {}
    for parameter, consumers in graph.quantizable().items():
        format = scheme.weight_format(consumers[0][1].kind)
        if format is None:
            continue
        weight = finite_weight(graph, parameter)
        block = block_of(format, tuple(weight.shape), graph.channel_block(parameter))
        rounded[parameter] = quantize_tensor(weight, format, block)
    return rounded


def finite_weight(graph: FloatGraph, parameter: str) -> Tensor:
    """Return a parameter, or raise a ValueError that names it if it holds NaN or infinity."""
    weight = graph.parameters[parameter]
    if not torch.isfinite(weight).all():
        raise ValueError(f"the weight {parameter!r} holds NaN or infinity: check the model.")
    return weight
