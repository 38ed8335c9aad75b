"""Sensitivity: what quantizing one operator alone costs the output of the whole model.

Several criteria of it take the same: for each weight its *changes*, one float tensor for each format it might have,
and return float64 [weights, formats]. Two run the model once for each; the others need a few gradients, whatever their
number.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from quant.calibrate import Batch, as_tensors, first_samples
from quant.graph import Edge, FloatGraph, QuantizedModel, simulate
from quant.progress import steps
from quant.reading import readable

Changes = Mapping[str, Sequence[Tensor]]

_SAMPLES = 8
_DRAWS = 16


def most_sensitive(quantized: QuantizedModel, batches: Sequence[Batch], share: float) -> list[str]:
    """Return the weights to leave in float, so that the output error falls most for the work that is slower then.

    Weights are ranked by the squared error of the output with them alone quantized, over their multiply-accumulates,
    and taken while they make at most ``share`` of all multiply-accumulates of ``forward``.
    """
    graph = quantized.graph
    errors = output_errors(quantized, batches)
    work = {name: sum(graph.macs(edge[0], graph.node(edge)) for edge in graph.consumers(name)) for name in errors}
    left = share * sum(graph.macs("forward", node) for node in graph.graphs["forward"].nodes)
    found = []
    for name in sorted(errors, key=lambda name: errors[name] / work[name], reverse=True):
        if work[name] <= left:
            found.append(name)
            left -= work[name]
    return found


def output_errors(quantized: QuantizedModel, batches: Sequence[Batch]) -> dict[str, float]:
    """Return, for each weight whose operators read quantized inputs, the squared error that it alone causes.

    The error is relative to the output's square, over the first few samples.
    """
    inputs = [array[:_SAMPLES] for array in as_tensors(batches[0])]
    edges = {name: _data_edges(quantized, name) for name in quantized.weights}
    candidates = [name for name, of_name in edges.items() if of_name]
    scaling = {edge: replace(quantizer, mode="none") for edge, quantizer in quantized.activations.items()}
    found = {}
    with torch.inference_mode():
        expected = simulate(replace(quantized, weights={}, activations=scaling))(*inputs)[0]
        for name in steps(candidates, "sensitivity"):
            activations = scaling | {edge: quantized.activations[edge] for edge in edges[name]}
            alone = replace(quantized, weights={name: quantized.weights[name]}, activations=activations)
            difference = simulate(alone)(*inputs)[0] - expected
            found[name] = float(difference.square().sum() / expected.square().sum())
    return found


@dataclass(frozen=True)
class Sensitivity:
    """What a criterion says of a model: ``errors`` float64 [weights, formats], named by ``weights`` and ``formats``."""

    criterion: str
    weights: tuple[str, ...]
    formats: tuple[str, ...]
    errors: np.ndarray
    weights_sha256: str

    def among(self, weights: Sequence[str], formats: Sequence[str]) -> np.ndarray:
        """Return the errors of these weights in these formats.

        Raises:
            ValueError: some were not measured.
        """
        for noun, wanted, known in (("format", formats, self.formats), ("weight", weights, self.weights)):
            absent = [name for name in wanted if name not in known]
            if absent:
                raise ValueError(f"the sensitivities hold nothing of the {noun} {absent[0]!r}: measure them again.")
        rows, columns = [self.weights.index(name) for name in weights], [self.formats.index(name) for name in formats]
        return self.errors[np.ix_(rows, columns)]

    def as_dict(self) -> dict[str, object]:
        """Return all of it in plain JSON types."""
        return {**vars(self), "weights": [*self.weights], "formats": [*self.formats], "errors": self.errors.tolist()}

    def save(self, path: Path | str) -> None:
        """Write the sensitivity as JSON."""
        Path(path).write_text(json.dumps(self.as_dict(), indent=1))


def load(path: Path | str, graph: FloatGraph) -> Sensitivity:
    """Read what :meth:`Sensitivity.save` wrote.

    Raises:
        ValueError: the file is damaged, or of a model with other weights.
    """
    with readable(f"{path} holds no readable sensitivities", "measure them again"):
        entry = json.loads(Path(path).read_text())
        found = Sensitivity(
            str(entry["criterion"]),
            tuple(entry["weights"]),
            tuple(entry["formats"]),
            np.array(entry["errors"], dtype=np.float64),
            entry["weights_sha256"],
        )
    if found.errors.shape != (len(found.weights), len(found.formats)):
        raise ValueError(f"{path} holds no readable sensitivities (errors are missing): measure them again.")
    if found.weights_sha256 != graph.weights_sha256:
        raise ValueError(f"{path} was measured of other weights than this graph's: measure the model again.")
    return found


def output_noise(graph: FloatGraph, changes: Changes, batches: Sequence[Batch]) -> np.ndarray:
    """Return the noise-to-signal ratio of the output, the inverse of its SQNR, with one weight changed."""
    return _one_by_one(graph, changes, batches, _noise)


def output_divergence(graph: FloatGraph, changes: Changes, batches: Sequence[Batch]) -> np.ndarray:
    """Return the mean divergence KL(float ‖ changed) of the softmax of the output, in nats, with one weight changed."""
    return _one_by_one(graph, changes, batches, _divergence)


def fisher(graph: FloatGraph, changes: Changes, batches: Sequence[Batch]) -> np.ndarray:
    """Return the second order of :func:`output_divergence`, summed over outputs: half of ``d' F d`` for each change d.

    F is the Fisher information, which is the Gauss-Newton Hessian: the mean of ``g g'``, g the gradient of the log
    likelihood of what the float model itself draws from its softmax (Kunstner et al., "Limitations of the empirical
    Fisher approximation", 2019, arXiv:1905.12558).
    """
    generator = torch.Generator().manual_seed(0)
    total = np.zeros(_shape(changes))
    samples = _inputs(batches, _DRAWS)
    count = len(samples[0])
    for draw in steps(range(_DRAWS), "gradient"):
        at = draw % count
        logarithms, leaves = _log_likelihood(graph, changes, [array[at : at + 1] for array in samples])
        drawn = torch.multinomial(logarithms.detach().exp(), 1, generator=generator)
        aligned = _inner_products(logarithms.gather(1, drawn).sum(), leaves, changes)
        total += np.square(aligned) / 2
    return total / _DRAWS


def alignment(graph: FloatGraph, changes: Changes, batches: Sequence[Batch]) -> np.ndarray:
    """Return how far each change agrees with the gradient of the divergence, where all weights have their last format.

    First order: at the float model the gradient vanishes, so it is taken at the other end, where undoing a change of
    one weight saves about its inner product with the gradient. What would save nothing counts as zero.
    """
    samples = _inputs(batches, _SAMPLES)
    last = {name: graph.parameters[name].float() + of_weight[-1].float() for name, of_weight in changes.items()}
    with torch.no_grad():
        expected = _log_softmax(graph.module()(*samples)[0])
    logarithms, leaves = _log_likelihood(graph, changes, samples, last)
    divergence = (expected.exp() * (expected - logarithms)).sum(-1).mean()
    return np.maximum(_inner_products(divergence, leaves, changes), 0)


def hessian(graph: FloatGraph, changes: Changes, batches: Sequence[Batch]) -> np.ndarray:
    """Return half the mean eigenvalue of the Hessian of :func:`output_divergence`, times the square of each change.

    Dong et al., "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks", 2020 (arXiv:1911.03852): a
    change counts by its size alone, as if it had no direction.
    """
    traces = hessian_traces(graph, list(changes), batches)
    squares = [[float(change.double().square().sum()) for change in of_weight] for of_weight in changes.values()]
    sizes = [graph.parameters[name].numel() for name in changes]
    return np.array(squares).reshape(_shape(changes)) * (traces / sizes / 2)[:, None]


def hessian_traces(
    graph: FloatGraph, weights: Sequence[str], batches: Sequence[Batch], draws: int = 2 * _DRAWS
) -> np.ndarray:
    """Return float64 [weights]: the trace of each weight's part of the Hessian of :func:`output_divergence`.

    Estimated by Hutchinson's method: the mean of ``v' H v`` over vectors of random signs. At the float model the
    Hessian is the Fisher information, so that a negative estimate is noise and counts as zero.
    """
    generator = torch.Generator().manual_seed(0)
    samples = _inputs(batches, _SAMPLES)
    total = np.zeros(len(weights))
    # The fused kernels of attention have no second derivative.
    with sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False):
        logarithms, leaves = _log_likelihood(graph, dict.fromkeys(weights, ()), samples)
        divergence = (logarithms.detach().exp() * (logarithms.detach() - logarithms)).sum(-1).mean()
        leaves = list(leaves.values())
        gradients = torch.autograd.grad(divergence, leaves, create_graph=True, allow_unused=True)
        reached = [index for index, gradient in enumerate(gradients) if gradient is not None]
        for _ in steps(range(draws), "curvature"):
            signs = [torch.randint(0, 2, leaves[i].shape, generator=generator).float() * 2 - 1 for i in reached]
            products = torch.autograd.grad(
                [gradients[i] for i in reached], [leaves[i] for i in reached], signs, retain_graph=True
            )
            total[reached] += [float((v * hv).sum()) for v, hv in zip(signs, products, strict=True)]
    return np.maximum(total / draws, 0)


CRITERIA: dict[str, Callable[[FloatGraph, Changes, Sequence[Batch]], np.ndarray]] = {
    "sqnr": output_noise,
    "kl": output_divergence,
    "fisher": fisher,
    "alignment": alignment,
    "hessian": hessian,
}


def _one_by_one(
    graph: FloatGraph, changes: Changes, batches: Sequence[Batch], error: Callable[[Tensor, Tensor], float]
) -> np.ndarray:
    samples, found = _inputs(batches, _SAMPLES), np.zeros(_shape(changes))
    with torch.inference_mode():
        expected = graph.module()(*samples)[0]
        for row, (name, of_weight) in enumerate(steps(list(changes.items()), "layer")):
            for column, change in enumerate(of_weight):
                changed = graph.module(parameters={name: graph.parameters[name].float() + change.float()})
                found[row, column] = error(expected, changed(*samples)[0])
    return found


def _noise(expected: Tensor, changed: Tensor) -> float:
    return float((changed - expected).square().sum() / expected.square().sum())


def _divergence(expected: Tensor, changed: Tensor) -> float:
    expected, changed = _log_softmax(expected.double()), _log_softmax(changed.double())
    return float((expected.exp() * (expected - changed)).sum(-1).mean())


def _log_likelihood(
    graph: FloatGraph, changes: Changes, samples: Sequence[Tensor], values: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logarithms of the softmax [n, classes] and the weights that they can be differentiated by."""
    values = values or {name: graph.parameters[name] for name in changes}
    leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    module = _reshaping(graph.module())
    # A weight may belong to another graph of the model alone.
    known = dict(module.named_parameters())
    reached = {name: leaf for name, leaf in leaves.items() if name in known}
    with torch.enable_grad():
        return _log_softmax(functional_call(module, reached, tuple(samples))[0]), leaves


def _reshaping(module: fx.GraphModule) -> fx.GraphModule:
    """Return the module with views as reshapes: values lie elsewhere in memory where another kernel made them."""
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    module.recompile()
    return module


def _inner_products(value: Tensor, leaves: dict[str, Tensor], changes: Changes) -> np.ndarray:
    """Return the inner product of the gradient of ``value`` with each change; zero where it does not depend on one."""
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    found = np.zeros(_shape(changes))
    for row, (gradient, of_weight) in enumerate(zip(gradients, changes.values(), strict=True)):
        if gradient is not None:
            found[row] = [float((gradient * change).sum()) for change in of_weight]
    return found


def _log_softmax(output: Tensor) -> Tensor:
    """Return [n, classes]; an output of one number is taken as that of a class against another of zero."""
    if output.shape[-1] == 1:
        output = torch.cat([output, torch.zeros_like(output)], -1)
    return output.flatten(0, -2).log_softmax(-1)


def _inputs(batches: Sequence[Batch], count: int) -> list[Tensor]:
    """Return the first samples of the batches, ``count`` at most.

    Raises:
        ValueError: there are none.
    """
    if not batches:
        raise ValueError("sensitivities need calibration data: pass at least one batch of inputs.")
    return list(first_samples(batches, count)[0])


def _shape(changes: Changes) -> tuple[int, int]:
    return len(changes), len(next(iter(changes.values()), ()))


def _data_edges(quantized: QuantizedModel, weight: str) -> list[Edge]:
    consumers = quantized.graph.quantizable()[weight]
    edges = [(*edge[:2], operator.data) for edge, operator in consumers]
    return [edge for edge in edges if edge in quantized.activations]
