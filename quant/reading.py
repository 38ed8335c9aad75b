"""Reading files that nobody vouches for: what they hold is checked, and whatever is wrong becomes one sentence.

A saved graph names the functions that are called and becomes Python source text, here and in torch.fx, with the names
it has: none of them may say anything but a name. :func:`quant.execution.resolve` says which functions there are.
"""

import keyword
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch

from quant.nodes import Graph, Node, Parameter, references
from quant.scheme import CODEBOOK_FORMATS, NumberFormat

_NAME = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)
_LONGEST_REASON = 200
_SCALES = ("float32", "float16", "float8_e4m3fn", "float8_e8m0fnu", None)
_CODEBOOKS = ("learned", None, *(format.codebook for format in CODEBOOK_FORMATS.values()))


@contextmanager
def readable(what: str, remedy: str, refusal: type[Exception] = ValueError) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into a ``refusal``: "``what`` (the reason): ``remedy``."."""
    try:
        yield
    except Exception as error:  # each library has its own
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise refusal(f"{what} ({reason[:_LONGEST_REASON].rstrip('.')}): {remedy}.") from error


def checked_graph(graph: Graph) -> Graph:
    """Return ``graph`` if its names are names and each value is made before it is read.

    Raises:
        ValueError: one is not; the sentence names it.
    """
    made: set[str] = set()
    for name in graph.inputs:
        _require(_is_word(name) and name not in made, f"{name!r} cannot be an input of a graph")
        made.add(name)
    for node in graph.nodes:
        _check_node(node, made)
        made.add(node.name)
    unknown = [name for name in graph.outputs if name not in made]
    _require(not unknown, f"the output {next(iter(unknown), None)!r} is made by no node")
    unknown = [name for name in graph.inputs if not isinstance(graph.shapes.get(name), list)]
    _require(not unknown, f"the input {next(iter(unknown), None)!r} has no shape")
    unknown = [name for name, shape in graph.shapes.items() if not (shape is None or _is_shape(shape))]
    _require(not unknown, f"the shape of {next(iter(unknown), None)!r} is none")
    _require(len(graph.dynamic_axes) == len(graph.inputs), "its inputs and their axes of variable size do not match")
    return graph


def require_parameters(graph: Graph, known: Collection[str]) -> None:
    """Raise a ValueError unless every parameter that ``graph`` takes is ``known``."""
    for node in graph.nodes:
        for reference in references((node.arguments, tuple(node.keywords.values()))):
            missing = isinstance(reference, Parameter) and reference.name not in known
            _require(not missing, f"the parameter {reference.name!r} is missing")


def torch_constant(name: str, kind: type) -> object:
    """Return what torch has by this name, if it is of a kind that has no effects, such as ``torch.dtype``.

    Raises:
        ValueError: it is not.
    """
    found = getattr(torch, name, None)
    _require(isinstance(found, kind), f"{name!r} is no {kind.__name__} of torch")
    return found


def format_from_json(entry: Mapping[str, object]) -> NumberFormat:
    """Return the format whose fields are ``entry``.

    Raises:
        ValueError: there is no such format.
    """
    format = NumberFormat(**entry)
    grouped = format.granularity == "group"
    sensible = (
        type(format.bits) is int
        and 1 <= format.bits <= 8
        and type(format.symmetric) is bool
        and format.granularity in ("tensor", "channel", "group", "token")
        and (type(format.group_size) is int and format.group_size > 0 if grouped else True)
        and format.scale_dtype in _SCALES
        and format.codebook in _CODEBOOKS
    )
    _require(sensible, f"there is no number format {dict(entry)}")
    return format


def _check_node(node: Node, made: Collection[str]) -> None:
    _require(isinstance(node.name, str) and _NAME.fullmatch(node.name), f"{node.name!r} cannot be the name of a node")
    _require(node.name not in made, f"two values are called {node.name!r}")
    _require(isinstance(node.operator, str), f"the node {node.name!r} calls no operator")
    for key in node.keywords:
        _require(_is_word(key), f"{key!r} cannot be an argument of the node {node.name!r}")
    for reference in references((node.arguments, tuple(node.keywords.values()))):
        name = reference.name
        if isinstance(reference, Parameter):
            # It is written between quotation marks where it is no identifier.
            plain = isinstance(name, str) and name.isprintable() and not set(name) & {'"', "\\"}
            _require(plain and all(name.split(".")), f"{name!r} cannot be the name of a parameter")
        else:
            _require(name in made, f"the node {node.name!r} reads {name!r} before it is made")


def _is_shape(shape: object) -> bool:
    return isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)


def _is_word(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)


def _require(holds: object, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)
