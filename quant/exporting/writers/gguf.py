"""GGUF for Llama-like decoders, as llama.cpp reads it: tables become Q8_0, Q4_0 or Q4_1 with the very codes they hold.

The rows of queries and keys are permuted so that the two features of a pair which rotary positions turn lie side by
side, as the format asks. The file has no tokenizer.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quant.exporting import Layout

ARTIFACT = "model.gguf"
BACKEND = None
READ_BY = "a reader of this package, in numpy"

_NAMES = "quant.parameters"
_PARTS = {
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_OUTER = {"embedding": "token_embd", "norm": "output_norm", "head": "output"}
_SETTINGS = {
    "vocabulary": "llama.vocab_size",
    "context": "llama.context_length",
    "layers": "llama.block_count",
    "width": "llama.embedding_length",
    "hidden": "llama.feed_forward_length",
    "heads": "llama.attention.head_count",
    "key_heads": "llama.attention.head_count_kv",
    "head_size": "llama.rope.dimension_count",
    "epsilon": "llama.attention.layer_norm_rms_epsilon",
    "base": "llama.rope.freq_base",
}
_MOSTLY = {0: 0, 1: 1, 2: 2, 3: 3, 8: 7}
"""The number that says which type most tensors have, by that type."""


def write(quantized, built: None, artifact: Path) -> None:
    """Write the file.

    Raises:
        ValueError: the model is no Llama, activations are quantized, or a weight has blocks that no type holds.
    """
    from quant.exporting import gguf_file
    from quant.exporting.llama import recognize

    if quantized.activations:
        raise ValueError("GGUF holds no quantized activations: use weight-only tables, such as int4.")
    llama = recognize(quantized.graph)
    heads = {"query": llama.settings.heads, "key": llama.settings.key_heads}
    names = {role: _tensor_name(role) for role in llama.parameters}
    tensors = {
        names[role]: _tensor(quantized, name, heads.get(role.rpartition(".")[2]))
        for role, name in llama.parameters.items()
    }
    types = [tensors[names[role]].type for role in llama.parameters if role.endswith(".query")]
    metadata = {
        "general.architecture": "llama",
        "general.file_type": _MOSTLY[max(set(types), key=types.count)],
        "general.quantization_version": 2,
        **{_SETTINGS[key]: value for key, value in llama.settings.as_dict().items()},
        "tokenizer.ggml.model": "no_vocab",
        _NAMES: json.dumps({name: names[role] for role, name in llama.parameters.items()}),
    }
    gguf_file.write(artifact, metadata, tensors)


def load(artifact: Path):
    from quant.exporting import gguf_file
    from quant.exporting.llama import Settings, logits

    metadata, tensors = gguf_file.read(artifact)
    settings = Settings(**{name: metadata[key] for name, key in _SETTINGS.items()})

    def weights(role: str) -> np.ndarray:
        return gguf_file.dequantized(tensors[_tensor_name(role)])

    function = logits(settings, weights, _tensor_name("head") in tensors, pairs="adjacent")
    return lambda tokens: [function(tokens)]


def version() -> str:
    return READ_BY


def codes(artifact: Path, layouts: Mapping[str, Layout]) -> dict[str, np.ndarray]:
    from quant.exporting import gguf_file
    from quant.exporting.llama import halves

    metadata, tensors = gguf_file.read(artifact)
    heads = {"attn_q": metadata[_SETTINGS["heads"]], "attn_k": metadata[_SETTINGS["key_heads"]]}
    names, found = json.loads(metadata[_NAMES]), {}
    for name in layouts:
        codes, part = gguf_file.codes_of(tensors[names[name]]), names[name].split(".")[-2]
        found[name] = halves(codes, heads[part]) if part in heads else codes
    return found


def _tensor_name(role: str) -> str:
    if role in _OUTER:
        return f"{_OUTER[role]}.weight"
    _, index, part = role.split(".")
    return f"blk.{index}.{_PARTS[part]}.weight"


def _tensor(quantized, name: str, heads: int | None):
    """Return a parameter as a tensor of the file; the rows of ``heads`` have their pairs side by side."""
    from quant.exporting import gguf_file
    from quant.exporting.llama import adjacent

    def rows(values) -> np.ndarray:
        return values.numpy() if heads is None else adjacent(values.numpy(), heads)

    if name not in quantized.weights:
        value = quantized.floats.get(name, quantized.graph.parameters[name])
        half = value.dtype.itemsize == 2 and value.ndim > 1
        kept = rows(value.half() if half else value.float())
        return gguf_file.Tensor(gguf_file.F16 if half else gguf_file.F32, kept.shape, kept)
    weight = quantized.weights[name]
    kind = _type(name, weight)
    codes, scale = rows(weight.codes), rows(weight.scale)
    if kind == gguf_file.Q8_0:
        data = gguf_file.pack_q8_0(codes, scale)
    elif kind == gguf_file.Q4_0:
        data = gguf_file.pack_q4_0(codes, scale)
    else:
        data = gguf_file.pack_q4_1(codes, scale, rows(-weight.zero_point.float() * weight.scale))
    return gguf_file.Tensor(kind, codes.shape, data)


def _type(name: str, weight) -> int:
    """Return the type that holds a weight exactly.

    Raises:
        ValueError: there is none.
    """
    from quant.exporting import gguf_file

    format = weight.format
    types = {(8, True): gguf_file.Q8_0, (4, True): gguf_file.Q4_0, (4, False): gguf_file.Q4_1}
    whole = weight.block == (1, gguf_file.BLOCK) and weight.codes.shape[1] % gguf_file.BLOCK == 0
    if format.codebook or not whole or (format.bits, format.symmetric) not in types:
        raise ValueError(
            f"GGUF holds codes in groups of 32, as int8_sym, int4_sym and int4 make them, and {name!r} is {format}."
        )
    if weight.zero_point is not None:
        minimum = weight.zero_point.float() * weight.scale
        if not bool((minimum.half().float() == minimum).all()):
            raise ValueError(f"a minimum of {name!r} is not exact in half precision: use int4_sym.")
    return types[format.bits, format.symmetric]
