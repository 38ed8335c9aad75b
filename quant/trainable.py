"""A quantized model as a torch module that learns: what it computes is what its tables mean, at every step.

It runs the float graph as it was captured. Batch norms were folded into the convolutions before them when it was, with
the statistics that the float model ended its training with: training goes on with frozen batch norms, and what is
rounded per channel is the folded weight, the one that is deployed (Jacob et al., 2018, arXiv:1712.05877, section 3.2;
Krishnamoorthi, 2018, arXiv:1806.08342, section 4.2.2, freezes them for the last part of training for the same reason).
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from quant.execution import build_module
from quant.fake_quantize import (
    Choose,
    LearnedActivation,
    LearnedScales,
    LearnedVector,
    LearnedWeight,
    PassingActivation,
    straight_through,
)
from quant.graph import ActivationQuantizer, FloatGraph, QuantizedModel, shared_quantizers
from quant.methods.static import accumulated_biases, on_accumulator_grid
from quant.nodes import QUANTIZABLE
from quant.recipe import Estimator, Learns
from quant.tensor import QuantizedTensor

_NORMS = {
    "aten.layer_norm.default": (2, 3),
    "aten.group_norm.default": (2, 3),
    "aten.rms_norm.default": (2,),
    "aten.batch_norm.default": (1, 2),
    "aten._native_batch_norm_legit_no_training.default": (1, 2),
    "aten.mul.Tensor": (0, 1),
    "aten.add.Tensor": (0, 1),
}
"""Where operators take the gains and biases of norms, which may be written out."""
_BIASES = {name: (2,) for name, operator in QUANTIZABLE.items() if operator.kind != "embedding"}
"""Where they take biases of their own.

Those of an LSTM stay: it has two for every gate, of which some runtimes hold the sum alone.
"""


class TrainableModel(nn.Module):
    """A quantized model whose tables learn, from where they are.

    Its state dict holds what learns and what training started from; the parameters that stay float belong to the graph.
    """

    def __init__(self, start: QuantizedModel, learns: Learns = "all", estimator: Estimator = "lsq") -> None:
        super().__init__()
        graph, self.start = start.graph, start
        originals = {**graph.parameters, **{name: value.float() for name, value in start.floats.items()}}
        groups = shared_quantizers(start)
        self.activations = nn.ModuleList(_activation(quantizer, estimator) for quantizer, _ in groups)
        self._shared = [edges for _, edges in groups]
        by_edge = {edge: one for one, edges in zip(self.activations, self._shared, strict=True) for edge in edges}
        fixed = {edge: one for edge, one in by_edge.items() if isinstance(one, LearnedActivation)}
        accumulated = accumulated_biases(graph, fixed)
        self.weight_names = tuple(start.weights)
        if learns == "all":
            self.weights = nn.ModuleList(LearnedWeight(originals[name], start.weights[name]) for name in start.weights)
        else:
            self.weights = nn.ModuleList(LearnedScales(weight) for weight in start.weights.values())
        learning = learning_vectors(graph, learns)
        self.float_names = tuple(dict.fromkeys([*learning, *accumulated]))
        self.floats = nn.ModuleList(LearnedVector(originals[name]) for name in self.float_names)
        for name, vector in zip(self.float_names, self.floats, strict=True):
            vector.requires_grad_(learns == "all" or name in learning)
        by_name = dict(zip(self.weight_names, self.weights, strict=True))
        self._rounded = {
            name: (parameter, by_name[parameter], fixed[edge]) for name, (parameter, edge) in accumulated.items()
        }
        # In a list, so that the parameters of the graph are none of this module.
        self._run = [build_module(graph.graphs["forward"], originals, {edge[1:]: one for edge, one in by_edge.items()})]

    def forward(self, *inputs: Tensor, choose: Choose | None = None) -> tuple[Tensor, ...]:
        """Return the outputs of the graph; where ``choose`` is given it draws which blocks of weights are quantized."""
        named = zip(self.weight_names, self.weights, strict=True)
        values = {name: weight(choose) for name, weight in named}
        for name, vector in zip(self.float_names, self.floats, strict=True):
            values[name] = self._on_grid(name, vector(), values) if name in self._rounded else vector()
        return functional_call(self._run[0], values, inputs)

    def _on_grid(self, name: str, bias: Tensor, values: dict[str, Tensor]) -> Tensor:
        parameter, weight, activation = self._rounded[name]
        with torch.no_grad():
            scales = weight.range.stored()[0], activation.table().scale
            rounded = on_accumulator_grid(bias, scales[0], values[parameter], scales[1])
        return straight_through(bias, rounded)

    @property
    def ranges(self) -> Iterator[nn.Module]:
        """The scales and zero points that learn."""
        return (one.range for one in (*self.weights, *self.activations) if hasattr(one, "range"))

    def keep_valid(self) -> None:
        """Take back what a step of training did too much of."""
        for one in self.ranges:
            one.keep_valid()

    def restart(self, bits: int) -> None:
        """Go on with weights of so many bits, but no fewer than their own, in scales of least squared error."""
        for weight, own in zip(self.weights, self.start.weights.values(), strict=True):
            weight.restart(replace(own.format, bits=max(bits, own.format.bits)))

    @torch.no_grad()
    def tables(self) -> QuantizedModel:
        """Return the tables as they are now."""
        start = self.start
        weights: dict[str, QuantizedTensor] = {
            name: weight.table() for name, weight in zip(self.weight_names, self.weights, strict=True)
        }
        tables = [one.table() for one in self.activations]
        found = {edge: table for table, edges in zip(tables, self._shared, strict=True) for edge in edges}
        activations = {edge: found.get(edge, quantizer) for edge, quantizer in start.activations.items()}
        floats = {name: vector() for name, vector in zip(self.float_names, self.floats, strict=True)}
        for name, (parameter, *_) in self._rounded.items():
            floats[name] = self._on_grid(name, floats[name], {parameter: weights[parameter].codes})
        return QuantizedModel(start.graph, start.scheme, weights, {**start.floats, **floats}, activations)


def learning_vectors(graph: FloatGraph, learns: Learns = "all") -> list[str]:
    """Return the gains and biases: vectors that operators take where they have such, and nowhere else.

    Where scales learn and codes stay, they are those of norms alone.
    """
    places = {**_BIASES, **_NORMS} if learns == "all" else _NORMS
    found = []
    for name, value in graph.parameters.items():
        edges = graph.consumers(name)
        taken = edges and all(edge[2] in places.get(graph.node(edge).operator, ()) for edge in edges)
        if value.ndim == 1 and value.is_floating_point() and taken:
            found.append(name)
    return found


def _activation(quantizer: ActivationQuantizer, estimator: Estimator) -> nn.Module:
    return LearnedActivation(quantizer, estimator) if quantizer.mode == "static" else PassingActivation(quantizer)
