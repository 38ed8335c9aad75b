"""Graphs as torch modules: running them, exporting them, and naming what they call."""

import importlib
import inspect
import operator as python_operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from quant.attention import Attention
from quant.nodes import Graph, Parameter, Value, map_references
from quant.recurrent import SteppedLSTM, traced_as_one

Edit = Callable[[Tensor], Tensor]

_ARITHMETIC = {
    *("abs", "add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "le", "lshift", "lt", "mod", "mul"),
    *("ne", "neg", "not_", "or_", "pos", "pow", "rshift", "sub", "truediv", "xor"),
}
"""What is done with sizes. Of Python's operators others call whatever they are given."""
_FILE_ARGUMENTS = {"filename", "file_name", "path"}


def build_module(
    source: Graph, parameters: dict[str, Tensor], edges: dict[tuple[str, int | str], Edit] | None = None
) -> fx.GraphModule:
    """Return a graph as a torch module over ``parameters``; its state dict has their names.

    ``edges`` maps (node, position) to a function applied to that argument; where arguments take one value through the
    same function it is computed once. At the position ``h`` of an LSTM it is applied before every step, at ``p`` of an
    attention to its probabilities.
    """
    root, target = nn.Module(), fx.Graph()
    values = {name: target.create_node("placeholder", name, name=name) for name in source.inputs}
    fetched: dict[str, fx.Node] = {}
    edited: dict[tuple[str, int], fx.Node] = {}

    def fetch(reference: Value | Parameter) -> fx.Node:
        if isinstance(reference, Value):
            return values[reference.name]
        if reference.name not in fetched:
            _assign(root, reference.name, parameters[reference.name])
            fetched[reference.name] = target.get_attr(reference.name)
        return fetched[reference.name]

    def edit(value: str, function: Edit) -> fx.Node:
        if (value, id(function)) not in edited:
            name = f"edge_{len(edited)}"
            root.add_module(name, _Call(function))
            edited[value, id(function)] = target.call_module(name, (values[value],))
        return edited[value, id(function)]

    for node in source.nodes:
        arguments = list(map_references(node.arguments, fetch))
        for position, argument in enumerate(node.arguments):
            if edges and (node.name, position) in edges:
                arguments[position] = edit(argument.name, edges[node.name, position])
        if edges and (node.name, "x") in edges:
            arguments[0] = edit(node.arguments[0].name, edges[node.name, "x"])
        if edges and (node.name, "h") in edges:
            name = f"recurrence_{node.name}"
            root.add_module(name, SteppedLSTM(edges[node.name, "h"]))
            values[node.name] = target.create_node("call_module", name, tuple(arguments), name=node.name)
            continue
        keywords = {key: map_references(value, fetch) for key, value in node.keywords.items()}
        if edges and (node.name, "p") in edges:
            name = f"attention_{node.name}"
            root.add_module(name, Attention(edges[node.name, "p"]))
            values[node.name] = target.create_node("call_module", name, tuple(arguments), keywords, name=node.name)
            continue
        function = resolve(node.operator)
        values[node.name] = target.create_node("call_function", function, tuple(arguments), keywords, name=node.name)
    target.output(tuple(values[name] for name in source.outputs))
    return fx.GraphModule(root, target).eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on a single thread, and restore the number of threads afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resolve(operator: str) -> Callable:
    """Return the function an operator's name stands for.

    Names come from files: nothing they stand for may do anything but compute.

    Raises:
        ValueError: the name is neither a torch operator nor arithmetic on sizes.
    """
    namespace, _, rest = operator.partition(".")
    if namespace == "_operator" and rest in _ARITHMETIC:
        return getattr(python_operator, rest)
    if namespace == "math" and rest in ("ceil", "floor", "trunc", "sqrt", "pow"):
        return getattr(importlib.import_module("math"), rest)
    if namespace == "torch" and rest.startswith("sym_") and hasattr(torch, rest):
        return getattr(torch, rest)
    name, _, overload = rest.partition(".")
    try:
        found = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    except (AttributeError, RuntimeError):
        found = None
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"unknown operator {operator!r}: this torch ({torch.__version__}) does not have it.")
    if any(argument.name in _FILE_ARGUMENTS and "str" in str(argument.type) for argument in found._schema.arguments):
        raise ValueError(f"the operator {operator!r} opens files, which no model may do.")
    return found


def export(
    module: nn.Module, examples: tuple[Tensor, ...], dynamic_axes: tuple[dict[int, str], ...]
) -> torch.export.ExportedProgram:
    """Return ``module`` exported with composite operators kept whole, and sizes of ``dynamic_axes`` left open."""
    program = trace(module, examples, dynamic_axes)
    with _exporting():
        return program.run_decompositions({torch.ops.aten.diff.default: _difference})


def trace(
    module: nn.Module, examples: tuple[Tensor, ...], dynamic_axes: tuple[dict[int, str], ...]
) -> torch.export.ExportedProgram:
    """Return what :func:`export` does, far sooner, of a module built of a graph that was exported before."""
    dynamic = tuple(dict.fromkeys(axes, torch.export.Dim.AUTO) for axes in dynamic_axes)
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        dynamic = (*dynamic[:named], dynamic[named:])
    with _exporting():
        program = torch.export.export(module, examples, dynamic_shapes=dynamic, strict=False)
    program.graph.eliminate_dead_code()  # such as outputs of an LSTM that nobody takes
    return program


@contextmanager
def _exporting() -> Iterator[None]:
    with torch.no_grad(), traced_as_one(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        yield


def _difference(
    values: Tensor, times: int = 1, axis: int = -1, prepend: Tensor | None = None, append: Tensor | None = None
) -> Tensor:
    """``torch.diff`` in operators that runtimes have; Llama's masks use it."""
    given = [part for part in (prepend, values, append) if part is not None]
    values = torch.cat(given, axis) if len(given) > 1 else values
    for _ in range(times):
        later, earlier = torch.ops.aten.slice(values, axis, 1), torch.ops.aten.slice(values, axis, 0, -1)
        values = later ^ earlier if values.dtype == torch.bool else later - earlier
    return values


def rename(program: torch.export.ExportedProgram, graph: Graph) -> torch.export.ExportedProgram:
    """Give the nodes of ``program`` the names they have in ``graph``, after checking that the operators agree."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    if [operator_name(node.target) for node in calls] != [node.operator for node in graph.nodes]:
        raise RuntimeError("exporting the graph again changed its operators; please report this model.")
    new_names = {}
    for call, node in zip(calls, graph.nodes, strict=True):
        new_names[call.name] = node.name
        call.name = node.name  # _rename() would append numbers to names that other nodes had before
    for specification in program.graph_signature.output_specs:
        specification.arg.name = new_names.get(specification.arg.name, specification.arg.name)
    return program


def operator_name(target: object) -> str:
    """Return the name of what an exported node calls, as :func:`resolve` reads it."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    module = getattr(target, "__module__", "torch")
    return f"{'torch' if module.startswith('torch') else module}.{target.__name__}"


def _assign(root: nn.Module, name: str, value: Tensor) -> None:
    """Register ``value`` under a dotted ``name``, so that a state dict of ``root`` has canonical names."""
    *path, last = name.split(".")
    module = root
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    if value.is_floating_point():
        module.register_parameter(last, nn.Parameter(value.detach(), requires_grad=False))
    else:
        module.register_buffer(last, value)


class _Call(nn.Module):
    """A plain function as a module, so that generated code can hold it."""

    def __init__(self, function: Edit) -> None:
        super().__init__()
        self.function = function

    def forward(self, value: Tensor) -> Tensor:
        return self.function(value)
