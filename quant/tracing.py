"""Capturing a torch module as a :class:`~quant.graph.FloatGraph`.

The module is exported with torch.export, batch norms are folded into the convolutions before them, LSTMs are taken
apart into their layers, parameters that share storage become one, and operators that compute nothing disappear.
"""

import re
from collections import Counter
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from quant.execution import build_module, export, operator_name, trace
from quant.graph import FloatGraph
from quant.nodes import Graph, Node, Parameter, Value, map_references, references, transposed_groups
from quant.recurrent import one_layer_each

_IDENTITIES = {
    "aten.alias.default",
    "aten.clone.default",
    "aten.detach.default",
    "aten.dropout.default",
    "aten.lift_fresh_copy.default",
}
_ASSERTIONS = {
    "aten._assert_tensor_metadata.default",
    "aten._assert_scalar.default",
    "aten.sym_constrain_range_for_size.default",
}
_SPELLINGS = {
    f"aten.__{word}__.{form}": f"aten.bitwise_{word}.{form}"
    for word in ("and", "or", "xor")
    for form in ("Tensor", "Scalar")
}
"""Operators of Python's ``&``, ``|`` and ``^``, and what they are called everywhere else."""
_PADDED_BY_WORD = {
    f"aten.conv{rank}d.padding": (None, None, None, (1,) * rank, "valid", (1,) * rank, 1) for rank in (1, 2)
}
"""Convolutions whose padding is "same" or "valid", with the defaults of their arguments."""
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = str(Path(torch.__file__).parent)
_POOLINGS = {f"aten.{kind}_pool{rank}d.default" for kind in ("avg", "max") for rank in (1, 2)}
_BATCH_NORM = {"aten._native_batch_norm_legit_no_training.default", "aten.batch_norm.default"}
_CONVOLUTIONS = {
    "aten.conv1d.default",
    "aten.conv2d.default",
    "aten.conv_transpose1d.default",
    "aten.conv_transpose2d.input",
    "aten.convolution.default",
}


def capture(
    module: nn.Module, examples: tuple[Tensor, ...], dynamic_axes: tuple[dict[int, str], ...] | None = None
) -> FloatGraph:
    """Return ``module``, in eval mode, as a float graph with one entry point ``forward``.

    Args:
        examples: one tensor per argument of ``forward``, with a batch of at least two, so that no size looks constant.
        dynamic_axes: for each argument the axes of variable size and their names; axis 0 is the batch by default.

    Raises:
        ValueError: the module is in training mode, or an example has one of what varies along its first axis.
    """
    if module.training:
        raise ValueError("the module is in training mode: call .eval() before capturing it.")
    dynamic_axes = dynamic_axes or tuple({0: "batch"} for _ in examples)
    pairs = zip(examples, dynamic_axes, strict=True)
    if any(0 in axes and example.ndim and example.shape[0] < 2 for example, axes in pairs):
        raise ValueError("examples need a batch of at least two, or torch.export fixes the batch to one.")
    graph, parameters = _read(export(module, examples, dynamic_axes), dynamic_axes)
    written, parameters = _fold_batch_norms(one_layer_each(graph), parameters)
    # Exported once more, because folding may leave what a second export simplifies: names must then be stable.
    graph, parameters = _read(trace(build_module(written, parameters), examples, dynamic_axes), dynamic_axes)
    return FloatGraph({"forward": _with_sources_of(graph, written)}, parameters, {"forward": examples})


