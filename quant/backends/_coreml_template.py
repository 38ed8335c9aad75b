"""Converting a float graph to Core ML once, with a checked map from its names to those of the saved program.

Names do not survive conversion by themselves. A parameter is found by its content; an operator by the weight it takes,
or else by its name; and an argument counts only if the saved program, run on the example inputs, computes the same
value there. What is not found is left out of the map, and a table entry for it is then an error.
"""

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx

from quant.backends import _coreml_recurrent as recurrent
from quant.backends._coreml_package import NAMES, PACKAGE, Package, coremltools, input_name, quiet, shape_of
from quant.backends.coreml_evaluator import Evaluator
from quant.execution import resolve
from quant.graph import FloatGraph
from quant.nodes import QUANTIZABLE, Graph, Node, Parameter, Value, map_references, references
from quant.recurrent import traced_as_one

# Passes that merge parameters with each other or compute with them: the tables could no longer be spliced in.
_PASSES_OVER_PARAMETERS = {
    "common::const_deduplication",
    "common::fuse_conv_batchnorm",
    "common::fuse_conv_bias",
    "common::fuse_conv_scale",
    "common::fuse_elementwise_to_batchnorm",
    "common::fuse_linear_bias",
    "common::fuse_matmul_weight_bias",
}
_DATA_INPUTS = {
    "add": ("x", "y"),
    "avg_pool": ("x",),
    "conv": ("x",),
    "conv_transpose": ("x",),
    "linear": ("x",),
    "lstm": ("x",),
    "matmul": ("x", "y"),
    "mul": ("x", "y"),
    "reduce_mean": ("x",),
    "scaled_dot_product_attention": ("query", "key", "value"),
}
_WEIGHT_INPUTS = {"conv": "weight", "conv_transpose": "weight", "gather": "x", "linear": "weight"}
_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_LARGEST_SIZE = 1024  # of an axis without a bound of its own; Core ML wants one
_SMALLEST_HALF = 2.0**-24
_TOLERANCE = {"float32": 1e-4, "float16": 2e-2}


def write_template(graph: FloatGraph, folder: Path, precision: str) -> None:
    """Write the float model and its map of names into ``folder``; ``precision`` is float32 or float16.

    Raises:
        ValueError: coremltools cannot convert the graph, or the reference evaluator does not know an operator of it.
    """
    _convert(graph, folder / PACKAGE, precision)
    (folder / NAMES).write_text("{}")
    package = Package(folder)
    _bound_sizes(package, graph)
    source = graph.graphs["forward"]
    constants, derived = _find_constants(graph, package, precision)
    operators = _find_operators(graph, package, constants)
    description = package.model.description
    names = {
        "precision": precision,
        "weights_sha256": graph.weights_sha256,
        "parameters": graph.parameter_count,
        "inputs": [value.name for value in description.input],
        "outputs": [value.name for value in description.output],
        "constants": constants,
        "derived": derived,
        "edges": _find_edges(graph, package, operators, precision),
        "macs": {
            operator.outputs[0].name: graph.macs("forward", source.by_name[node])
            for node, operator in operators.items()
        },
    }
    package.save(folder, names)


def edge_key(node: str, position: int | str) -> str:
    """Return how the map calls one argument of one node."""
    return f"{node}/{position}"


