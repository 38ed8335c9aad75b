"""Mixed precision: each weight in the width and group size that an integer program gives it, within bits per weight.

The formats on offer are those of the plain words; a weight's error in each is what its rounding alone does to the
model's output (``quant.sensitivity``; measured, because the cheaper estimates fail where 2 bits change much), its cost
the bits of codes, scales and zero points.
The program (``quant.mixed``) chooses, and GPTQ rounds in what was chosen. Where a runtime may join linear layers that
read one value, as query, key and value, they choose together.
"""

from collections.abc import Sequence

import numpy as np
import torch

from quant.calibrate import Batch
from quant.channels import linear_groups
from quant.graph import FloatGraph, QuantizedModel
from quant.layers import Layer, Moments, weight_formats
from quant.methods.gptq import solve_layer
from quant.methods.mse import search
from quant.mixed import Problem, greedy, least_error
from quant.progress import steps
from quant.scheme import Scheme, parse
from quant.sensitivity import CRITERIA
from quant.sequential import quantize_sequentially
from quant.tensor import QuantizedTensor, quantize_with

METHODS = {
    "mixed": {
        "family": "weight_only",
        "bits": ("mixed_3p5", "mixed_4", "mixed_4p5", "mixed_5", "mixed_6"),
        "calibrates": True,
    },
    "mixed_greedy": {
        "family": "weight_only",
        "bits": ("mixed_4p5",),
        "calibrates": True,
        "settings": {"choose": "greedy"},
    },
}

FORMATS = (
    "int8_g128", "int6_g64", "int5_g32", "int5_g128",
    "int4_g32", "int4_g128", "int3_g32", "int3_g128", "int2_g32",
)  # fmt: skip
_CHOOSE = {"program": least_error, "greedy": greedy}


def quantize(
    graph: FloatGraph,
    scheme: Scheme,
    calibration: Sequence[Batch] = (),
    choose: str = "program",
    criterion: str = "sqnr",
) -> QuantizedModel:
    """Return the weights in the formats chosen; all parameters together take ``scheme.bits_per_weight`` at most.

    Raises:
        ValueError: what cannot be quantized takes more than that already, or there is no calibration data.
    """
    offered = [weight_formats(graph, parse(word)) for word in FORMATS]
    names = list(offered[0])
    changes, bits = {}, []
    for name in steps(names, "table"):
        tables = [_rounded(graph, name, formats) for formats in offered]
        weight = graph.parameters[name].float()
        # Their errors are wanted to two digits, so half the memory will do.
        changes[name] = [(table.dequantize() - weight).to(torch.bfloat16) for table in tables]
        bits.append([table.nbits for table in tables])
    errors = CRITERIA[criterion](graph, changes, calibration)
    del changes
    problem = Problem(errors, np.array(bits, dtype=float), _together(graph, names, offered[0]))
    chosen = _CHOOSE[choose](problem, _budget(graph, scheme, names))
    formats = {name: offered[choice][name] for name, choice in zip(names, chosen, strict=True)}

    def solve(layer: Layer, weight: torch.Tensor, moments: Moments | None) -> QuantizedTensor:
        return solve_layer(layer, weight, moments, *formats[layer.parameter])

    recipe = {
        "formats": {name: FORMATS[choice] for name, choice in zip(names, chosen, strict=True)},
        "predicted_error": problem.total_error(chosen),
        "predicted_bits": problem.total_cost(chosen),
    }
    return QuantizedModel(graph, scheme, quantize_sequentially(graph, names, calibration, solve), recipe=recipe)


def _rounded(graph: FloatGraph, name: str, formats: dict[str, tuple]) -> QuantizedTensor:
    weight = graph.parameters[name]
    return quantize_with(weight, *search(weight, *formats[name]), *formats[name])


def _budget(graph: FloatGraph, scheme: Scheme, names: Sequence[str]) -> float:
    """Return the bits that are left for the weights ``names`` when all other parameters stay as they are."""
    others = QuantizedModel(graph, scheme).bits_per_weight * graph.parameter_count
    others -= sum(8 * graph.parameters[name].numel() * graph.parameters[name].element_size() for name in names)
    return scheme.bits_per_weight * graph.parameter_count - others


def _together(graph: FloatGraph, names: Sequence[str], formats: dict[str, tuple]) -> tuple[tuple[int, ...], ...]:
    position = {name: index for index, name in enumerate(names)}
    groups = (dict.fromkeys(group.parameters) for group in linear_groups(graph, formats))
    return tuple(tuple(position[name] for name in group) for group in groups if len(group) > 1)
