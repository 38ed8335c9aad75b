"""The float graph as an ONNX model, made once per model, with a checked map of names.

The exporter renames what it calls. Every call of the float graph therefore carries its name as the stack trace, which
the exporter copies onto each ONNX node it makes of that call. A value enters the map only if running the ONNX model on
the example inputs gave what torch gives, a parameter only if its content is the same.
"""

import json
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.external_data import load_to_model
from onnxruntime import GraphOptimizationLevel
from onnxscript import optimizer
from torch import fx

from quant.backends import _onnx_coverage as coverage
from quant.backends import _onnx_keys as keys
from quant.backends import _onnx_recurrent as recurrent
from quant.backends._onnx_session import open_session, quiet
from quant.graph import FloatGraph
from quant.nodes import ATTENTION, Graph, Node
from quant.recurrent import traced_as_one

OPSET = 21
MODEL = "model.onnx"

_MAP = "map.json"
_OWNER = "quant.node"
_STACK_TRACE = "pkg.torch.onnx.stack_trace"
_TOLERANCE = 1e-3
_LARGEST_SINGLE_FILE = 2**31 - 2**24


@dataclass(frozen=True)
class Template:
    """The float model in ONNX.

    parameters  canonical parameter -> its initializer
    values      canonical value -> the ONNX value that holds it
    nodes       canonical node -> the ONNX nodes made of it, in order; None -> the others
    """

    model: ir.Model
    parameters: dict[str, ir.Value]
    values: dict[str, ir.Value]
    nodes: dict[str | None, list[ir.Node]]


def write(graph: FloatGraph, folder: Path) -> None:
    """Export ``forward`` of ``graph`` into ``folder`` as ``model.onnx``, its weights and ``map.json``.

    Raises:
        ValueError: the exporter does not know an operator of the graph; the sentence names its line.
        RuntimeError: the ONNX model computes something else than the graph.
    """
    source = graph.graphs["forward"]
    model = _export(graph)
    _clean(model, graph.parameters)
    _name(model, source, graph.parameters)
    keys.simplify(model, _attentions(model, source))
    candidates = _values_by_owner(model, source)
    model.metadata_props.clear()
    model.metadata_props[coverage.KEY] = coverage.describe(graph, None)
    ir.save(model, folder / MODEL, external_data=f"{MODEL}.data")
    values = _verified_values(graph, model, candidates, folder)
    parameters = _verified_parameters(graph, model)
    (folder / _MAP).write_text(json.dumps({"parameters": parameters, "values": values}))


def read(folder: Path) -> Template:
    """Read what :func:`write` wrote; weights stay on disk until they are needed."""
    model = ir.load(folder / MODEL)
    names = json.loads((folder / _MAP).read_text())
    produced = {value.name: value for value in model.graph.inputs}
    nodes: dict[str | None, list[ir.Node]] = {}
    for node in model.graph:
        produced |= {value.name: value for value in node.outputs}
        nodes.setdefault(_owner(node), []).append(node)
    parameters = {name: model.graph.initializers[initializer] for name, initializer in names["parameters"].items()}
    values = {name: produced[value] for name, value in names["values"].items()}
    return Template(model, parameters, values, nodes)


def save(model: ir.Model, folder: Path) -> None:
    """Write ``model`` into ``folder`` as one file, or with its weights beside it where protobuf's limit asks for it."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    if size > _LARGEST_SINGLE_FILE:
        ir.save(model, folder / MODEL, external_data=f"{MODEL}.data")
    else:
        ir.save(load_to_model(model), folder / MODEL)


def _export(graph: FloatGraph) -> ir.Model:
    program = graph.trace("forward")
    for node in program.graph.nodes:
        if node.op == "call_function":
            node.meta["stack_trace"] = node.name
    try:
        with quiet(), traced_as_one():
            exported = torch.onnx.export(program, (), dynamo=True, optimize=False, opset_version=OPSET, verbose=False)
    except torch.onnx.errors.OnnxExporterError as error:
        node = _failing(error, graph.graphs["forward"])
        where = f"{node.operator!r} ({node.place})" if node else "this model"
        raise ValueError(f"torch.onnx cannot export {where}: {_reason(error)}") from error
    return exported.model


def _failing(error: BaseException | None, graph: Graph) -> Node | None:
    """Return the call that the exporter was at: the errors hold frames, their frames the node, the node its name."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            node = frame.f_locals.get("node")
            if isinstance(node, fx.Node) and node.meta.get("stack_trace") in graph.by_name:
                return graph.by_name[node.meta["stack_trace"]]
        error = error.__cause__
    return None


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong at first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _clean(model: ir.Model, parameters: dict[str, torch.Tensor]) -> None:
    """Compute what is constant, parameters apart: the exporter writes bounds and shapes as chains of nodes."""

    def keep(node: ir.Node) -> bool | None:
        reads_parameter = any(value is not None and value.name in parameters for value in node.inputs)
        return False if reads_parameter else None

    optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=keep)
    # ONNX Runtime's own quantizers read constants only as initializers.
    ir.passes.common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    ir.passes.common.RemoveUnusedNodesPass()(model)


