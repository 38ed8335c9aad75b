"""Turning a quantized model into calls of torch operators and int8 kernels.

A value that a kernel makes and only quantized operators read, all in one quantizer, exists as uint8 codes alone: the
kernel writes them directly, and a clamp between the two becomes part of it. Everything else is float, and what has no
kernel is computed in float on quantized and dequantized numbers: simulated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from quant.attention import Attention
from quant.backends import _torch_kernels as kernels
from quant.backends import _torch_products as products
from quant.backends._torch_kernels import UNBOUNDED, Affine
from quant.backends._torch_plan import MOVES_CODES, RUN_TIME_ALONE, Plan, bounds_of
from quant.backends._torch_program import Call
from quant.execution import resolve
from quant.graph import ActivationQuantizer, QuantizedModel
from quant.nodes import (
    LSTM,
    QUANTIZABLE,
    RESIDUAL,
    Node,
    Parameter,
    Value,
    data_of,
    lstm_parameters,
    map_references,
)
from quant.recurrent import SteppedLSTM

_RESHAPES = {"aten.view.default": "aten.reshape.default", "aten._unsafe_view.default": "aten.reshape.default"}
"""Kernels write channels-last memory, which a view may not be able to read."""


@dataclass
class Lowered:
    """The calls of a graph, and which of its nodes run on int8 kernels or only pretend to be quantized."""

    calls: list[Call] = field(default_factory=list)
    native: set[str] = field(default_factory=set)
    simulated: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def lower(
    quantized: QuantizedModel,
    device: str = "cpu",
    replaced: dict[str, Tensor] | None = None,
    layout: torch.memory_format = torch.contiguous_format,
    compiled: bool = False,
) -> Lowered:
    """Return the ``forward`` graph of ``quantized`` as calls on ``device``, with its tables put into effect.

    ``replaced`` holds tensors that take the place of parameters as they are; ``layout`` is that of float kernels;
    ``compiled`` tells whether torch.compile will make code of the calls.
    """
    lowering = _Lowering(quantized, device, replaced or {}, layout, compiled)
    for node in lowering.plan.graph.nodes:
        lowering.add(node)
    return lowering.result


class _Lowering:
    def __init__(
        self,
        quantized: QuantizedModel,
        device: str,
        replaced: dict[str, Tensor],
        layout: torch.memory_format,
        compiled: bool,
    ) -> None:
        self.quantized, self.device, self.plan = quantized, device, Plan(quantized, device)
        self.layout, self.compiled = layout, compiled
        self.dtype = getattr(torch, quantized.scheme.float_dtype)
        self.result = Lowered()
        self.tensors = {name: value.to(device) for name, value in replaced.items()}
        self.codes: set[str] = set()
        self.made: set[str] = set()
        self.folded = {clamp.name for clamp in self.plan.clamps.values()}
        if self.plan.refusal:
            self.result.notes.append(f"Quantized operators run in float: {self.plan.refusal}.")

    def add(self, node: Node) -> None:
        if node.name in self.plan.integer:
            self._add_integer(node)
        elif node.name not in self.folded:
            self._add_float(node)

    def _add_integer(self, node: Node) -> None:
        if node.operator in RUN_TIME_ALONE:
            self._add_products(node)
            return
        clamp = self.plan.clamps.get(node.name)
        name, bounds = (clamp.name, bounds_of(clamp)) if clamp else (node.name, UNBOUNDED)
        target = self.plan.wanted(name)
        if target is not None:
            self.codes.add(name)
        if node.operator in RESIDUAL:
            self._add_residual(node, name, target, bounds)
            return
        self.result.native.add(node.name)
        self._call(name, self._kernel(node, target, bounds), (self._codes(node, 0),))

    def _add_products(self, node: Node) -> None:
        """Add an LSTM or an attention, whose products are of codes found at run time."""
        self.result.native.add(node.name)
        if node.operator == LSTM:
            kernel, others = self._lstm(node), (map_references(node.arguments[1], self._fetch),)
            codes, keywords = (self._codes(node, "x"),), {}
        else:
            kernel = products.attention(self._rounding(node, "p"))
            codes = tuple(self._codes(node, position) for position in (0, 1, 2))
            others = tuple(map_references(argument, self._fetch) for argument in node.arguments[3:])
            keywords = {key: value for key, value in node.keywords.items() if key != "enable_gqa"}
            keywords = {key: map_references(value, self._fetch) for key, value in keywords.items()}
        # torch.compile would unroll the loops over steps and heads for every length.
        function = torch.compiler.disable(kernel) if self.compiled else kernel
        self._call(node.name, function, (*codes, *others), keywords)

    def _lstm(self, node: Node) -> Callable:
        directions = []
        for own in lstm_parameters(node):
            of_data, of_hidden = (self.quantized.weights[weight.name] for weight in own[:2])
            biases = [self._tensor(bias.name) for bias in own[2:]]
            with_biases = kernels.run_time_linear(of_data, sum(biases) if biases else None, UNBOUNDED)
            directions.append((with_biases, kernels.run_time_linear(of_hidden, None, UNBOUNDED)))
        return products.lstm(directions, node.arguments[8], self._rounding(node, "h"))

    def _rounding(self, node: Node, position: int | str) -> Callable:
        _, quantizer = self.plan.quantizer(node, position)
        return kernels.run_time_codes(quantizer.format, quantizer.input_scale)

    def _add_residual(self, node: Node, name: str, target: Affine | None, bounds: tuple[float, float]) -> None:
        function = kernels.residual_sum(self.plan.affine(node, 0), self.plan.affine(node, 1), target, bounds)
        self._call(name, function, (self._codes(node, 0), self._codes(node, 1)))
        self._note_float_arithmetic()

    def _kernel(self, node: Node, target: Affine | None, bounds: tuple[float, float]) -> Callable:
        source, weight = self.plan.affine(node, 0), self.plan.weight(node)
        bias = node.arguments[2] if len(node.arguments) > 2 else None
        bias = None if bias is None else self._tensor(bias.name)
        typical = self.plan.graph.shapes[node.arguments[0].name]
        if QUANTIZABLE[node.operator].kind == "convolution":
            kernel = kernels.convolution(weight, bias, kernels.geometry(node, typical), source, target, bounds)
            # Inductor expects what this kernel writes to lie otherwise in memory than it may (torch 2.13).
            return torch.compiler.disable(kernel) if self.compiled else kernel
        if source is None:
            return kernels.run_time_linear(weight, bias, bounds)
        if target is None:
            return kernels.static_linear(weight, bias, source, bounds)
        return kernels.requantizing_linear(weight, bias, source, target, bounds, None if self.compiled else typical)

    def _codes(self, node: Node, position: int | str) -> Value:
        """Return the codes that an integer node reads, quantizing a float value once per quantizer."""
        value = data_of(node, position).name
        if value in self.codes:
            return Value(value)
        number, quantizer = self.plan.quantizer(node, position)
        affine = self.plan.affine(node, position)
        if affine is None:
            return self._once(f"codes {number} of {value}", self._rounding(node, position), value)
        return self._once(f"codes {number} of {value}", kernels.static_codes(affine, quantizer.input_scale), value)

    def _add_float(self, node: Node) -> None:
        arguments = [map_references(argument, self._fetch) for argument in node.arguments]
        for position, argument in enumerate(node.arguments):
            if self.plan.quantizer(node, position):
                arguments[position] = self._quantized_float(node, position, argument.name)
        if self.plan.quantizer(node, "x"):
            arguments[0] = self._quantized_float(node, "x", node.arguments[0].name)
        keywords = {key: map_references(value, self._fetch) for key, value in node.keywords.items()}
        if node.operator in MOVES_CODES and isinstance(arguments[0], Value) and arguments[0].name in self.codes:
            self.codes.add(node.name)
        if self.plan.is_quantized(node):
            self.result.simulated.add(node.name)
        function = self._function(node)
        self._call(node.name, function, tuple(arguments), keywords | self._placement(function))

    def _function(self, node: Node) -> Callable:
        if recurrence := self.plan.quantizer(node, "h"):
            return SteppedLSTM(_on_device(recurrence[1], self.device))
        if probabilities := self.plan.quantizer(node, "p"):
            return Attention(_on_device(probabilities[1], self.device))
        return resolve(_RESHAPES.get(node.operator, node.operator))

    def _quantized_float(self, node: Node, position: int | str, value: str) -> Value:
        """Return, as float, the quantized value that an operator without a kernel reads."""
        if value in self.codes:
            self._note_float_arithmetic()
            return self._once(f"values of {value}", kernels.float_values(self.plan.affine(node, position)), value)
        number, quantizer = self.plan.quantizer(node, position)
        return self._once(f"simulated {number} of {value}", _on_device(quantizer, self.device), value)

    def _note_float_arithmetic(self) -> None:
        note = "Sums and poolings between quantized operators are float arithmetic on their codes."
        if note not in self.result.notes:
            self.result.notes.append(note)

    def _fetch(self, reference: Value | Parameter) -> Value | Tensor:
        return reference if isinstance(reference, Value) else self._tensor(reference.name)

    def _tensor(self, parameter: str) -> Tensor:
        if parameter not in self.tensors:
            weight = self.quantized.weights.get(parameter)
            original = self.quantized.graph.parameters[parameter]
            value = self.quantized.floats.get(parameter, original) if weight is None else weight.dequantize()
            dtype = self.dtype if value.is_floating_point() else value.dtype
            self.tensors[parameter] = arranged(value.to(self.device, dtype), self.layout)
        return self.tensors[parameter]

    def _placement(self, function: object) -> dict[str, str]:
        """Return the device for operators that make tensors from nothing; captured graphs do not say one."""
        schema = getattr(function, "_schema", None)
        if self.device == "cpu" or schema is None:
            return {}
        takes = {argument.name: str(argument.type) for argument in schema.arguments}
        makes_from_nothing = "device" in takes and not any("Tensor" in kind for kind in takes.values())
        return {"device": self.device} if makes_from_nothing else {}

    def _once(self, name: str, function: Callable, value: str) -> Value:
        if name not in self.made:
            self.made.add(name)
            self._call(name, function, (Value(value),))
        return Value(name)

    def _call(self, name: str, function: Callable, arguments: tuple, keywords: dict[str, object] | None = None) -> None:
        if self.dtype != torch.float32:
            arguments = _in_dtype(arguments, self.dtype)
            keywords = {key: _in_dtype(value, self.dtype) for key, value in (keywords or {}).items()}
        self.result.calls.append(Call(name, function, arguments, keywords or {}))


def arranged(value: Tensor, layout: torch.memory_format) -> Tensor:
    """Return an image, or the kernel of a convolution of images, with its channels last in memory where asked for."""
    return value.to(memory_format=layout) if layout == torch.channels_last and value.ndim == 4 else value


def _in_dtype(item: object, dtype: torch.dtype) -> object:
    """Return an argument of a float32 graph as one for ``dtype``: its name, and constants beyond its range."""
    if isinstance(item, tuple):
        return tuple(_in_dtype(part, dtype) for part in item)
    if isinstance(item, torch.dtype):
        return dtype if item == torch.float32 else item
    if isinstance(item, float) and math.isfinite(item):
        limits = torch.finfo(dtype)
        return min(max(item, limits.min), limits.max)
    return item


def _on_device(quantizer: ActivationQuantizer, device: str) -> ActivationQuantizer:
    tensors = {name: getattr(quantizer, name) for name in ("scale", "zero_point", "input_scale")}
    return replace(quantizer, **{name: value.to(device) for name, value in tensors.items() if value is not None})
