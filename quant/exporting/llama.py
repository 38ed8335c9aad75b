"""Llama-like decoders: recognized in a float graph, and computed from nothing but their settings and weights.

Files for language models hold no graph: their readers know what a Llama is (Touvron et al. 2023) and need its settings
and which tensor is which. Both are read from the graph, and believed only where a Llama of these settings computes what
the graph computes on its examples.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np

_LAYER = re.compile(r"(?:.*\.)?layers\.(?P<index>\d+)\.(?P<part>.+)\.weight")
_PARTS = {
    "attention_norm": ("attention_norm", "input_layernorm"),
    "query": ("attention.query", "self_attn.q_proj"),
    "key": ("attention.key", "self_attn.k_proj"),
    "value": ("attention.value", "self_attn.v_proj"),
    "output": ("attention.output", "self_attn.o_proj"),
    "feed_forward_norm": ("feed_forward_norm", "post_attention_layernorm"),
    "gate": ("feed_forward.gate", "mlp.gate_proj"),
    "up": ("feed_forward.up", "mlp.up_proj"),
    "down": ("feed_forward.down", "mlp.down_proj"),
}
"""What a layer consists of, and what models call it: the zoo's, and those of transformers."""
_OUTER = {
    "embedding": ("embedding.weight", "model.embed_tokens.weight"),
    "norm": ("norm.weight", "model.norm.weight"),
    "head": ("head.weight", "lm_head.weight"),
}
_ATTENTION = "aten.scaled_dot_product_attention.default"
_TOLERANCE = 1e-3
_REFUSAL = "this format holds Llama-like decoders only, and the model is none that is recognized"


@dataclass(frozen=True)
class Settings:
    """The sizes of a decoder, and how its norms and rotary positions are computed."""

    vocabulary: int
    context: int
    layers: int
    width: int
    hidden: int
    heads: int
    key_heads: int
    head_size: int
    epsilon: float
    base: float

    def as_dict(self) -> dict[str, int | float]:
        return asdict(self)


@dataclass(frozen=True)
class Llama:
    """A recognized decoder: its settings, and the parameter of each role, as "layers.0.query".

    Without a role "head" the embedding is the head as well.
    """

    settings: Settings
    parameters: dict[str, str]


Weights = Callable[[str], np.ndarray]
"""From a role to float32 values: matrices are [out, in]."""


def recognize(graph) -> Llama:
    """Return what a float graph is as a Llama.

    Raises:
        ValueError: it is none; the sentence says where it differs.
    """
    parameters = roles_of(graph.parameters)
    settings = _settings(graph, parameters)
    found = Llama(settings, parameters)
    examples = graph.examples["forward"]
    own = logits(settings, lambda role: graph.parameters[parameters[role]].float().numpy(), "head" in parameters)
    expected = graph.module()(*examples)[0].detach().numpy()
    computed = own(examples[0].numpy())
    if computed.shape != expected.shape or np.linalg.norm(computed - expected) > _TOLERANCE * np.linalg.norm(expected):
        raise ValueError(f"{_REFUSAL}: it computes something else than a Llama of its sizes.")
    return found


def logits(settings: Settings, weights: Weights, has_head: bool, pairs: str = "halves") -> Callable:
    """Return the function from tokens int64 [n, t] to logits float32 [n, t, vocabulary].

    ``pairs`` says which features of a head are turned together: i and i + size / 2 of its "halves", or "adjacent" ones.
    """
    held = {role: weights(role) for role in roles(settings, has_head)}

    def function(tokens: np.ndarray) -> np.ndarray:
        cosine, sine = _rotations(settings, tokens.shape[1])
        hidden = held["embedding"][tokens]
        for index in range(settings.layers):
            layer = {part: held[f"layers.{index}.{part}"] for part in _PARTS}
            normed = _normed(hidden, layer["attention_norm"], settings.epsilon)
            hidden = hidden + _attention(settings, layer, normed, cosine, sine, pairs)
            normed = _normed(hidden, layer["feed_forward_norm"], settings.epsilon)
            gate = normed @ layer["gate"].T
            hidden = hidden + (gate / (1 + np.exp(-gate)) * (normed @ layer["up"].T)) @ layer["down"].T
        return _normed(hidden, held["norm"], settings.epsilon) @ held["head" if has_head else "embedding"].T

    return function


def roles(settings: Settings, has_head: bool) -> list[str]:
    """Return the roles of all parameters, in the order of computation."""
    layers = [f"layers.{index}.{part}" for index in range(settings.layers) for part in _PARTS]
    return ["embedding", *layers, "norm", *(["head"] if has_head else [])]


