"""Float graphs and quantized models as folders of JSON and safetensors. Nothing is pickled: loading runs nothing."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from quant.graph import ActivationQuantizer, Edge, FloatGraph, QuantizedModel
from quant.nodes import Graph, Node, Parameter, Value
from quant.reading import checked_graph, format_from_json, readable, require_parameters, torch_constant
from quant.scheme import Scheme
from quant.tensor import QuantizedTensor, pack, restored, stored_parts, unpack

_GRAPH, _PARAMETERS = "graph.json", "parameters.safetensors"
_WEIGHT_PARTS = ("scale", "shared_scale", "codebook")
_DECODERS = {
    "value": Value,
    "parameter": Parameter,
    "float": float,
    "dtype": lambda name: torch_constant(name, torch.dtype),
    "memory_format": lambda name: torch_constant(name, torch.memory_format),
}


def save_graph(graph: FloatGraph, folder: Path) -> None:
    """Write ``graph.json`` and ``parameters.safetensors`` into ``folder``."""
    document = {name: graph_to_json(entry) for name, entry in graph.graphs.items()}
    (folder / _GRAPH).write_text(json.dumps(document))
    examples = {f"example/{name}/{i}": value for name, group in graph.examples.items() for i, value in enumerate(group)}
    parameters = {f"parameter/{name}": value for name, value in graph.parameters.items()}
    save_file(_contiguous({**parameters, **examples}), folder / _PARAMETERS)


def load_graph(folder: Path) -> FloatGraph:
    """Read what :func:`save_graph` wrote.

    Raises:
        ValueError: a file is missing or damaged.
    """
    with readable(f"{folder} holds no readable graph", "capture the model again"):
        document = json.loads((folder / _GRAPH).read_text())
        graphs = {name: graph_from_json(entry) for name, entry in document.items()}
        tensors = _read_tensors(folder / _PARAMETERS)
        examples = {
            name: tuple(tensors[f"example/{name}/{i}"] for i in range(len(g.inputs))) for name, g in graphs.items()
        }
        parameters = {key[len("parameter/") :]: value for key, value in tensors.items() if key.startswith("parameter/")}
        for graph in graphs.values():
            require_parameters(graph, parameters)
        return FloatGraph(graphs, parameters, examples)


def save(quantized: QuantizedModel, folder: Path | str, with_graph: bool = False) -> None:
    """Write the tables into ``folder`` as ``tables.safetensors`` and ``recipe.json``.

    The float graph stays outside, unless it is wanted ``with_graph``: ``python -m quant export`` needs both.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if with_graph:
        save_graph(quantized.graph, folder)
    tensors: dict[str, Tensor] = {f"floats/{name}": value for name, value in quantized.floats.items()}
    weights, activations = {}, []
    for name, weight in quantized.weights.items():
        weights[name] = {"format": asdict(weight.format), "block": weight.block, "shape": list(weight.codes.shape)}
        tensors[f"codes/{name}"] = pack(weight.codes, weight.format.bits)
        tensors |= _present(f"weights/{name}", weight, ("zero_point",))
        tensors |= {f"weights/{name}/{part}": value for part, value in stored_parts(weight).items()}
    for index, (edge, quantizer) in enumerate(quantized.activations.items()):
        format = asdict(quantizer.format) if quantizer.format else None
        activations.append({"edge": edge, "mode": quantizer.mode, "format": format})
        tensors |= _present(f"activations/{index}", quantizer, ("scale", "zero_point", "input_scale"))
    recipe = {
        "scheme": asdict(quantized.scheme),
        "recipe": quantized.recipe,
        "weights_sha256": quantized.graph.weights_sha256,
        "weights": weights,
        "activations": activations,
    }
    save_file(_contiguous(tensors), folder / "tables.safetensors")
    (folder / "recipe.json").write_text(json.dumps(recipe))


def load(folder: Path | str, graph: FloatGraph | None = None) -> QuantizedModel:
    """Read the tables that :func:`save` wrote, for the float graph they were made from; by default the one beside them.

    Raises:
        ValueError: the tables were made from other weights, there is no graph, or a file is damaged.
    """
    folder = Path(folder)
    graph = graph or _graph_beside(folder)
    with readable(f"{folder} holds no readable quantized model", "quantize the model again"):
        recipe = json.loads((folder / "recipe.json").read_text())
        tensors = _read_tensors(folder / "tables.safetensors")
        weights_sha256 = recipe["weights_sha256"]
        weights = {name: _load_weight(name, entry, tensors) for name, entry in recipe["weights"].items()}
        activations = dict(_load_activation(i, entry, tensors) for i, entry in enumerate(recipe["activations"]))
        scheme, made = _scheme_from_json(recipe["scheme"]), dict(recipe["recipe"])
    if weights_sha256 != graph.weights_sha256:
        raise ValueError(f"{folder} was made from other weights than this graph's: quantize the model again.")
    floats = {key[len("floats/") :]: value for key, value in tensors.items() if key.startswith("floats/")}
    with readable(f"{folder} holds tables that do not fit this graph", "quantize the model again"):
        shapes = {name: weight.codes.shape for name, weight in weights.items()}
        shapes |= {name: value.shape for name, value in floats.items()}
        wrong = [name for name, shape in shapes.items() if shape != graph.parameters[name].shape]
        if wrong:
            raise ValueError(f"{wrong[0]!r} has another shape")
        return QuantizedModel(graph, scheme, weights, floats, activations, made)


