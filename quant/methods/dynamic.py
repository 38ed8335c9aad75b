"""Dynamic W8A8 and W4A8: weights rounded beforehand, activations of linear layers quantized at run time.

Of an LSTM both its inputs and its hidden state before every step are quantized, where a tensor or a row of them has
one scale: no runtime divides them into groups.
"""

from collections.abc import Sequence

from quant.calibrate import Batch
from quant.graph import ActivationQuantizer, FloatGraph, QuantizedModel
from quant.methods.rtn import round_weights
from quant.scheme import Scheme

METHODS = {"dynamic": {"family": "dynamic", "bits": ("int8", "int8_reduced", "w4a8"), "core": ("int8",)}}


def quantize(graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch] = ()) -> QuantizedModel:
    """Return linear layers, LSTMs and embeddings quantized.

    Convolutions stay float: no runtime has a fast kernel for them.
    """
    kinds = {name: {operator.kind for _, operator in consumers} for name, consumers in graph.quantizable().items()}
    weights = {
        name: weight for name, weight in round_weights(graph, scheme).items() if "convolution" not in kinds[name]
    }
    quantizer = ActivationQuantizer("dynamic", scheme.activations)
    activations = {
        (*edge[:2], operator.data): quantizer
        for name in weights
        for edge, operator in graph.quantizable()[name]
        if operator.kind == "linear" or (operator.kind == "recurrent" and scheme.activations.granularity != "group")
    }
    return QuantizedModel(graph, scheme, weights, activations=activations)
