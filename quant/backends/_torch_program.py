"""Straight-line Python made of calls, so that running a graph costs hardly more than its operators."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from quant.nodes import Value, references


class Call(NamedTuple):
    """``output = function(*arguments, **keywords)``; arguments are nested tuples of values and constants."""

    output: str
    function: Callable
    arguments: tuple
    keywords: dict[str, object]


def assemble(inputs: Sequence[str], calls: Sequence[Call], outputs: Sequence[str]) -> Callable[..., tuple]:
    """Return the function of ``inputs`` that makes the calls in order; a value is dropped after its last use.

    Names of values never reach the source text: they come from files.
    """
    source = _Source()
    header = ", ".join(source.variable(name) for name in inputs)
    dropped = _last_uses(inputs, calls, outputs)
    lines = []
    for index, call in enumerate(calls):
        arguments = [source.render(item) for item in call.arguments]
        arguments += [f"{key}={source.render(item)}" for key, item in call.keywords.items()]
        lines.append(f"{source.variable(call.output)} = {source.constant(call.function)}({', '.join(arguments)})")
        lines += [f"del {source.variable(name)}" for name in dropped.get(index, ())]
    lines.append(f"return {source.render(tuple(Value(name) for name in outputs))}")
    text = "\n    ".join([f"def forward({header}):", *lines])
    exec(compile(text, "<graph>", "exec"), source.constants)  # composed here, of generated names only
    return source.constants["forward"]


class _Source:
    """Names for values and constants of a generated function; constants are its globals."""

    def __init__(self) -> None:
        self.constants: dict[str, object] = {}
        self.variables: dict[str, str] = {}

    def variable(self, name: str) -> str:
        return self.variables.setdefault(name, f"v{len(self.variables)}")

    def constant(self, value: object) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def render(self, item: object) -> str:
        if isinstance(item, Value):
            return self.variables[item.name]
        if isinstance(item, tuple) and any(True for _ in references(item)):
            return f"({', '.join(self.render(part) for part in item)},)"
        return self.constant(item)


def _last_uses(inputs: Sequence[str], calls: Sequence[Call], outputs: Sequence[str]) -> dict[int, list[str]]:
    """Return, for each call, the values that nothing needs after it."""
    last = {call.output: index for index, call in enumerate(calls)}
    for index, call in enumerate(calls):
        for reference in references((call.arguments, tuple(call.keywords.values()))):
            last[reference.name] = index
    dropped: dict[int, list[str]] = {}
    for name, index in last.items():
        if name not in outputs and name not in inputs:
            dropped.setdefault(index, []).append(name)
    return dropped