def _name(model: ir.Model, source: Graph, parameters: dict[str, torch.Tensor]) -> None:
    """Leave on every node the name of the call it belongs to, and name rearranged weights after the weights."""
    for node in model.graph:
        owner = node.metadata_props.get(_STACK_TRACE)
        node.metadata_props.clear()
        if owner in source.by_name:
            node.metadata_props[_OWNER] = owner
        if node.op_type == "Transpose" and node.inputs[0].name in parameters:
            node.outputs[0].name = f"{node.inputs[0].name}/transposed_by_{owner}"
        if node.op_type == "LSTM" and owner in source.by_name:
            recurrent.name_weights(node, source.by_name[owner])
    for value in model.graph.initializers.values():
        value.metadata_props.clear()


def _attentions(model: ir.Model, source: Graph) -> list[list[ir.Node]]:
    """Return, for each attention of the graph, the ONNX nodes that the exporter made of it."""
    found = {node.name: [] for node in source.nodes if node.operator == ATTENTION}
    for node in model.graph:
        if _owner(node) in found:
            found[_owner(node)].append(node)
    return list(found.values())


def _values_by_owner(model: ir.Model, source: Graph) -> dict[str, ir.Value]:
    """Return, for each tensor of the graph, the ONNX value that should hold it: the last that its call produces.

    A call with several results produces them side by side; each belongs to the getitem of its index.
    """
    found = {value.name: value for value in model.graph.inputs if value.name in source.inputs}
    produced: dict[str, list[ir.Value]] = {}
    for node in model.graph:
        owner = _owner(node)
        last = [value for value in node.outputs if all(_owner(user) != owner for user, _ in value.uses())]
        produced.setdefault(owner, []).extend(last)
    for node in source.nodes:
        results = produced.get(node.name)
        if node.operator == "_operator.getitem":
            results = produced.get(node.arguments[0].name, [])[: node.arguments[1] + 1]
        if results and source.shapes.get(node.name) is not None:
            found[node.name] = results[-1]
    return found


def _verified_values(
    graph: FloatGraph, model: ir.Model, candidates: dict[str, ir.Value], folder: Path
) -> dict[str, str]:
    """Return the names of the candidates that hold on the example inputs what torch computes."""
    outputs = [value.name for value in model.graph.outputs]
    names = list(dict.fromkeys([*outputs, *(value.name for value in candidates.values())]))
    results = dict(zip(names, _run_float(folder, names, graph.examples["forward"]), strict=True))
    expected = _torch_values(graph)
    for name, output in zip(graph.graphs["forward"].outputs, outputs, strict=True):
        if not _agrees(results[output], expected[name]):
            raise RuntimeError(f"the ONNX model computes another {name!r} than torch; please report this model.")
    return {name: value.name for name, value in candidates.items() if _agrees(results[value.name], expected[name])}


def _verified_parameters(graph: FloatGraph, model: ir.Model) -> dict[str, str]:
    names = {}
    for name, parameter in graph.parameters.items():
        initializer = model.graph.initializers.get(name)
        if initializer is not None and np.array_equal(initializer.const_value.numpy(), parameter.numpy()):
            names[name] = name
    return names


def _run_float(folder: Path, names: list[str], examples: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    """Return the values called ``names`` that the unoptimized template has on the example inputs."""
    model = ir.load(folder / MODEL)
    produced = {value.name: value for node in model.graph for value in node.outputs}
    produced |= {value.name: value for value in model.graph.inputs}
    inputs = [value.name for value in model.graph.inputs]
    model.graph.outputs[:] = [produced[name] for name in names if name not in inputs]
    probe = folder / f"probe.{MODEL}"
    try:
        ir.save(model, probe)
        session = open_session(probe, graph_optimization_level=GraphOptimizationLevel.ORT_DISABLE_ALL)
        feeds = {name: example.numpy() for name, example in zip(inputs, examples, strict=True)}
        results = {**feeds, **dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))}
    finally:
        probe.unlink(missing_ok=True)
    return [results[name] for name in names]


def _torch_values(graph: FloatGraph) -> dict[str, np.ndarray]:
    """Return every tensor of ``forward`` on the example inputs."""
    source, values = graph.graphs["forward"], {}
    names = iter([*source.inputs, *(node.name for node in source.nodes)])

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            result = super().run_node(node)
            if node.op in ("placeholder", "call_function"):
                name = next(names)
                if isinstance(result, torch.Tensor):
                    values[name] = result.numpy()
            return result

    with torch.inference_mode():
        Recorder(graph.module()).run(*graph.examples["forward"])
    return values


def _owner(node: ir.Node) -> str | None:
    return node.metadata_props.get(_OWNER)


def _agrees(result: np.ndarray, expected: np.ndarray) -> bool:
    if result.shape != expected.shape:
        return False
    if expected.dtype.kind != "f":
        return np.array_equal(result, expected)
    finite = np.abs(expected[np.isfinite(expected)])
    return np.allclose(result, expected, rtol=_TOLERANCE, atol=_TOLERANCE * finite.max(initial=0), equal_nan=True)