def adjacent(rows, heads: int):
    """Return rows of queries or keys [heads * size, ...] with the two of each turned pair side by side.

    Features i and i + size / 2 of a head become 2 i and 2 i + 1. Takes and returns a numpy array.
    """
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def halves(rows, heads: int):
    """Undo :func:`adjacent`."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def roles_of(parameters: Iterable[str]) -> dict[str, str]:
    """Return the parameters that have a role in a Llama, by role."""
    found = {}
    for name in parameters:
        match = _LAYER.fullmatch(name)
        if match:
            parts = (part for part, spellings in _PARTS.items() if match["part"] in spellings)
            found |= {f"layers.{match['index']}.{part}": name for part in parts}
        found |= {role: name for role, spellings in _OUTER.items() if name in spellings}
    return found


def _settings(graph, parameters: dict[str, str]) -> Settings:
    layers = len([role for role in parameters if role.endswith(".query")])
    shapes = {role: tuple(graph.parameters[name].shape) for role, name in parameters.items()}
    source = graph.graphs["forward"]
    attention = next((node for node in source.nodes if node.operator == _ATTENTION), None)
    missing = [f"layers.{i}.{part}" for i in range(layers) for part in _PARTS if f"layers.{i}.{part}" not in shapes]
    missing += [role for role in ("embedding", "norm") if role not in shapes]
    if not layers or missing or attention is None or len(source.inputs) != 1:
        lacks = f" (it has no {missing[0]})" if layers and missing else ""
        raise ValueError(f"{_REFUSAL}{lacks}.")
    _, heads, _, size = source.shapes[attention.arguments[0].name]
    context, base = _positions(graph, size)
    return Settings(
        vocabulary=shapes["embedding"][0],
        context=context,
        layers=layers,
        width=shapes["embedding"][1],
        hidden=shapes["layers.0.gate"][0],
        heads=heads,
        key_heads=shapes["layers.0.key"][0] // size,
        head_size=size,
        epsilon=_epsilon(source),
        base=base,
    )


def _positions(graph, size: int) -> tuple[int, float]:
    """Return the length of the table of rotations, and the base of their frequencies, read from its sines.

    The sine of a small angle is as precise as the angle; the slowest pair of features turns least.
    """
    for value in graph.parameters.values():
        if value.ndim == 2 and value.shape[1] == size and len(value) > 1 and not value[0].any() and size > 2:
            slowest = size // 2 - 1
            angle = float(np.arcsin(np.float64(value[1, slowest].item())))
            if 0 < angle < 1:
                return len(value), float(f"{angle ** (-size / (2 * slowest)):.5g}")
    raise ValueError(f"{_REFUSAL}: it has no table of the sines of its positions.")


def _epsilon(graph) -> float:
    means = {node.name for node in graph.nodes if node.operator == "aten.mean.dim"}
    for node in graph.nodes:
        if node.operator == "aten.add.Tensor" and getattr(node.arguments[0], "name", None) in means:
            return float(node.arguments[1])
    raise ValueError(f"{_REFUSAL}: it has no RMS norms.")


def _rotations(settings: Settings, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and sines float32 [length, size / 2]."""
    frequencies = settings.base ** (-np.arange(0, settings.head_size, 2, np.float64) / settings.head_size)
    angles = np.arange(length)[:, None] * frequencies
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _turned(features: np.ndarray, cosine: np.ndarray, sine: np.ndarray, pairs: str) -> np.ndarray:
    """Turn the pairs of features [..., t, size] by their positions' angles (Su et al. 2021)."""
    if pairs == "adjacent":
        first, second = features[..., ::2], features[..., 1::2]
    else:
        first, second = np.split(features, 2, axis=-1)
    # Products of queries with keys do not depend on the order of features.
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def _attention(settings, layer: dict, hidden: np.ndarray, cosine: np.ndarray, sine: np.ndarray, pairs: str):
    batch, length, _ = hidden.shape

    def by_head(part: str) -> np.ndarray:
        return (hidden @ layer[part].T).reshape(batch, length, -1, settings.head_size).swapaxes(1, 2)

    shared = settings.heads // settings.key_heads
    query = _turned(by_head("query"), cosine, sine, pairs)
    key = np.repeat(_turned(by_head("key"), cosine, sine, pairs), shared, axis=1)
    value = np.repeat(by_head("value"), shared, axis=1)
    scores = query @ key.swapaxes(-1, -2) / np.float32(np.sqrt(settings.head_size))
    scores = np.where(np.tri(length, dtype=bool), scores, np.float32(-np.inf))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ value
    return mixed.swapaxes(1, 2).reshape(batch, length, -1) @ layer["output"].T


def _normed(hidden: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    return hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + np.float32(epsilon)) * weight
