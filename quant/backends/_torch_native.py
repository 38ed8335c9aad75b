"""torchao's quantizers on the linear layers of a float graph, kept as torchao's own tensors from compiling to running.

torchao stores its tensors in safetensors files by itself; nothing is pickled. Its int4 codes take a byte each on a CPU.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from quant.graph import FloatGraph
from quant.reading import readable

RUNS_ON_INTEGERS = {("native_dynamic", "int8")}
"""What torchao multiplies in integers; its weight-only tensors turn into float at every call."""

_FILE = "torchao.safetensors"
_PREFIX = "model."
_GROUP_SIZE = 32


def quantize(graph: FloatGraph, method: str, bits: str) -> dict[str, Tensor]:
    """Return torchao's tensors for the weights of linear layers; what an embedding shares stays float."""
    with _quiet():
        from torchao.quantization import quantize_
    configuration = _configuration(method, bits)
    quantized = {}
    for name, consumers in graph.quantizable().items():
        if any(operator.kind != "linear" for _, operator in consumers):
            continue
        outputs, inputs = graph.parameters[name].shape
        layer = nn.Linear(inputs, outputs, bias=False, device="meta")
        layer.weight = nn.Parameter(graph.parameters[name], requires_grad=False)
        quantize_(layer, configuration)
        quantized[name] = layer.weight
    return quantized


def save(tensors: dict[str, Tensor], folder: Path) -> None:
    with _quiet():
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    parts, metadata = flatten_tensor_state_dict({_PREFIX + name: tensor for name, tensor in tensors.items()})
    save_file({name: part.contiguous() for name, part in parts.items()}, folder / _FILE, metadata=metadata)


def load(folder: Path) -> dict[str, Tensor]:
    """Return the tensors that :func:`save` wrote.

    Raises:
        ValueError: the file is missing or damaged.
    """
    with _quiet():
        from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict
    with readable(f"{folder} holds no readable torchao tensors", "compile the model again"):
        with safe_open(folder / _FILE, framework="pt") as file:
            parts, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        tensors, _ = unflatten_tensor_state_dict(parts, metadata)
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}


def _configuration(method: str, bits: str) -> object:
    with _quiet():
        from torchao import quantization
    match method, bits:
        case "native_dynamic", "int8":
            return quantization.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
        case "native", "int8":
            return quantization.Int8WeightOnlyConfig(set_inductor_config=False)
        case "native", "int4":
            groups = quantization.PerGroup(_GROUP_SIZE)
            return quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=groups)
    raise ValueError(
        f"torchao has no quantizer here for {method} {bits}: use native int8, native int4 or dynamic int8."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torchao from reporting, while it is imported, the GPU libraries that a CPU does not need."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
