"""HQQ's own library: half-quadratic quantization of the linear layers, without data."""

from collections.abc import Callable

import torch
from hqq.core.quantize import Quantizer

from benchmarks.child import Outputs, Subject, linear_layers, with_parameters

PACKAGES = {"hqq": "pip install hqq"}
VARIANTS = {"hqq": {"bits": "int4_g128"}}


def prepare(subject: Subject) -> Callable[[], Outputs]:
    format, layers = subject.scheme.linear, dict(linear_layers(subject.module))
    settings = {"nbits": format.bits, "group_size": format.group_size, "axis": 1}

    def work() -> Outputs:
        made = {
            name: Quantizer.quantize(layer.weight.data, **settings, compute_dtype=torch.float32, device="cpu")
            for name, layer in layers.items()
        }
        return with_parameters(subject.graph, lambda: _dequantized(made))

    return work


def _dequantized(made: dict[str, tuple[torch.Tensor, dict]]) -> dict[str, torch.Tensor]:
    return {name: Quantizer.dequantize(codes, meta) for name, (codes, meta) in made.items()}
