"""Other libraries' quantizers, which are measured against ours: one file per library, found by file name.

A file starts with literal constants that are read without importing it:

    PACKAGES  importable module -> command that installs it
    VARIANTS  method word of its case -> {"bits": its word, "family": weight_only unless stated, and settings of the
              file's own}
    DISTRIBUTION  what pip calls the library, where it is not the file's name

and holds ``prepare(subject)``, which imports and converts, and returns the work to be timed; that returns what it made
as a function from the model's inputs to its first output. It is called in a process of its own, ``benchmarks.child``.
Both sides quantize the weights of linear layers alone, because most libraries leave embeddings in float.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.matrix import Case, model
from quant.methods import methods
from quant.registry import Entry, missing, scan
from quant.scheme import Family, Scheme, parse

MODEL = "minilm"


@dataclass(frozen=True)
class PeerCase:
    """A peer's quantizer on a model; its axes are those of a case, its method the peer's."""

    model: str
    method: str
    bits: str
    backend: str
    family: Family
    library: Entry

    @property
    def id(self) -> str:
        return f"{self.model}-{self.method}-{self.bits}-{self.backend}"

    def __str__(self) -> str:
        return self.id

    @property
    def scheme(self) -> Scheme:
        return parse(self.bits, self.family)

    @property
    def core(self) -> bool:
        return False

    def missing(self) -> str | None:
        """Return the command that installs what the case lacks here, or None."""
        return missing({**self.library.constants["PACKAGES"], **model(self.model).constants["PACKAGES"]})

    def rivals(self) -> list[Case]:
        """Return our methods of the same family at the same bits, but for those that train."""
        word = self.bits.partition("_")[0]
        found = [one for one in methods().values() if one.has_tables and not one.trains]
        names = [one.name for one in found if one.family == self.family and word in one.bits]
        return [Case(self.model, name, self.bits, self.backend) for name in names]


@cache
def peer_cases() -> tuple[PeerCase, ...]:
    """Return every variant of every library, without importing any."""
    return tuple(
        PeerCase(MODEL, name, facts["bits"], "torch", facts.get("family", "weight_only"), library)
        for library in scan(Path(__file__).parent, __name__).values()
        for name, facts in library.constants["VARIANTS"].items()
    )