def _read(
    program: torch.export.ExportedProgram, dynamic_axes: tuple[dict[int, str], ...]
) -> tuple[Graph, dict[str, Tensor]]:
    parameters, references = _parameters(program)
    inputs = []
    for specification in program.graph_signature.input_specs:
        if specification.arg.name not in references:
            inputs.append(specification.arg.name)
            references[specification.arg.name] = Value(specification.arg.name)
    nodes, shapes, counts = [], {}, Counter()

    def convert(argument: object) -> object:
        if isinstance(argument, fx.Node):
            return references.get(argument.name)
        if isinstance(argument, list | tuple):
            return tuple(convert(item) for item in argument)
        plain = argument is None or isinstance(argument, bool | int | float | str | torch.dtype | torch.memory_format)
        return argument if plain else None

    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in inputs:
                shapes[node.name] = _shape(node)
            continue
        if node.op != "call_function":
            continue
        operator = operator_name(node.target)
        operator = _SPELLINGS.get(operator, operator)
        if operator in _ASSERTIONS:
            continue
        if operator in _IDENTITIES and not node.kwargs.get("memory_format"):
            references[node.name] = convert(node.args[0])
            continue
        short = operator.split(".")[1].strip("_")
        name = f"{short}_{counts[short]}"
        counts[short] += 1
        keywords = {key: convert(value) for key, value in node.kwargs.items() if key not in ("device", "layout")}
        keywords = {key: value for key, value in keywords.items() if value is not None}
        made = Node(name, operator, convert(node.args), keywords, _source(node))
        nodes.append(_with_explicit_stride(_with_explicit_padding(made, parameters)))
        references[node.name] = Value(name)
        shapes[name] = _shape(node)
    outputs = tuple(references[specification.arg.name].name for specification in program.graph_signature.output_specs)
    graph = _without_dead_nodes(Graph(tuple(inputs), tuple(nodes), outputs, dynamic_axes, shapes))
    used = {name for node in graph.nodes for name in _parameter_names(node)}
    return graph, {name: value for name, value in parameters.items() if name in used}


