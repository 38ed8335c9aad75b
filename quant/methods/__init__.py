"""Quantization methods: one algorithm per file, found by file name.

A method's file starts with a literal ``METHODS`` that is read without importing it: method name -> family, bits words
it offers, the ``core`` ones among them, whether it needs calibration data, whether it trains, and the settings of that
variant. Its ``quantize`` fills the tables of a float graph and knows no runtime.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from quant.progress import reporting
from quant.registry import Entry, find, modules, scan
from quant.scheme import Family, Granularity, bits_per_weight, parse

if TYPE_CHECKING:
    from quant.calibrate import Batch
    from quant.graph import FloatGraph, QuantizedModel
    from quant.training import Training


@dataclass(frozen=True)
class Method:
    """One method of the matrix.

    ``core`` holds the bits words that a run without any selection includes. ``native`` methods are a backend's own and
    have no tables; nor have cascades, whose tables are those of the method that answers ``first``. Methods that
    ``train`` take what a model is trained on, :class:`quant.training.Training`, and where there is nothing of the kind
    learn from the float model's outputs on the calibration data.
    """

    name: str
    family: Family
    bits: tuple[str, ...]
    entry: Entry
    core: tuple[str, ...] = ()
    calibrates: bool = False
    trains: bool = False
    native: bool = False
    first: str | None = None
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def chooses(self) -> bool:
        """Whether it chooses formats within a number of bits per weight."""
        return any(bits_per_weight(word) is not None for word in self.bits)

    @property
    def has_tables(self) -> bool:
        """Whether it makes tables of its own."""
        return not self.native and self.first is None


@functools.cache
def methods() -> dict[str, Method]:
    """Return all methods by name, without importing any.

    Raises:
        ValueError: what a file offers cannot be understood; the sentence names the file and the remedy.
    """
    return methods_of(Path(__file__).parent, __name__)


def methods_of(folder: Path, package: str) -> dict[str, Method]:
    """Return the methods that the files of a folder offer; raises as :func:`methods`."""
    entries, found = scan(folder, package), {}
    for path in modules(folder):
        offered = entries[path.stem].constants.get("METHODS") if path.stem in entries else None
        if not isinstance(offered, dict):
            raise ValueError(
                f"{path} has no literal METHODS: begin it with "
                f'METHODS = {{"{path.stem}": {{"family": "weight_only", "bits": ("int8", "int4")}}}}, or its name with '
                "an underscore where it offers no method."
            )
        for name, facts in offered.items():
            if name in found:
                raise ValueError(f"{path}: {found[name].entry.path.name} offers {name!r} already: choose another name.")
            try:
                found[name] = _checked(Method(name, entry=entries[path.stem], **facts))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, METHODS[{name!r}]: {_said(error)}") from None
    return found


def _checked(offered: Method) -> Method:
    if not offered.name.isidentifier():
        raise ValueError("a method's name is a part of the names of cases: write it as a word, with underscores.")
    if not isinstance(offered.bits, tuple):
        raise ValueError(f'bits is {offered.bits!r}: write a tuple of words, such as ("int4",).')
    for word in offered.bits:
        parse(word, offered.family)
    if not set(offered.core) <= set(offered.bits):
        raise ValueError(f"core is {offered.core!r}: write those of its bits that a run without a selection includes.")
    return offered


def _said(error: Exception) -> str:
    """What is wrong with the facts of a method, which are keyword arguments of :class:`Method`."""
    known = ", ".join(field.name for field in fields(Method) if field.name not in ("name", "entry"))
    if isinstance(error, ValueError):
        return str(error)
    return f"{str(error).partition('() ')[2] or error}: the facts of a method are {known}."


def method(name: str) -> Method:
    """Return the method called ``name``; a ValueError names the nearest ones."""
    return find(methods(), name, "method")


def quantize(
    graph: "FloatGraph",
    method: str | Method,
    bits: str,
    calibration: "Sequence[Batch]" = (),
    dynamic_granularity: Granularity = "token",
    progress: "Callable[[str], None] | None" = None,
    training: "Training | None" = None,
) -> "QuantizedModel":
    """Return the tables that ``method`` makes of ``graph`` in the scheme ``bits`` names.

    Linear algebra runs on one thread, because its last bits depend on how many there are: the same inputs give the
    same codes, bit for bit, on one machine and set of libraries.

    Args:
        method: its name, or a :class:`Method` with settings of your own.
        calibration: batches of inputs, one array per input of the graph; only calibrating methods need them.
        dynamic_granularity: of activations quantized at run time in plain ``int8``: "token", "tensor" or "group".
        progress: called with a line of text such as "gptq: layer 7 of 36, 12 s left" as work goes on.
        training: what a method that trains learns from; without it, the float model on the calibration data.

    Raises:
        ValueError: an unknown method or bits word, a method that is a backend's own, or bad data.
    """
    chosen = method if isinstance(method, Method) else find(methods(), method, "method")
    if chosen.native:
        raise ValueError(f"{chosen.name!r} is a runtime's own quantizer: use compile_native() of a backend.")
    if chosen.first:
        raise ValueError(
            f"{chosen.name!r} is a cascade of two models: quantize with {chosen.first!r}, and use quant.adaptive."
        )
    from quant.execution import one_thread

    scheme = parse(bits, chosen.family, dynamic_granularity)
    if scheme.bits_per_weight is not None and not chosen.chooses:
        raise ValueError(f"{chosen.name!r} chooses no formats within bits as {bits!r} asks: use the method 'mixed'.")
    with one_thread(), reporting(chosen.name, progress):
        settings = {**chosen.settings, **({"training": training} if chosen.trains else {})}
        quantized = chosen.entry.load().quantize(graph, scheme, calibration, **settings)
    quantized.recipe.update(method=chosen.name, bits=bits, settings=chosen.settings)
    return quantized
