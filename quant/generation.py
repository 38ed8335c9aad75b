"""Going on with a text token by token, with the keys and values of what was read kept in a cache.

A decoder takes a step by a float graph of its own, over the parameters of the graph that reads whole texts:

    input_ids int64 [n, t], positions int64 [t], past int64 [p], caches float32 [n, heads, p, size]
        -> logits [n, vocabulary] of the token after the last, caches [n, heads, p + t, size]

Reading a prompt is a step of many tokens, generating one a step of one: both run the same artefact with the same
weights. Caches grow by what a step adds to them. ``past`` says where each of their entries stands in the text, and a
token sees what stands at or before its own place. The first entry stands after every text, so that nothing ever sees
it: there is no text yet when a prompt is read, and Core ML has no empty arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import nn

from quant.graph import ActivationQuantizer, Edge, FloatGraph, QuantizedModel, simulate
from quant.nodes import weights_of
from quant.tracing import capture

if TYPE_CHECKING:
    from torch import Tensor

BEYOND = 2**31 - 1
"""A place after every text."""
_NEW, _PAST = 3, 5


@dataclass(frozen=True)
class CacheShape:
    """What a decoder keeps of each token: [heads, size] in each of ``tensors``, keys and values for every layer."""

    tensors: int
    heads: int
    size: int

    def empty(self, batch: int, entries: int = 1) -> list[np.ndarray]:
        """Return caches float32 of so many entries, all zero."""
        return [np.zeros((batch, self.heads, entries, self.size), np.float32) for _ in range(self.tensors)]


class Stepper(Protocol):
    """What takes a step: an executable, or the simulation of its tables."""

    def step(self, *inputs: object) -> tuple[np.ndarray, list]:
        """Return the first output, and the others in whatever form the next step takes them as inputs."""


@dataclass(frozen=True)
class Text:
    """A text that was read, or a batch of texts of one length.

    length  tokens read
    logits  float32 [n, vocabulary], of the token after them
    caches  as the decoder left them
    """

    length: int
    logits: np.ndarray
    caches: Sequence[object]

    @property
    def cache_bytes(self) -> int:
        """What the caches take in the runtime's memory."""
        return bytes_of(self.caches)


def bytes_of(caches: Sequence[object]) -> int:
    """Return what caches take, as numpy or a runtime holds them."""
    return sum(cache.nbytes if hasattr(cache, "nbytes") else cache.tensor_size_in_bytes() for cache in caches)


