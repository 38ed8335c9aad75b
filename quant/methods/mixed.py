"""Mixed precision: each weight in the format that an integer program gives it, within bits per weight.

What a weight's format costs the model is measured: its change alone, rounded as it will be, and what that does to the
output (``quant.sensitivity``). The program (``quant.mixed``) chooses among the formats on offer (``quant.offers``), and
GPTQ rounds in what was chosen. Where a runtime may join linear layers that read one value, as query, key and value,
they choose together.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quant.calibrate import Batch, Observer, observe_edges
from quant.graph import FloatGraph, QuantizedModel
from quant.layers import Layer, Moments, layer_of
from quant.methods.gptq import solve_layer
from quant.mixed import greedy, least_error
from quant.offers import WIDTHS, Layout, Offer, layouts_of, words_of
from quant.progress import steps
from quant.replaying import calibration_sha256
from quant.scheme import Scheme
from quant.sensitivity import CRITERIA, Sensitivity
from quant.sequential import quantize_sequentially
from quant.tensor import QuantizedTensor

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

CRITERION = "sqnr"
_LAST: dict[tuple, Sensitivity] = {}
_CHOOSE = {"program": least_error, "greedy": greedy}


def quantize(
    graph: FloatGraph,
    scheme: Scheme,
    calibration: Sequence[Batch] = (),
    choose: str = "program",
    criterion: str = CRITERION,
    widths: Sequence[int] = WIDTHS,
    formats: Mapping[str, str] | None = None,
) -> QuantizedModel:
    """Return the weights in the formats chosen; all parameters together take ``scheme.bits_per_weight`` at most.

    Args:
        choose: by "program" or "greedy".
        criterion: one of ``quant.sensitivity.CRITERIA``.
        widths: bits of the integers that may be chosen, as a runtime has them, beside half precision.
        formats: the word of every weight, such as ``int4_g32`` or ``fp16``, where all is chosen already.

    Raises:
        ValueError: what cannot be quantized takes more than that already, or there is no calibration data.
    """
    if formats is not None:
        return in_formats(graph, scheme, calibration, formats)
    offer = Offer(graph, words_of(widths))
    found = _remembered(offer, calibration, criterion)
    problem = offer.problem(found.errors)
    chosen = _CHOOSE[choose](problem, offer.budget(scheme.bits_per_weight))
    quantized = in_formats(graph, scheme, calibration, offer.named(chosen))
    quantized.recipe.update(
        predicted_error=problem.total_error(chosen),
        predicted_bits=problem.total_cost(chosen),
        sensitivity={
            "criterion": criterion,
            "weights": list(found.weights),
            "formats": list(found.formats),
            "errors": [[float(f"{error:.4g}") for error in row] for row in found.errors],
        },
    )
    return quantized


def measured(offer: Offer, calibration: Sequence[Batch], criterion: str = CRITERION) -> Sensitivity:
    """Return what each format on offer costs the model, where one weight alone takes it.

    Raises:
        ValueError: there is no calibration data.
    """
    errors = CRITERIA[criterion](offer.graph, rounding_errors(offer, calibration), calibration)
    return Sensitivity(criterion, offer.weights, offer.words, errors, offer.graph.weights_sha256)


def _remembered(offer: Offer, calibration: Sequence[Batch], criterion: str) -> Sensitivity:
    """Return the same, not measured anew where this process did so last: budgets of one model come one by one."""
    key = (offer.graph.weights_sha256, offer.words, calibration_sha256(calibration), criterion)
    if key not in _LAST:
        _LAST.clear()
        _LAST[key] = measured(offer, calibration, criterion)
    return _LAST[key]


def rounding_errors(offer: Offer, calibration: Sequence[Batch]) -> dict[str, list[Tensor]]:
    """Return what each word changes in each weight, rounded by GPTQ for its inputs in the float model.

    That is nothing where a word is not open to the weight. Errors are wanted to two digits, so bfloat16 will do.
    """
    moments = _moments(offer.graph, offer.weights, calibration)
    found = {}
    for name, layouts in steps(list(offer.layouts.items()), "table"):
        weight, layer, changes = offer.graph.parameters[name].float(), layer_of(offer.graph, name), {}
        for layout in dict.fromkeys(layouts.values()):
            rounded = solve_layer(layer, weight, moments[name], *layout).dequantize() if layout else weight.half()
            changes[layout] = (rounded - weight).to(torch.bfloat16)
        nothing = torch.zeros((), dtype=torch.bfloat16).expand(weight.shape)
        found[name] = [changes[layouts[word]] if word in layouts else nothing for word in offer.words]
    return found


def in_formats(
    graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch], formats: Mapping[str, str]
) -> QuantizedModel:
    """Return every weight rounded in the word it has.

    Raises:
        ValueError: a weight has no word, or one that does not suit it; or there is no calibration data.
    """
    layouts = layouts_of(graph, formats)
    integers: dict[str, Layout] = {name: layout for name, layout in layouts.items() if layout is not None}

    def solve(layer: Layer, weight: Tensor, moments: Moments | None) -> QuantizedTensor:
        return solve_layer(layer, weight, moments, *integers[layer.parameter])

    weights = quantize_sequentially(graph, list(integers), calibration, solve)
    floats = {name: graph.parameters[name].half() for name in layouts if name not in integers}
    return QuantizedModel(graph, scheme, weights, floats, recipe={"formats": dict(formats)})


def _moments(graph: FloatGraph, weights: Sequence[str], batches: Sequence[Batch]) -> dict[str, Moments | None]:
    """Return the moments of what each weight multiplies with in the float model; None where it is looked up or unused.

    Weights that read one value in the same way share them.
    """
    found: dict[str, Moments | None] = {}
    shared: dict[tuple, Moments] = {}
    observers: dict[tuple[str, int | str], Observer] = {}
    for name in weights:
        layer = layer_of(graph, name)
        if layer.kind == "embedding" or layer.node.name not in graph.graphs["forward"].by_name:
            found[name] = None
            continue
        key = (layer.reads_like(), layer.reads_hidden)
        if key not in shared:
            shared[key] = Moments(layer)
            observers[layer.node.name, layer.operator.data] = _adding_to(shared[key])
        found[name] = shared[key]
    observe_edges(graph, observers, batches)
    return found


def _adding_to(moments: Moments) -> Observer:
    def observe(values: Tensor) -> Tensor:
        moments.add(values)
        return values

    return observe
