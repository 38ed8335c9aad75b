"""The float model, as it is or with its parameters cast to half precision."""

from collections.abc import Sequence

import torch

from quant.calibrate import Batch
from quant.graph import FloatGraph, QuantizedModel
from quant.scheme import Scheme

METHODS = {"float": {"family": "float", "bits": ("fp32", "fp16", "bf16"), "core": ("fp32",)}}


def quantize(graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch] = ()) -> QuantizedModel:
    """Return ``graph`` with every float parameter rounded to the scheme's type; no table for fp32.

    Raises:
        ValueError: a parameter does not fit the type.
    """
    if scheme.float_dtype == "float32":
        return QuantizedModel(graph, scheme)
    dtype = getattr(torch, scheme.float_dtype)
    floats = {name: value.to(dtype) for name, value in graph.parameters.items() if value.is_floating_point()}
    for name, value in floats.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"the parameter {name!r} does not fit {scheme.float_dtype}: leave the model in fp32.")
    return QuantizedModel(graph, scheme, floats=floats)