def _with_explicit_padding(node: Node, parameters: dict[str, Tensor]) -> Node:
    """Return a convolution padded by word as one padded by numbers, where both sides are padded alike."""
    if node.operator not in _PADDED_BY_WORD or not isinstance(node.arguments[1], Parameter):
        return node
    kernel = parameters[node.arguments[1].name].shape[2:]
    *arguments, padding, dilation, groups = (*node.arguments, *_PADDED_BY_WORD[node.operator][len(node.arguments) :])
    reaches = dilation * len(kernel) if len(dilation) == 1 else dilation
    totals = [reach * (size - 1) if padding == "same" else 0 for size, reach in zip(kernel, reaches, strict=True)]
    if any(total % 2 for total in totals):
        return node
    arguments = (*arguments, tuple(total // 2 for total in totals), dilation, groups)
    return replace(node, operator=node.operator.replace(".padding", ".default"), arguments=arguments)


def _with_explicit_stride(node: Node) -> Node:
    """Return a pooling that steps by its kernel's size, as it does where no stride is given, as one that says so."""
    if node.operator in _POOLINGS and len(node.arguments) == 2:
        return replace(node, arguments=(*node.arguments, node.arguments[1]))
    return node


def _parameters(program: torch.export.ExportedProgram) -> tuple[dict[str, Tensor], dict[str, Parameter]]:
    """Return the parameters by canonical name, and which one each placeholder of the program refers to."""
    parameters: dict[str, Tensor] = {}
    references: dict[str, Parameter] = {}
    by_storage: dict[tuple, str] = {}
    for specification in program.graph_signature.input_specs:
        if specification.target is None:
            continue
        source = program.state_dict if specification.target in program.state_dict else program.constants
        value = source[specification.target].detach()
        storage = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
        name = by_storage.setdefault(storage, specification.target) if value.numel() else specification.target
        parameters[name] = value.contiguous()
        references[specification.arg.name] = Parameter(name)
    return parameters, references


def _fold_batch_norms(graph: Graph, parameters: dict[str, Tensor]) -> tuple[Graph, dict[str, Tensor]]:
    """Fold each batch norm that alone follows a convolution into its weight and bias, in float64."""
    parameters, nodes, replaced = dict(parameters), {node.name: node for node in graph.nodes}, {}
    uses = _uses(graph)
    for node in graph.nodes:
        if node.operator not in _BATCH_NORM or not isinstance(node.arguments[0], Value):
            continue
        convolution = nodes.get(node.arguments[0].name)
        if convolution is None or convolution.operator not in _CONVOLUTIONS:
            continue
        weight_name = convolution.arguments[1].name
        bias_name = f"{weight_name.rpartition('.')[0]}.bias".lstrip(".")
        own = (Value(convolution.name), *references(convolution.arguments[1:3]))
        taken = bias_name in parameters and Parameter(bias_name) not in own
        if taken or not isinstance(own[1], Parameter) or any(uses[one] > 1 for one in own):
            continue  # something else would see what was folded
        weight, bias = _folded(convolution, node, parameters)
        parameters |= {weight_name: weight, bias_name: bias}
        rest = convolution.arguments[3:]
        arguments = (convolution.arguments[0], Parameter(weight_name), Parameter(bias_name), *rest)
        nodes[convolution.name] = replace(convolution, arguments=arguments)
        if node.operator == "aten.batch_norm.default":
            replaced[node.name] = Value(convolution.name)
        for getter, _ in graph.users(node.name):
            if getter.operator == "_operator.getitem" and getter.arguments[1] == 0:
                replaced[getter.name] = Value(convolution.name)

    def follow(reference: Value | Parameter) -> Value | Parameter:
        return replaced.get(reference.name, reference) if isinstance(reference, Value) else reference

    rewritten = tuple(
        replace(
            node,
            arguments=map_references(node.arguments, follow),
            keywords={key: map_references(value, follow) for key, value in node.keywords.items()},
        )
        for node in nodes.values()
    )
    outputs = tuple(follow(Value(name)).name for name in graph.outputs)
    return _without_dead_nodes(Graph(graph.inputs, rewritten, outputs, graph.dynamic_axes, graph.shapes)), parameters


def _uses(graph: Graph) -> Counter[Value | Parameter]:
    """Count how often each value and parameter is taken: by a node, alone or in a list, or as an output."""
    taken = (each for node in graph.nodes for each in references((node.arguments, tuple(node.keywords.values()))))
    return Counter(taken) + Counter(map(Value, graph.outputs))


def _folded(convolution: Node, norm: Node, parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    legit = norm.operator != "aten.batch_norm.default"
    epsilon = norm.arguments[6] if legit else norm.arguments[7]
    gamma, beta, mean, variance = (
        None if reference is None else parameters[reference.name].double() for reference in norm.arguments[1:5]
    )
    factor = (variance + epsilon).rsqrt() * (1.0 if gamma is None else gamma)
    weight = parameters[convolution.arguments[1].name].double()
    has_bias = len(convolution.arguments) > 2 and convolution.arguments[2] is not None
    bias = parameters[convolution.arguments[2].name].double() if has_bias else torch.zeros_like(mean)
    groups = transposed_groups(convolution)
    if groups is None:
        scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    else:
        per_group = factor.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
        scaled = (weight.reshape(groups, -1, *weight.shape[1:]) * per_group).reshape(weight.shape)
    shifted = (bias - mean) * factor + (0.0 if beta is None else beta)
    return scaled.float(), shifted.float()


def _without_dead_nodes(graph: Graph) -> Graph:
    needed, kept = set(graph.outputs), []

    def need(reference: Value | Parameter) -> Value | Parameter:
        needed.add(reference.name)
        return reference

    for node in reversed(graph.nodes):
        if node.name in needed:
            kept.append(node)
            map_references((node.arguments, tuple(node.keywords.values())), need)
    nodes = tuple(reversed(kept))
    names = {*graph.inputs, *(node.name for node in nodes)}
    shapes = {name: shape for name, shape in graph.shapes.items() if name in names}
    return Graph(graph.inputs, nodes, graph.outputs, graph.dynamic_axes, shapes)


def _parameter_names(node: Node) -> list[str]:
    found = []
    map_references(
        (node.arguments, tuple(node.keywords.values())),
        lambda reference: found.append(reference.name) if isinstance(reference, Parameter) else None,
    )
    return found


def _source(node: fx.Node) -> str | None:
    """Return the innermost line outside of torch that made the call, as ``model.py:12``."""
    lines = [line for line in _FRAME.findall(node.meta.get("stack_trace") or "") if not line[0].startswith(_TORCH)]
    return "{}:{}".format(*lines[-1]) if lines else None


def _with_sources_of(graph: Graph, written: Graph) -> Graph:
    """Return ``graph`` with the sources of the calls it was exported from, which are the same but for a few."""
    operators = ([node.operator for node in either.nodes] for either in (written, graph))
    sources = {}
    for first, second, count in SequenceMatcher(None, *operators, autojunk=False).get_matching_blocks():
        pairs = zip(written.nodes[first : first + count], graph.nodes[second : second + count], strict=True)
        sources |= {node.name: original.source for original, node in pairs}
    nodes = tuple(replace(node, source=sources.get(node.name)) for node in graph.nodes)
    return replace(graph, nodes=nodes)


def _shape(node: fx.Node) -> list[int] | None:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    return [int(size) if isinstance(size, int) else size.node.hint for size in value.shape]
