"""Dynamic W8A8 and W4A8: weights rounded beforehand, activations quantized at run time.

Those are the inputs of linear layers, and of an LSTM both its inputs and its hidden state before every step, where a
tensor or a row of them has one scale: no runtime divides them into groups. With ``attention`` they are also query, key,
value and probabilities of attention, so that its two products are of integers. A product sums over the rows of the
values, so these have one scale per tensor in any case.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from quant.calibrate import Batch
from quant.graph import ActivationQuantizer, Edge, FloatGraph, QuantizedModel
from quant.methods.rtn import round_weights
from quant.nodes import ATTENTION
from quant.scheme import NumberFormat, Scheme

METHODS = {
    "dynamic": {
        "family": "dynamic",
        "bits": (
            "int8", "int8_reduced", "w4a8",
            "int8_token_sym", "int8_token_asym", "int8_tensor_sym", "int8_tensor_asym",
        ),
        "core": ("int8",),
    },
    "dynamic_attention": {"family": "dynamic", "bits": ("int8",), "settings": {"attention": True}},
}  # fmt: skip
_QUERY, _KEY, _VALUE, _PROBABILITIES = 0, 1, 2, "p"


def quantize(
    graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch] = (), attention: bool = False
) -> QuantizedModel:
    """Return linear layers, LSTMs and embeddings quantized, and with ``attention`` its products.

    Convolutions stay float: no runtime has a fast kernel for them.
    """
    kinds = {name: {operator.kind for _, operator in consumers} for name, consumers in graph.quantizable().items()}
    weights = {
        name: weight for name, weight in round_weights(graph, scheme).items() if "convolution" not in kinds[name]
    }
    quantizer = ActivationQuantizer("dynamic", scheme.activations)
    in_groups = scheme.activations.granularity == "group"
    activations = {
        (*edge[:2], operator.data): quantizer
        for name in weights
        for edge, operator in graph.quantizable()[name]
        if operator.kind == "linear" or (operator.kind == "recurrent" and not in_groups)
    }
    if attention and not in_groups:
        activations |= dict(_attended(graph, scheme.activations))
    return QuantizedModel(graph, scheme, weights, activations=activations)


def _attended(graph: FloatGraph, format: NumberFormat) -> Iterator[tuple[Edge, ActivationQuantizer]]:
    """Yield the quantizers of every attention."""
    of_tensor = replace(format, granularity="tensor")
    formats = {_QUERY: format, _KEY: format, _VALUE: of_tensor, _PROBABILITIES: format}
    for name, source in graph.graphs.items():
        for node in source.nodes:
            if node.operator == ATTENTION:
                for position, each in formats.items():
                    yield (name, node.name, position), ActivationQuantizer("dynamic", each)