def places(length: int, added: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where ``added`` tokens stand after ``length`` others, and where the entries of these others' caches do."""
    return np.arange(length, length + added), np.array([BEYOND, *range(length)])


def capture_step(module: nn.Module, shape: CacheShape) -> FloatGraph:
    """Return ``module``, which takes a step as this file describes, as a float graph.

    Raises:
        ValueError: it does not return logits and as many caches as it takes.
    """
    caches = tuple(map(torch.from_numpy, shape.empty(2, _PAST)))
    past = torch.tensor([BEYOND, *range(_PAST - 1)])
    examples = (torch.ones(2, _NEW, dtype=torch.int64), torch.arange(_NEW) + _PAST - 1, past, *caches)
    axes = ({0: "batch", 1: "new"}, {0: "new"}, {0: "past"}, *({0: "batch", 2: "past"},) * shape.tensors)
    graph = capture(module, examples, axes)
    source = graph.graphs["forward"]
    grown = [2, shape.heads, _PAST + _NEW, shape.size]
    if [source.shapes[name] for name in source.outputs[1:]] != [grown] * shape.tensors:
        raise ValueError(
            f"a step must return logits and {shape.tensors} caches of the shape [n, {shape.heads}, past + new, "
            f"{shape.size}]: check the module and its cache's shape."
        )
    return graph


def one_token(step: FloatGraph, length: int) -> FloatGraph:
    """Return a step for one text that reads one token after at most ``length``, with all sizes fixed."""
    _, _, _, *caches = (list(example.shape) for example in step.examples["forward"])
    places = torch.tensor([length - 1]), torch.tensor([*range(length - 1), BEYOND])
    zeros = (torch.zeros(1, heads, length, size) for _, heads, _, size in caches)
    examples = (torch.ones(1, 1, dtype=torch.int64), *places, *zeros)
    return capture(step.module(), examples, tuple({} for _ in examples))


def carried_over(quantized: QuantizedModel, step: FloatGraph) -> QuantizedModel:
    """Return the tables of a model that reads whole texts as those of its steps.

    Weights and floats are found by name. An activation quantizer is found by the weight that its operator multiplies
    with; so the ranges of static methods, which stand on sums as well, have no place here.

    Raises:
        ValueError: the step has other parameters, or activations are quantized in fixed ranges.
    """
    if any(quantizer.mode == "static" for quantizer in quantized.activations.values()):
        raise ValueError(
            "a step takes no activations in fixed ranges: use a method for weights alone or a dynamic one."
        )
    for name in (*quantized.weights, *quantized.floats):
        own = step.parameters.get(name)
        if own is None or not torch.equal(own, quantized.graph.parameters[name]):
            raise ValueError(f"the step does not have the parameter {name!r} of the quantized model: build both alike.")
    activations = _activations(quantized, step)
    return QuantizedModel(
        step, quantized.scheme, quantized.weights, quantized.floats, activations, dict(quantized.recipe)
    )


def read(decoder: Stepper, prompts: np.ndarray, shape: CacheShape) -> Text:
    """Return what reading ``prompts``, int64 [n, t], leaves."""
    return _advanced(decoder, Text(0, np.empty(0), shape.empty(len(prompts))), prompts)


def extended(decoder: Stepper, text: Text, tokens: np.ndarray) -> Text:
    """Return ``text`` with one more token each, int64 [n]; the text itself can be extended again."""
    return _advanced(decoder, text, tokens[:, None])


def greedy(decoder: Stepper, text: Text, count: int) -> np.ndarray:
    """Return the ``count`` tokens int64 [n, count], each the most likely, that follow ``text``."""
    tokens = [text.logits.argmax(axis=-1)]
    while len(tokens) < count:
        text = extended(decoder, text, tokens[-1])
        tokens.append(text.logits.argmax(axis=-1))
    return np.stack(tokens, axis=1)


def followed(decoder: Stepper, text: Text, tokens: np.ndarray) -> np.ndarray:
    """Return float32 [n, count, vocabulary]: what the decoder foretells in place of each of ``tokens`` [n, count]."""
    logits = [text.logits]
    for place in range(tokens.shape[1] - 1):
        text = extended(decoder, text, tokens[:, place])
        logits.append(text.logits)
    return np.stack(logits, axis=1)


class Simulated:
    """What the tables of a step mean, computed in torch."""

    def __init__(self, quantized: QuantizedModel) -> None:
        self._module = simulate(quantized)

    @torch.inference_mode()
    def step(self, *inputs: "np.ndarray | Tensor") -> "tuple[np.ndarray, list[Tensor]]":
        logits, *caches = self._module(*map(torch.as_tensor, inputs))
        return logits.numpy(), caches


def _advanced(decoder: Stepper, text: Text, tokens: np.ndarray) -> Text:
    length, added = text.length, tokens.shape[1]
    logits, caches = decoder.step(tokens, *places(length, added), *text.caches)
    return Text(length + added, logits, caches)


def _activations(quantized: QuantizedModel, step: FloatGraph) -> dict[Edge, ActivationQuantizer]:
    """Return the quantizers on the edges of the step's operators that take the same weights in the same order."""
    sources, targets = (_operators(graph) for graph in (quantized.graph, step))
    twins = {node: targets.get(key) for key, node in sources.items()}
    found = {}
    for (graph, node, position), quantizer in quantized.activations.items():
        if twins.get(node) is None:
            raise ValueError(
                f"the quantized input of {node!r} has no counterpart in a step: no weight tells which it is."
            )
        found[graph, twins[node], position] = quantizer
    return found


def _operators(graph: FloatGraph) -> dict[tuple, str]:
    """Return the operators that take weights, by the kind of operator, its weights, and which of several it is."""
    found: dict[tuple, str] = {}
    for node in graph.graphs["forward"].nodes:
        weights = tuple(weight.name for weight in weights_of(node))
        if weights:
            key = (node.operator, weights)
            found[*key, sum(known[:2] == key for known in found)] = node.name
    return found
