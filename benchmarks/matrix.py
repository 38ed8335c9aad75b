"""Which combinations of model, method, bits and backend exist, and why the others do not.

Everything here is read from the literal constants of the registries, so listing thousands of cases imports no runtime.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from quant.backends import Target, target, targets
from quant.methods import Method, method, methods
from quant.registry import Entry, find, missing, scan
from quant.scheme import DYNAMIC_WORDS, FLOAT_WORDS, REDUCED_WORD, SYMMETRIC_WORD, Scheme, parse

_ZOO = Path(__file__).parents[1] / "fixtures" / "zoo"
_LAYERS = Path(__file__).parent / "layers"
_QUANTIZERS_BACKEND = "torch"
_AS_INT8 = (REDUCED_WORD, SYMMETRIC_WORD, *DYNAMIC_WORDS)
_ATTEND = ("encoder", "decoder")
_ADDED: dict[str, Entry] = {}


@dataclass(frozen=True)
class Case:
    """One combination; its id is what pytest shows and ``-k`` matches."""

    model: str
    method: str
    bits: str
    backend: str

    @property
    def id(self) -> str:
        return f"{self.model}-{self.method}-{self.bits}-{self.backend}"

    def __str__(self) -> str:
        return self.id

    @cached_property
    def scheme(self) -> Scheme:
        """The one scheme this combination stands for."""
        granularity = self.target.constant("DYNAMIC_GRANULARITY", "token")
        return parse(self.bits, self.method_entry.family, granularity)

    @property
    def target(self) -> Target:
        return target(self.backend)

    @cached_property
    def method_entry(self) -> Method:
        """The method; one that chooses formats has those alone to choose from that the backend stores as they are."""
        found = method(self.method)
        if not found.chooses:
            return found
        return replace(found, settings={**found.settings, "widths": self.target.constant("WIDTHS")})

    @property
    def baseline(self) -> "Case":
        """The float model on the same backend."""
        return Case(self.model, "float", "fp32", self.backend)

    @property
    def first(self) -> "Case":
        """The case whose tables answer first in a cascade; any other case itself."""
        return replace(self, method=self.method_entry.first) if self.method_entry.first else self

    @property
    def core(self) -> bool:
        """Whether a run without any selection includes the case."""
        if self.target.opt_in:
            return False
        return bool(model(self.model).constants.get("CORE")) and self.bits in self.method_entry.core

    def missing(self) -> str | None:
        """Return the command that installs what the case lacks here, or None."""
        packages = {**self.target.constant("REQUIRES", {}), **model(self.model).constants.get("PACKAGES", {})}
        if self.method_entry.native:
            packages |= self.target.constant("NATIVE_REQUIRES", {})
        return missing(packages)


@dataclass(frozen=True)
class Unsupported:
    """A combination that is not generated, and why."""

    case: Case
    reason: str


def models() -> dict[str, Entry]:
    """Return the models of the zoo by name, without importing any, and those that were added."""
    return {**scan(_ZOO, "fixtures.zoo"), **_ADDED}


def add_model(entry: Entry) -> None:
    """Add a model that is not of the zoo to the matrix.

    Raises:
        ValueError: the zoo has one of that name.
    """
    if entry.name in scan(_ZOO, "fixtures.zoo"):
        raise ValueError(f"{entry.path}: there is a model {entry.name} already; rename the file.")
    _ADDED[entry.name] = entry
    matrix.cache_clear()
    quantizers.cache_clear()
    generators.cache_clear()


def layers() -> dict[str, Entry]:
    """Return the single layers on which quantizers are timed by name, without importing any."""
    return scan(_LAYERS, "benchmarks.layers")


def model(name: str) -> Entry:
    """Return the model or layer called ``name``; a ValueError names the nearest ones."""
    return find({**models(), **layers()}, name, "model")


@cache
def matrix() -> tuple[tuple[Case, ...], tuple[Unsupported, ...]]:
    """Return the cases, those of a model and a backend together, and the combinations left out."""
    cases, left_out = [], []
    for case in _combinations():
        reason = _refusal(case)
        if reason is None:
            cases.append(case)
        else:
            left_out.append(Unsupported(case, reason))
    return tuple(cases), tuple(left_out)


@cache
def quantizers() -> tuple[Case, ...]:
    """Return what can be quantized into tables: a case for each model, method and bits, then those of single layers.

    Tables know no runtime. Where their scheme does depend on one, in what is quantized at run time, it is torch's.
    Methods that train are left out: they take what their recipes allow them, minutes. So are words for bits that cost
    what int8 does: weights of reduced range, and how activations are quantized.
    """
    of_models = [
        case
        for case in matrix()[0]
        if case.backend == _QUANTIZERS_BACKEND and case.bits not in _AS_INT8 and _has_tables(case.method_entry)
    ]
    of_layers = [
        Case(name, entry.name, bits, _QUANTIZERS_BACKEND)
        for name, layer in layers().items()
        for bits in layer.constants["BITS"]
        for entry in methods().values()
        if _has_tables(entry) and entry.family == "weight_only" and bits.partition("_")[0] in entry.bits
    ]
    return (*of_models, *of_layers)


@cache
def generators() -> tuple[Case, ...]:
    """Return the cases of models that go on with texts: those whose tables a step with a cache can take.

    Methods with activations in fixed ranges are left out: ``quant.generation`` says why. So are targets to opt in to,
    which are slow to start: they would start anew for every length of a text.
    """
    return tuple(
        case
        for case in matrix()[0]
        if models()[case.model].constants.get("GENERATES")
        and not case.target.opt_in
        and case.method_entry.family in ("float", "weight_only", "dynamic")
    )


def _has_tables(entry: Method) -> bool:
    return entry.has_tables and not entry.trains and entry.family != "float"


def _combinations() -> Iterator[Case]:
    for model_name in models():
        for backend in targets():
            for entry in sorted(methods().values(), key=lambda entry: (entry.family != "float", entry.name)):
                for bits in entry.bits:
                    yield Case(model_name, entry.name, bits, backend)


def _refusal(case: Case) -> str | None:
    where, how = case.target, case.method_entry
    elsewhere = where.elsewhere()
    if elsewhere:
        return elsewhere
    family = models()[case.model].constants["FAMILY"]
    if how.family == "dynamic" and family == "convolutional":
        return "no runtime has a fast convolution kernel for activations quantized at run time: use a static method"
    if how.settings.get("attention") and family not in _ATTEND:
        return f"a {family} network has no attention, which is all that {how.name} quantizes beyond dynamic"
    refuses = where.constant("REFUSES", {})
    for key in (how.name, f"{family}-{case.bits}"):
        if key in refuses and key != how.family:  # which says why other words of its methods are not there
            return refuses[key]
    if how.native:
        offered = where.constant("NATIVE", {}).get(how.name, {})
        return (
            None if case.bits in offered else _reason(refuses, how.name, case, "has no quantizer of its own for this")
        )
    if case.bits in where.constant("EXECUTES", {}).get(how.family, ()):
        return None
    word = case.bits if case.bits in FLOAT_WORDS else how.family
    return _reason(refuses, word, case, f"does not execute {case.bits} from {how.family} methods")


def _reason(refuses: dict[str, str], word: str, case: Case, otherwise: str) -> str:
    return refuses.get(f"{word}-{case.bits}") or refuses.get(word) or f"{case.backend} {otherwise}"
