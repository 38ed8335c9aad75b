"""The torch backend's artefact: a folder with ``graph.json``, ``model.safetensors`` and ``config.json``. No pickles.

Codes of up to 7 bits are packed without gaps, scales have their storage type. A loaded model has no float original of
its quantized parameters: their place in the graph is taken by tensors without storage.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from quant.graph import ActivationQuantizer, FloatGraph, QuantizedModel
from quant.reading import format_from_json, readable, require_parameters, torch_constant
from quant.scheme import Scheme
from quant.storage import activation_from_json, graph_from_json, graph_to_json
from quant.tensor import QuantizedTensor, pack, restored, stored_parts, unpack

_WEIGHT_PARTS = ("scale", "shared_scale", "codebook")
_QUANTIZER_PARTS = ("scale", "zero_point", "input_scale")


def write(
    quantized: QuantizedModel, folder: Path, native: tuple[str, str] | None = None, omit: Iterable[str] = ()
) -> None:
    """Write the ``forward`` graph of ``quantized`` and its tables into ``folder``.

    ``native`` names method and bits of the runtime's own quantizer, which keeps the parameters to ``omit`` elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, value in quantized.graph.parameters.items():
        if name not in quantized.weights and name not in omit:
            tensors[f"parameter/{name}"] = quantized.floats.get(name, value)
    for name, weight in quantized.weights.items():
        tensors |= {f"{part}/{name}": value for part, value in _weight_parts(weight)}
    activations = []
    for index, (edge, quantizer) in enumerate(quantized.activations.items()):
        format = asdict(quantizer.format) if quantizer.format else None
        activations.append({"edge": edge, "mode": quantizer.mode, "format": format})
        parts = {part: getattr(quantizer, part) for part in _QUANTIZER_PARTS}
        tensors |= {f"activation/{index}/{part}": value for part, value in parts.items() if value is not None}
    examples = quantized.graph.examples["forward"]
    config = {
        "scheme": {"name": quantized.scheme.name, "family": quantized.scheme.family},
        "float_dtype": quantized.scheme.float_dtype,
        "examples": [{"dtype": str(value.dtype).removeprefix("torch."), "shape": value.shape} for value in examples],
        "weights": {name: _describe(weight) for name, weight in quantized.weights.items()},
        "activations": activations,
        "native": native,
        "omitted": {name: quantized.graph.parameters[name].shape for name in omit},
    }
    save_file(
        {name: value.detach().contiguous().clone() for name, value in tensors.items()}, folder / "model.safetensors"
    )
    (folder / "graph.json").write_text(json.dumps(graph_to_json(quantized.graph.graphs["forward"])))
    (folder / "config.json").write_text(json.dumps(config))


def read(folder: Path) -> tuple[QuantizedModel, tuple[str, str] | None]:
    """Return the model that :func:`write` wrote, and method and bits of the runtime's own quantizer if it was one.

    Raises:
        ValueError: a file is missing or damaged.
    """
    with readable(f"{folder} holds no readable torch artefact", "compile the model again"):
        graph = graph_from_json(json.loads((folder / "graph.json").read_text()))
        config = json.loads((folder / "config.json").read_text())
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        weights = {name: _weight(name, entry, tensors) for name, entry in config["weights"].items()}
        activations = dict(_activation(i, entry, tensors) for i, entry in enumerate(config["activations"]))
        examples = tuple(_without_storage(entry["shape"], entry["dtype"]) for entry in config["examples"])
        torch_constant(config["float_dtype"], torch.dtype)
        scheme = Scheme(**config["scheme"], float_dtype=config["float_dtype"])
        start = len("parameter/")
        parameters = {name[start:]: value for name, value in tensors.items() if name.startswith("parameter/")}
        shapes = {**config["omitted"], **{name: weight.codes.shape for name, weight in weights.items()}}
        parameters |= {name: _without_storage(shape, "float32") for name, shape in shapes.items()}
        require_parameters(graph, parameters)
        floats = FloatGraph({"forward": graph}, parameters, {"forward": examples})
        native = tuple(config["native"]) if config["native"] else None
        return QuantizedModel(floats, scheme, weights, activations=activations), native


def _describe(weight: QuantizedTensor) -> dict:
    return {"format": asdict(weight.format), "block": weight.block, "shape": weight.codes.shape}


def _weight_parts(weight: QuantizedTensor) -> Iterator[tuple[str, Tensor]]:
    yield "codes", _packed(weight.codes, weight.format.bits)
    yield from stored_parts(weight).items()
    if weight.zero_point is not None:
        yield "zero_point", _packed(weight.zero_point, weight.format.bits)


def _packed(codes: Tensor, bits: int) -> Tensor:
    return codes if bits == 8 else pack(codes, bits)


def _unpacked(stored: Tensor, bits: int, shape: tuple[int, ...], signed: bool) -> Tensor:
    if bits < 8:
        return unpack(stored, bits, tuple(shape), signed)
    if list(stored.shape) != list(shape):
        raise ValueError(f"codes have shape {list(stored.shape)} instead of {list(shape)}.")
    return stored


def _weight(name: str, entry: dict, tensors: dict[str, Tensor]) -> QuantizedTensor:
    format, shape = format_from_json(entry["format"]), tuple(entry["shape"])
    codes = _unpacked(tensors[f"codes/{name}"], format.bits, shape, format.signed)
    parts = {part: tensors[f"{part}/{name}"] for part in _WEIGHT_PARTS if f"{part}/{name}" in tensors}
    zero_point = tensors.get(f"zero_point/{name}")
    if zero_point is not None:
        zero_point = _unpacked(zero_point, format.bits, tuple(parts["scale"].shape), signed=False)
    return restored(codes, parts, zero_point, entry["block"], format)


def _activation(index: int, entry: dict, tensors: dict[str, Tensor]) -> tuple[tuple, ActivationQuantizer]:
    parts = {part: tensors.get(f"activation/{index}/{part}") for part in _QUANTIZER_PARTS}
    return activation_from_json(entry, parts)


def _without_storage(shape: list[int], dtype: str) -> Tensor:
    return torch.empty(tuple(shape), dtype=torch_constant(dtype, torch.dtype), device="meta")
