"""Quantization-aware training, from where the best method without training ends.

Weights start from ``gptq``, weights and activations from ``static`` or ``dynamic``; what learns, and how, says
:mod:`quant.training`. A model without labelled training data of its own learns from the float model, on the calibration
data.
"""

from collections.abc import Sequence

from quant.calibrate import Batch
from quant.graph import FloatGraph, QuantizedModel
from quant.methods import dynamic, gptq, static
from quant.recipe import Training, unlabelled
from quant.scheme import Scheme
from quant.training import train

METHODS = {
    "qat": {"family": "weight_only", "bits": ("int4", "int3", "int2"), "calibrates": True, "trains": True},
    "qat_static": {"family": "static", "bits": ("int8",), "calibrates": True, "trains": True},
    "qat_dynamic": {"family": "dynamic", "bits": ("int8", "w4a8"), "calibrates": True, "trains": True},
}

_STARTS = {"weight_only": gptq, "static": static, "dynamic": dynamic}


def quantize(
    graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch] = (), training: Training | None = None
) -> QuantizedModel:
    """Return the tables that training leads to; without ``training`` they are distilled on the calibration data."""
    training = training or unlabelled(calibration)
    start = _STARTS[scheme.family].quantize(graph, scheme, training.start_data or calibration)
    return train(start, training)
