"""AdaRound: rounding up or down learned so that the outputs of whole blocks of layers stay what they were.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020 (arXiv:2004.10568): every code is
softly one of two neighbours, ``lower + h(v)`` with h the rectified sigmoid, and v is trained together with a penalty
that drives h to 0 or 1. Trained are the layers of a block together, on the output of the block, as in Li et al.,
"BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", 2021 (arXiv:2102.05426). GPTQ's codes
are the start, one of the two neighbours each, so that few steps are enough. A block keeps the best of what it was
trained to, what it started from, and plain rounding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from quant.calibrate import Batch, as_tensors
from quant.channels import SEED
from quant.execution import build_module
from quant.graph import FloatGraph, QuantizedModel
from quant.layers import Layer, Moments, weight_formats
from quant.methods.gptq import solve_layer
from quant.nodes import Graph, Parameter, Value, references
from quant.scheme import Scheme
from quant.sequential import Block, quantize_sequentially
from quant.tensor import QuantizedTensor, expand, quantize_with

METHODS = {
    "adaround": {
        "family": "weight_only",
        "bits": ("int8", "int6", "int5", "int4", "int3", "int2"),
        "calibrates": True,
    }
}

STEPS = 300
SAMPLES_PER_STEP = 8
LEARNING_RATE = 0.01
PENALTY = 1.0
"""Weight of the rounding penalty, relative to the error that the block starts from."""
WARM_UP = 0.2
"""Share of the steps without a penalty."""
SHARPEST, BLUNTEST = 2.0, 20.0
"""The exponents of the penalty, from first to last; a blunt one leaves codes near the middle alone."""
STRETCH = (-0.1, 1.1)
"""The range that the sigmoid is stretched to before it is clipped to [0, 1]."""
START = 0.97
"""How far the code that GPTQ chose is taken at first: much less would undo what its errors make good of each other."""


def quantize(graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch] = ()) -> QuantizedModel:
    """Return all quantizable weights with their rounding learned block by block; embeddings are as GPTQ has them."""
    formats = weight_formats(graph, scheme)

    def solve(layer: Layer, weight: Tensor, moments: Moments | None) -> QuantizedTensor:
        return solve_layer(layer, weight, moments, *formats[layer.parameter])

    def refine(block: Block) -> dict[str, QuantizedTensor]:
        with torch.enable_grad():
            return Reconstruction(graph, block).best()

    batches = [part for batch in calibration for part in _small(batch)]
    return QuantizedModel(graph, scheme, quantize_sequentially(graph, list(formats), batches, solve, refine))


def _small(batch: Batch) -> list[tuple[Tensor, ...]]:
    """Return a batch in parts of ``SAMPLES_PER_STEP``: a step takes one whole, with the sizes computed from it."""
    tensors = as_tensors(batch)
    return list(zip(*(tensor.split(SAMPLES_PER_STEP) for tensor in tensors), strict=True))


class Reconstruction:
    """A block as a function of the soft rounding of its weights, and the data to train it on."""

    def __init__(self, graph: FloatGraph, block: Block) -> None:
        self.block = block
        source = graph.graphs["forward"]
        nodes, made = tuple(block.nodes), {node.name for node in block.nodes}
        taken = [item for node in nodes for item in references((node.arguments, tuple(node.keywords.values())))]
        outside = dict.fromkeys(item.name for item in taken if isinstance(item, Value) and item.name not in made)
        self.inputs = tuple(outside)
        whole = Graph(self.inputs, nodes, (nodes[-1].name,), ({},) * len(self.inputs), source.shapes)
        names = {item.name for item in taken if isinstance(item, Parameter)}
        # Weights that are trained are only stood in for.
        self.module = build_module(
            whole,
            {
                name: graph.parameters[name] if name in block.weights else graph.parameters[name].clone()
                for name in names
            },
        )
        arriving = (tuple(values[name] for name in self.inputs) for values in block.inputs)
        self.data = list(zip(arriving, block.targets, strict=True))
        self.energy = float(torch.stack([target.square().sum() for _, target in self.data]).sum()) or 1.0
        self.originals = {name: graph.parameters[name] for name in block.weights}

    def best(self) -> dict[str, QuantizedTensor]:
        """Return the weights of the smallest error among GPTQ's, plain rounding in the same scales, and the trained."""
        candidates = [self.block.weights, {name: self._rounded(name) for name in self.block.weights}]
        if self.block.layers:
            candidates.append(self._trained())
        return min(candidates, key=self.error)

    def error(self, weights: dict[str, QuantizedTensor]) -> float:
        """Return the squared error of the block's output over its energy, on all calibration data."""
        values = {name: weight.dequantize() for name, weight in weights.items()}
        with torch.no_grad():
            return sum(float(self._squared_error(values, *pair)) for pair in self.data) / self.energy

    def _trained(self) -> dict[str, QuantizedTensor]:
        softs = {name: SoftRounding(self.originals[name], weight) for name, weight in self.block.weights.items()}
        optimizer = torch.optim.Adam([soft.v for soft in softs.values()], LEARNING_RATE, fused=True)
        scale = PENALTY * max(self.error(self.block.weights), 1e-8)
        count = sum(soft.v.numel() for soft in softs.values())
        generator = torch.Generator().manual_seed(SEED)
        for step in range(STEPS):
            inputs, target = self.data[int(torch.randint(len(self.data), (), generator=generator))]
            progress = (step / STEPS - WARM_UP) / (1 - WARM_UP)
            values = {name: soft.dequantize() for name, soft in softs.items()}
            loss = self._squared_error(values, inputs, target) / target.square().sum().clamp(min=1e-12)
            if progress > 0:
                sharpness = BLUNTEST + (SHARPEST - BLUNTEST) * progress
                loss = loss + scale * sum(soft.penalty(sharpness) for soft in softs.values()) / count
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return {name: soft.hardened() for name, soft in softs.items()}

    def _squared_error(self, values: dict[str, Tensor], inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        (output,) = functional_call(self.module, values, inputs)
        return (output - target).square().sum()

    def _rounded(self, name: str) -> QuantizedTensor:
        weight = self.block.weights[name]
        return quantize_with(self.originals[name], weight.scale, weight.zero_point, weight.format, weight.block)


class SoftRounding:
    """A weight whose codes lie between two neighbours each, where ``v`` says."""

    def __init__(self, original: Tensor, start: QuantizedTensor) -> None:
        self.start = start
        shape, format = start.codes.shape, start.format
        self.scale = expand(start.scale, start.block, shape)
        zero = 0.0 if start.zero_point is None else expand(start.zero_point.float(), start.block, shape)
        codes = start.codes.float()
        below = codes - (original / self.scale + zero < codes).float()
        lower = below.clamp_(format.lowest, format.highest - 1)
        low, high = STRETCH
        share = torch.where(codes > lower, START, 1 - START)
        self.v = nn.Parameter(share.sub_(low).div_(high - low).logit_())
        self.lower = lower.to(start.codes.dtype)
        self.steps = lower.sub_(zero)

    def dequantize(self) -> Tensor:
        """Return the values that the weight has while its codes are undecided."""
        return _Between.apply(self.v, self.steps, self.scale)

    def penalty(self, sharpness: float) -> Tensor:
        """Return the sum over codes of ``1 - |2 h - 1| ** sharpness``, zero where every h is 0 or 1."""
        return _Undecided.apply(self.v, sharpness)

    def hardened(self) -> QuantizedTensor:
        start = self.start
        codes = self.lower + (_share(self.v.detach()) >= 0.5).to(self.lower.dtype)
        return QuantizedTensor(codes, start.scale, start.zero_point, None, start.block, start.format)


class _Between(torch.autograd.Function):
    """``(steps + h(v)) * scale``; like all here it keeps v alone for its gradient, and computes the rest again."""

    @staticmethod
    def forward(context, v: Tensor, steps: Tensor, scale: Tensor) -> Tensor:
        context.save_for_backward(v, scale)
        return _share(v).add_(steps).mul_(scale)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None]:
        v, scale = context.saved_tensors
        return _slope(_share(v)).mul_(scale).mul_(gradient), None, None


class _Undecided(torch.autograd.Function):
    """The sum of ``1 - |2 h(v) - 1| ** sharpness``."""

    @staticmethod
    def forward(context, v: Tensor, sharpness: float) -> Tensor:
        context.save_for_backward(v)
        context.sharpness = sharpness
        return v.numel() - _share(v).mul_(2).sub_(1).abs_().pow_(sharpness).sum()

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        (v,) = context.saved_tensors
        share, sharpness = _share(v), context.sharpness
        side = 2 * share - 1
        towards = side.abs().pow_(sharpness - 1).copysign_(side).mul_(-2 * sharpness)
        return towards.mul_(_slope(share)).mul_(gradient), None


def _share(v: Tensor) -> Tensor:
    """Return h(v), a new tensor: how much of the step from the lower to the upper neighbour is taken, in [0, 1]."""
    low, high = STRETCH
    return torch.sigmoid(v).mul_(high - low).add_(low).clamp_(0, 1)


def _slope(share: Tensor) -> Tensor:
    """Return h'(v) where h(v) is ``share``: zero where that is clipped."""
    low, high = STRETCH
    inside = (share > 0) & (share < 1)
    return ((share - low) * (high - share)).div_(high - low).mul_(inside)
