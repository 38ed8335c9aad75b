"""Shipping: a quantized model as the file, or folder, that a runtime loads without any code of ours, and proof of it.

A format is one module of ``quant/exporting/writers``, found by file name. It starts with literal constants that are
read without importing it:

    ARTIFACT   what the file, or folder, is called
    BACKEND    the backend whose artefact it is made from; None where it is made from the tables themselves
    TEMPLATE   whether it is the backend's float template instead that it is made from
    STEPS      whether it is made from a decoder's step of one token instead, with caches as long as the samples
    REQUIRES   importable module -> command that installs it: what writing and checking need besides the backend
    RUNS_ON    the one platform on which its runtime runs; elsewhere it is read by an evaluator of ours
    READ_BY    what reads it where no runtime of its own does, so that memory means nothing; else left out
    ENVIRONMENT  {"folder": in the working directory, "packages": what pip installs there}: where it is written and
               checked, if its packages do not go together with others; else left out

and holds the functions of :class:`Writer`. Nothing heavy is imported at its top: the fresh process that checks an
artefact imports the module too, and holds no more than the runtime needs.
"""

import functools
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from quant.registry import Entry, find, missing, scan

if TYPE_CHECKING:
    import numpy as np

    from quant.graph import FloatGraph, QuantizedModel

Function = Callable[..., "Sequence[np.ndarray]"]
"""A loaded artefact: arrays of one batch to outputs."""


class RejectedExport(ValueError):
    """An artefact that failed its validation. It lies at ``path``, and ``validation`` says what was found."""

    def __init__(self, message: str, path: Path, validation: dict[str, object]) -> None:
        super().__init__(message)
        self.path, self.validation = path, validation


@dataclass(frozen=True)
class Layout:
    """What must be known of a quantized weight to read its codes from an artefact; the codes have this ``shape``."""

    shape: tuple[int, ...]
    bits: int
    signed: bool


class Writer(Protocol):
    """The functions of a format's module."""

    def write(self, quantized: "QuantizedModel", built: Path | None, artifact: Path) -> None:
        """Write the artefact; ``built`` is the folder in which ``BACKEND`` compiled these tables, or of its template.

        Tables of a step are compiled where the format asks for it.

        Raises:
            ValueError: the format cannot hold these tables; one sentence says which and what it can hold.
        """

    def load(self, artifact: Path) -> Function:
        """Load the artefact into the format's own runtime, or into what reads it."""

    def version(self) -> str:
        """Return the name and version of what :meth:`load` loads into."""

    def codes(self, artifact: Path, layouts: Mapping[str, Layout]) -> "dict[str, np.ndarray]":
        """Return the codes of the weights, uint8 or int8 of their shape, as they are read back from the artefact.

        A weight is left out whose codes the format holds in a way that is not undone here.
        """

    def readers(self, artifact: Path) -> dict[str, Callable[[], Function]]:
        """Return what else reads the format, by name, as loaders of the artefact; left out where nothing does."""


@dataclass(frozen=True)
class Format:
    """A format by name."""

    entry: Entry

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def summary(self) -> str:
        return self.entry.summary

    @property
    def artifact(self) -> str:
        return self.entry.constants["ARTIFACT"]

    @property
    def backend(self) -> str | None:
        return self.entry.constants["BACKEND"]

    @property
    def from_template(self) -> bool:
        return self.entry.constants.get("TEMPLATE", False)

    @property
    def steps(self) -> bool:
        return self.entry.constants.get("STEPS", False)

    @property
    def evidence(self) -> str:
        """ "measured" by the format's own runtime, or "evaluated" by what reads it where that is not."""
        elsewhere = self.entry.constants.get("RUNS_ON", sys.platform) != sys.platform
        return "evaluated" if elsewhere or "READ_BY" in self.entry.constants else "measured"

    @property
    def isolated(self) -> bool:
        """Whether it is written and checked in an environment of its own."""
        return "ENVIRONMENT" in self.entry.constants

    @property
    def python(self) -> Path:
        """The interpreter that checks the format."""
        environment = self.entry.constants.get("ENVIRONMENT")
        return Path.cwd() / environment["folder"] / "bin" / "python" if environment else Path(sys.executable)

    def installed(self) -> list[str]:
        """Return names and versions of all that is installed here, and where the format is checked if elsewhere."""
        elsewhere = self.python.parents[1].glob("lib/python*/site-packages") if self.isolated else ()
        paths = [*sys.path, *map(str, elsewhere)]
        found = importlib.metadata.distributions(path=paths)
        return sorted({f"{distribution.metadata['Name']} {distribution.version}" for distribution in found})

    def missing(self) -> str | None:
        """Return the commands that install what is missing to write and check the format, or None."""
        environment = self.entry.constants.get("ENVIRONMENT")
        if environment and not self.python.exists():
            folder, packages = environment["folder"], environment["packages"]
            return f"python -m venv {folder} && {folder}/bin/pip install {packages}"
        packages = dict(self.entry.constants.get("REQUIRES", {}))
        if self.backend:
            from quant.backends import target

            packages |= target(self.backend).constant("REQUIRES", {})
        return missing(packages)

    def load(self) -> Writer:
        return importlib.import_module(self.entry.module)


@functools.cache
def formats() -> dict[str, Format]:
    """Return all formats by name, without importing any."""
    folder = Path(__file__).parent / "writers"
    return {name: Format(entry) for name, entry in scan(folder, f"{__name__}.writers").items()}


def format_named(name: str) -> Format:
    """Return the format called ``name``; a ValueError names the nearest ones."""
    return find(formats(), name, "format")


def export(
    quantized: "QuantizedModel",
    format: str,
    directory: Path | str,
    samples: "Sequence[np.ndarray] | None" = None,
    memory_limit: int | None = None,
    step: "FloatGraph | None" = None,
) -> Path:
    """Write ``quantized`` in a format into ``directory``, check it in a fresh process, and return the artefact's path.

    Beside it lie ``validation.json``, which says how its outputs compare with :func:`quant.simulate`, whether its codes
    are the tables' own when read back, the memory it took, and checksums; and ``sample.npz``, one sample with what the
    tables make of it.

    Args:
        samples: what it is checked on, one array [n, ...] per input of the model; by default the graph's examples.
        memory_limit: bytes that the process which runs it may hold at most.
        step: of a decoder, what :func:`quant.generation.capture_step` makes of it, for formats that go on with texts.

    Raises:
        ValueError: the format is unknown, or cannot hold these tables.
        ModuleNotFoundError: something it needs is not installed; the message holds the pip command.
        RejectedExport: the artefact failed its validation, and is left in place named ``*.rejected``.
    """
    from quant.exporting.expected import Expected
    from quant.exporting.shipping import ship

    return ship(Expected(quantized, samples, step=step), format_named(format), Path(directory), memory_limit)
