"""Where products of 8-bit codes overflow: x86 without VNNI, and libraries that are kept from using it.

Without VNNI (VPDPBUSD, four products in 32 bits) kernels for u8 activations and s8 weights use VPMADDUBSW, which adds
two products in 16 bits and saturates: 2 x 255 x 127 does not fit, 2 x 255 x 64 does. So weights of seven bits are exact
everywhere. Environment variables that cap a library have the same effect on a processor that could do better.
"""

import os
from collections.abc import Mapping

from quant.hardware._parts import Processor

EXACT_EVERYWHERE = 64
"""The largest weight code of which no pair of products saturates."""

_CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
_ONEDNN = _CAPS[:2]
_UNCAPPED = ("", "ALL", "DEFAULT")
_ONEDNN_WITHOUT_VNNI = ("SSE41", "AVX", "AVX2", "AVX512_CORE")


def caps(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment variables that keep torch's libraries from instructions, with what they allow."""
    given = {name: variables.get(name, "").upper() for name in _CAPS}
    return {name: value for name, value in given.items() if value not in _UNCAPPED}


def saturates(processor: Processor) -> bool:
    """Return whether kernels for u8 activations and s8 weights add products in 16 bits, where two may be too much."""
    return processor.has("avx2") and not processor.has("avx512vnni", "avxvnni", "amxint8")


def warning(processor: Processor, variables: Mapping[str, str] = os.environ) -> str | None:
    """Return a sentence on what saturates here and what to do about it, or None."""
    if saturates(processor):
        return (
            "This processor has no VNNI, so int8 kernels add products in 16 bits, which saturate: 8-bit weights "
            "(`int8`) lose accuracy or speed there, those of 7 bits (`int8_reduced`) neither."
        )
    found = {name: value for name, value in caps(variables).items() if name in _ONEDNN}
    lacking = [f"{name}={value}" for name, value in found.items() if value in _ONEDNN_WITHOUT_VNNI]
    if lacking and processor.has("avx2"):
        return (
            f"{lacking[0]} keeps oneDNN from VNNI, so torch's int8 kernels saturate in 16 bits: they are not used for "
            "8-bit weights (`int8`), which run in float, but for those of 7 bits (`int8_reduced`)."
        )
    return None
