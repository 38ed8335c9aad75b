"""Round to nearest: every weight to the closest code, scaled by the extremes of its block. The baseline of methods."""

from collections.abc import Sequence

from quant.calibrate import Batch
from quant.graph import FloatGraph, QuantizedModel
from quant.layers import weight_formats
from quant.scheme import Scheme
from quant.tensor import QuantizedTensor
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

    Raises:
        ValueError: a weight holds NaN or infinity; the sentence names it.
    """
    formats = weight_formats(graph, scheme)
    return {name: quantize_tensor(graph.parameters[name], *chosen) for name, chosen in formats.items()}