def constant_values(graph: Graph, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the results of the nodes that depend on ``parameters`` alone: a converter computes them beforehand."""
    values: dict[str, Tensor] = {}

    def fetch(reference: Value | Parameter) -> Tensor:
        return parameters[reference.name] if isinstance(reference, Parameter) else values[reference.name]

    for node in graph.nodes:
        taken = list(references((node.arguments, tuple(node.keywords.values()))))
        if taken and all(isinstance(reference, Parameter) or reference.name in values for reference in taken):
            keywords = {key: map_references(value, fetch) for key, value in node.keywords.items()}
            values[node.name] = resolve(node.operator)(*map_references(node.arguments, fetch), **keywords)
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _convert(graph: FloatGraph, package: Path, precision: str) -> None:
    converter = coremltools()
    recurrent.register()
    importlib.import_module("quant.backends._coreml_conversions").register()  # coremltools is loud when imported
    pipeline = converter.PassPipeline.DEFAULT
    pipeline.remove_passes(_PASSES_OVER_PARAMETERS)
    units = {"float32": converter.precision.FLOAT32, "float16": converter.precision.FLOAT16}
    program = graph.export("forward")
    try:
        with quiet(), traced_as_one():
            model = converter.convert(
                program,
                minimum_deployment_target=converter.target.iOS18,
                compute_precision=units[precision],
                pass_pipeline=pipeline,
                skip_model_load=True,
            )
    except (NotImplementedError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        node = graph.graphs["forward"].named_in(reason)
        where = f"{node.operator!r} ({node.place})" if node else "this model"
        raise ValueError(f"coremltools cannot convert {where}: {reason}") from error
    model.save(str(package))


def _bound_sizes(package: Package, graph: FloatGraph) -> None:
    """Declare the sizes the inputs may have: torch.export starts them at two and leaves some without an end.

    The default, which the Neural Engine is said to want, is that of one sample.
    """
    for value, example in zip(package.model.description.input, graph.examples["forward"], strict=True):
        array = value.type.multiArrayType
        ranges = array.shapeRange.sizeRanges
        batch = 1 if ranges and ranges[0].lowerBound != ranges[0].upperBound else example.shape[0]
        del array.shape[:]
        array.shape.extend([batch, *example.shape[1:]])
        for bounds in array.shapeRange.sizeRanges:
            if bounds.lowerBound != bounds.upperBound:
                bounds.lowerBound = 1
                bounds.upperBound = min(bounds.upperBound, _LARGEST_SIZE)


def _find_constants(graph: FloatGraph, package: Package, precision: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the constant of each float parameter, and of each value computed from parameters alone."""
    stored, by_content = {}, {}
    for name, operation in package.constants.items():
        array = package.array(operation.attributes["val"])
        if array is not None:
            stored[name] = array.reshape(shape_of(operation.outputs[0].type))
            by_content.setdefault(_digest(stored[name]), []).append(name)

    def find(name: str, value: Tensor) -> str | None:
        # Parameters may be equal, as norms often are: the converter's spelling of the name decides before the content.
        spelled = name.replace(".", "_")
        named = [constant for constant in stored if constant.removesuffix("_to_fp16").endswith(spelled)]
        for constant in sorted(named, key=len):
            if _same(stored[constant], value):
                return constant
        alike = by_content.get(_digest(value.to(_DTYPES[precision]).contiguous().numpy()), [])
        return alike[0] if len(alike) == 1 else None

    in_gate_order = recurrent.weights_in_gate_order(graph)
    parameters = {
        name: recurrent.reordered(value) if name in in_gate_order else value for name, value in graph.parameters.items()
    }
    derived = constant_values(graph.graphs["forward"], graph.parameters)
    return _found(find, parameters), _found(find, derived)


def _found(find: Callable[[str, Tensor], str | None], values: dict[str, Tensor]) -> dict[str, str]:
    pairs = ((name, find(name, value)) for name, value in values.items() if value.is_floating_point())
    return {name: constant for name, constant in pairs if constant is not None}


def _same(stored: np.ndarray, value: Tensor) -> bool:
    if stored.shape != tuple(value.shape):
        return False
    if stored.dtype == np.float32:
        return np.array_equal(stored, value.numpy())
    # coremltools raises values below the smallest half to it.
    return np.allclose(stored, value.half().numpy(), rtol=0, atol=_SMALLEST_HALF)


def _digest(array: np.ndarray) -> bytes:
    return hashlib.blake2b(array.tobytes(), key=str((array.dtype, array.shape)).encode()[:64]).digest()


def _find_operators(graph: FloatGraph, package: Package, constants: dict[str, str]) -> dict[str, object]:
    """Return the operation of each node that the tables can name or that multiplies and accumulates."""
    source = graph.graphs["forward"]
    by_output = {output.name: operation for operation in package.operations for output in operation.outputs}
    by_weight: dict[str, list] = {}
    for operation in package.operations:
        weight = input_name(operation, _WEIGHT_INPUTS.get(operation.type))
        if weight is not None:
            by_weight.setdefault(weight, []).append(operation)
    found = {}
    for node in source.nodes:
        parameter = _weight(node)
        if parameter in constants:
            consumers = [edge[1] for edge in graph.consumers(parameter)]
            candidates = by_weight.get(constants[parameter], [])
            if len(candidates) == len(consumers):
                found[node.name] = candidates[consumers.index(node.name)]
        else:
            spellings = (node.name, f"{node.name}_cast_fp16", f"{node.name}_0", f"{node.name}_cast_fp16_0")
            operation = next((by_output[name] for name in spellings if name in by_output), None)
            if operation is not None and operation.type in _DATA_INPUTS:
                found[node.name] = operation
    return found


def _weight(node: Node) -> str | None:
    operator = QUANTIZABLE.get(node.operator)
    weight = node.arguments[operator.weight] if operator else None
    return weight.name if isinstance(weight, Parameter) else None


def _find_edges(
    graph: FloatGraph, package: Package, operators: dict[str, object], precision: str
) -> dict[str, tuple[str, str]]:
    """Return for each argument the operation (by its output) and input of the program that take the same value."""
    keys = {node: _DATA_INPUTS.get(operation.type, ()) for node, operation in operators.items()}
    wanted = {input_name(operators[node], key) for node in operators for key in keys[node]}
    computed = _program_values(graph, package, wanted)
    intended = _graph_values(graph)
    found = {}
    for node, operation in operators.items():
        for position, argument in enumerate(graph.graphs["forward"].by_name[node].arguments):
            if not isinstance(argument, Value) or not isinstance(intended.get(argument.name), Tensor):
                continue
            # An addition may have its operands exchanged.
            for key in sorted(keys[node], key=lambda key, position=position: keys[node].index(key) != position):
                value = computed.get(input_name(operation, key))
                if value is not None and _close(value, intended[argument.name], _TOLERANCE[precision]):
                    found[edge_key(node, position)] = (operation.outputs[0].name, key)
                    break
    return found


def _program_values(graph: FloatGraph, package: Package, wanted: set[str]) -> dict[str, Tensor]:
    evaluator = Evaluator(package.folder)
    return evaluator(dict(zip(evaluator.inputs, graph.examples["forward"], strict=True)), keep=wanted)


def _graph_values(graph: FloatGraph) -> dict[str, Tensor]:
    values = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            values[node.name] = super().run_node(node)
            return values[node.name]

    with torch.inference_mode():
        Recorder(graph.module("forward"), garbage_collect_values=False).run(*graph.examples["forward"])
    # torch.fx gives inputs other names where theirs mean something in Python, as "input" does.
    return values | dict(zip(graph.graphs["forward"].inputs, graph.examples["forward"], strict=True))


def _close(value: Tensor, intended: Tensor, tolerance: float) -> bool:
    if value.shape != intended.shape or not intended.is_floating_point() or not intended.numel():
        return False
    largest = torch.nan_to_num(intended, 0, 0, 0).abs().max().item()
    return torch.allclose(value.float(), intended.float(), rtol=tolerance, atol=tolerance * max(largest, 1e-30))
