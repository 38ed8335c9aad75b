"""Apple's mlx-lm: rounding to nearest and GPTQ of the linear layers, with its own defaults.

It takes modules of MLX alone, so the encoder is written as one. Three of its quantizers have no case. The search of its
AWQ did not end within 25 minutes on a processor's one core. DWQ trains scales on the logits of a language model, one
distribution for each next token, and an encoder has none; the mixed bits of ``dynamic_quant`` are chosen by the same
divergence, and are not one number for all layers.
"""

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.child import Outputs, Subject, with_parameters
from benchmarks.peers._encoder import MASKED, Encoder, mx, nn

from mlx_lm.quant.gptq import gptq_quantize  # isort: skip
from mlx_lm.utils import quantize_model  # isort: skip

PACKAGES = {"mlx_lm": "pip install mlx-lm", "mlx": "pip install 'mlx[cpu]'"}
DISTRIBUTION = "mlx-lm"
VARIANTS = {
    "lm_rtn": {"bits": "int4_g128", "quantizer": "_round"},
    "lm_gptq": {"bits": "int4_g128", "quantizer": "_compensate"},
}


def prepare(subject: Subject) -> Callable[[], Outputs]:
    quantizer = globals()[VARIANTS[subject.job.method]["quantizer"]]
    encoder, format = Encoder(subject.graph.parameters), subject.scheme.linear
    parts = [np.where(mask.numpy(), ids.numpy(), MASKED) for ids, mask in subject.calibration]
    tokens = mx.array(np.concatenate(parts), mx.int32)
    mx.eval(encoder.parameters(), tokens)

    def work() -> Outputs:
        quantizer(encoder, tokens, {"bits": format.bits, "group_size": format.group_size})
        mx.eval(encoder.parameters())
        return with_parameters(subject.graph, lambda: _dequantized(encoder))

    return work


def _round(encoder: Encoder, tokens: mx.array, grid: dict[str, int]) -> None:
    quantize_model(encoder, {}, **grid)


def _compensate(encoder: Encoder, tokens: mx.array, grid: dict[str, int]) -> None:
    gptq_quantize(encoder, tokens, **grid, fallback_bits=grid["bits"], fallback_group_size=grid["group_size"])


def _dequantized(encoder: Encoder) -> dict[str, torch.Tensor]:
    """Return the weights of the quantized layers."""
    found = {}
    for name, layer in encoder.named_modules():
        if isinstance(layer, nn.QuantizedLinear):
            parts = (layer.weight, layer.scales, layer.biases)
            found[f"{name}.weight"] = mx.dequantize(*parts, layer.group_size, layer.bits)
    return {name: torch.from_numpy(np.array(value)) for name, value in found.items()}