def _graph_beside(folder: Path) -> FloatGraph:
    if not (folder / _GRAPH).is_file():
        raise ValueError(
            f"{folder} holds no float graph: save the model with quant.save(model, folder, with_graph=True)."
        )
    return load_graph(folder)


def graph_from_json(entry: dict) -> Graph:
    """Undo :func:`graph_to_json`.

    Raises:
        ValueError: a name, an order or a type that no graph has; damage may raise other errors, too.
    """
    nodes = tuple(
        Node(name, operator, _decode(arguments), {key: _decode(value) for key, value in keywords.items()})
        for name, operator, arguments, keywords in entry["nodes"]
    )
    dynamic_axes = tuple({int(axis): name for axis, name in axes.items()} for axes in entry["dynamic_axes"])
    return checked_graph(Graph(tuple(entry["inputs"]), nodes, tuple(entry["outputs"]), dynamic_axes, entry["shapes"]))


def graph_to_json(graph: Graph) -> dict:
    """Return the graph as plain JSON types."""
    nodes = [
        [node.name, node.operator, _encode(node.arguments), {key: _encode(v) for key, v in node.keywords.items()}]
        for node in graph.nodes
    ]
    return {
        "inputs": graph.inputs,
        "nodes": nodes,
        "outputs": graph.outputs,
        "dynamic_axes": graph.dynamic_axes,
        "shapes": graph.shapes,
    }


def activation_from_json(entry: dict, parts: dict[str, Tensor | None]) -> tuple[Edge, ActivationQuantizer]:
    """Return the quantizer of an edge from its mode, its format and the tensors ``scale``, ``zero_point`` and so on.

    Raises:
        ValueError: they do not fit each other.
    """
    graph, node, position = entry["edge"]
    mode, format = entry["mode"], format_from_json(entry["format"]) if entry["format"] else None
    asymmetric = mode == "static" and format is not None and not format.symmetric
    complete = {
        "static": format and parts["scale"] is not None and (parts["zero_point"] is not None or not asymmetric),
        "dynamic": format,
        "none": parts["input_scale"] is not None,
    }
    if not complete.get(mode):
        raise ValueError(f"the quantizer of {node!r} is not complete")
    return (graph, node, position), ActivationQuantizer(mode, format, **parts)


def _encode(argument: object) -> object:
    match argument:
        case tuple():
            return [_encode(item) for item in argument]
        case Value(name):
            return {"value": name}
        case Parameter(name):
            return {"parameter": name}
        case torch.dtype():
            return {"dtype": str(argument).removeprefix("torch.")}
        case torch.memory_format():
            return {"memory_format": str(argument).removeprefix("torch.")}
        case float() if argument in (float("inf"), float("-inf")):
            return {"float": str(argument)}
        case _:
            return argument


def _decode(item: object) -> object:
    if isinstance(item, list):
        return tuple(_decode(entry) for entry in item)
    if not isinstance(item, dict):
        return item
    ((kind, content),) = item.items()
    return _DECODERS[kind](content)


def _scheme_from_json(entry: dict) -> Scheme:
    formats = {
        key: format_from_json(entry[key]) if entry[key] else None for key in ("linear", "convolution", "activations")
    }
    return Scheme(**{**entry, **formats})


def _load_weight(name: str, entry: dict, tensors: dict[str, Tensor]) -> QuantizedTensor:
    format = format_from_json(entry["format"])
    codes = unpack(tensors[f"codes/{name}"], format.bits, entry["shape"], format.signed)
    prefix = f"weights/{name}/"
    parts = {part: tensors[prefix + part] for part in _WEIGHT_PARTS if prefix + part in tensors}
    return restored(codes, parts, tensors.get(f"{prefix}zero_point"), entry["block"], format)


def _load_activation(index: int, entry: dict, tensors: dict[str, Tensor]) -> tuple[Edge, ActivationQuantizer]:
    parts = {part: tensors.get(f"activations/{index}/{part}") for part in ("scale", "zero_point", "input_scale")}
    return activation_from_json(entry, parts)


def _present(prefix: str, holder: object, names: tuple[str, ...]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": getattr(holder, name) for name in names if getattr(holder, name) is not None}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous().clone() for name, value in tensors.items()}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
