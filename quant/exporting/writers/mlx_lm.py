"""The folder that mlx-lm loads, for Llama-like decoders: ``config.json`` and weights under mlx-lm's names.

Quantized weights are ``weight``, ``scales`` and ``biases`` in MLX's packing. The folder has no tokenizer: mlx-lm's
``load_model`` takes it as it is, and ``load`` and ``generate`` once the model's tokenizer files lie beside it.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quant.exporting import Layout

ARTIFACT = "mlx_lm"
BACKEND = None
REQUIRES = {"mlx": "pip install 'mlx[cpu]'"}

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_PARTS = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "feed_forward_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_OUTER = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_SETTINGS = {
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "hidden": "intermediate_size",
    "heads": "num_attention_heads",
    "key_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "epsilon": "rms_norm_eps",
    "base": "rope_theta",
}


def write(quantized, built: None, artifact: Path) -> None:
    """Write the folder.

    Raises:
        ValueError: the model is no Llama, activations are quantized, or MLX's packing cannot express a weight.
    """
    from safetensors.torch import save_file

    from quant.exporting.llama import recognize

    if quantized.activations:
        raise ValueError("mlx-lm runs no quantized activations: use weight-only tables, such as int4.")
    llama = recognize(quantized.graph)
    tensors, packings = {}, {}
    for role, name in llama.parameters.items():
        module = _module(role)
        if name in quantized.weights:
            packings[module], stored = _packed(module, name, quantized.weights[name])
            tensors |= stored
        else:
            tensors[f"{module}.weight"] = _real(quantized.floats.get(name, quantized.graph.parameters[name]))
    config = {
        "model_type": "llama",
        **{_SETTINGS[key]: value for key, value in llama.settings.as_dict().items()},
        "rope_traditional": False,
        "tie_word_embeddings": "head" not in llama.parameters,
    }
    if packings:
        # What most modules have stands for all; the others follow by name.
        usual = max(packings.values(), key=list(packings.values()).count)
        config["quantization"] = usual | {module: own for module, own in packings.items() if own != usual}
    artifact.mkdir()
    save_file({name: value.contiguous() for name, value in tensors.items()}, artifact / _WEIGHTS, {"format": "mlx"})
    (artifact / _CONFIG).write_text(json.dumps(config, indent=1))


def load(artifact: Path):
    """Load the folder into functions of ``mlx.core`` alone, in float32."""
    import mlx.core as mx

    from quant.exporting.llama import Settings

    config, arrays = json.loads((artifact / _CONFIG).read_text()), mx.load(str(artifact / _WEIGHTS))
    settings = Settings(**{name: config[key] for name, key in _SETTINGS.items()})
    packing = config.get("quantization", {})
    head = "embedding" if config["tie_word_embeddings"] else "head"

    def parts(module: str) -> list:
        return [arrays[f"{module}.{part}"] for part in ("weight", "scales", "biases") if f"{module}.{part}" in arrays]

    def own(module: str) -> dict:
        chosen = packing.get(module, packing)
        return {key: chosen[key] for key in ("group_size", "bits", "mode")}

    def real(values: list) -> list:
        return [value.astype(mx.float32) if mx.issubdtype(value.dtype, mx.floating) else value for value in values]

    def linear(x, role: str):
        weight, *rest = real(parts(_module(role)))
        if not rest:
            return x @ weight.T
        return mx.quantized_matmul(x, weight, *rest, transpose=True, **own(_module(role)))

    def embedded(tokens):
        weight, *rest = parts(_module("embedding"))
        rows = real([weight[tokens], *(part[tokens] for part in rest)])
        return rows[0] if not rest else mx.dequantize(*rows, **own(_module("embedding")))

    def normed(x, role: str):
        return mx.fast.rms_norm(x, real(parts(_module(role)))[0], settings.epsilon)

    def attended(x, layer: str):
        def by_head(part: str):
            return linear(x, f"{layer}.{part}").reshape(*x.shape[:2], -1, settings.head_size).swapaxes(1, 2)

        def turned(features):
            size = settings.head_size
            return mx.fast.rope(features, size, traditional=False, base=settings.base, scale=1.0, offset=0)

        query, key, value = turned(by_head("query")), turned(by_head("key")), by_head("value")
        scale = settings.head_size**-0.5
        mixed = mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask="causal")
        return linear(mixed.swapaxes(1, 2).flatten(2), f"{layer}.output")

    def function(tokens: np.ndarray) -> list[np.ndarray]:
        hidden = embedded(mx.array(tokens))
        for layer in (f"layers.{index}" for index in range(settings.layers)):
            hidden = hidden + attended(normed(hidden, f"{layer}.attention_norm"), layer)
            inner = normed(hidden, f"{layer}.feed_forward_norm")
            gate = linear(inner, f"{layer}.gate")
            hidden = hidden + linear(gate * mx.sigmoid(gate) * linear(inner, f"{layer}.up"), f"{layer}.down")
        return [np.array(linear(normed(hidden, "norm"), head))]

    return function


def version() -> str:
    from importlib.metadata import version

    return f"mlx {version('mlx')}"


def codes(artifact: Path, layouts: Mapping[str, Layout]) -> dict[str, np.ndarray]:
    from safetensors import safe_open

    from quant.exporting.llama import roles_of
    from quant.exporting.streams import packed_codes

    modules = {name: _module(role) for role, name in roles_of(layouts).items()}
    with safe_open(artifact / _WEIGHTS, framework="pt") as file:
        return {
            name: packed_codes(file.get_tensor(f"{modules[name]}.weight"), layout) for name, layout in layouts.items()
        }


def _module(role: str) -> str:
    if role in _OUTER:
        return _OUTER[role]
    _, index, part = role.split(".")
    return f"model.layers.{index}.{_PARTS[part]}"


def _packed(module: str, name: str, weight) -> tuple[dict, dict]:
    from quant.backends._mlx_weights import encode, packing_of

    mode = packing_of(weight)
    if mode is None:
        raise ValueError(f"MLX's packing cannot express {name!r}, {weight.format}: use groups of 32, 64 or 128.")
    entry, stored = encode(f"{module}.weight", weight, ())
    if "shared" in entry["tensors"]:
        raise ValueError(f"mlx-lm knows no scale that all of {name!r} share, as {mode} tables may have: use mxfp4.")
    return {"group_size": weight.block[1], "bits": weight.format.bits, "mode": mode}, stored


def _real(value):
    """Return a float parameter in half precision where that is exact."""
    half = value.half()
    return half if bool((half.float() == value.float()).all()) else value.float()
