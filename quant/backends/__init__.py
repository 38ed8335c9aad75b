"""Runtimes that execute quantized models: one module each, found by file name.

A backend's file starts with literal constants that are read without importing it:

    TARGETS   target name, the word used in case ids -> options, all of which may be left out:
              "device"
              "platform": "darwin" or "linux", where it exists only there
              "needs": what must be here beside packages, "cuda" or "compiler"
              "build": (package, pattern of a file, command), where only some builds of a package will do
              "precision": of what stays float, where the device computes in nothing else
              "settings": that it loads artefacts with
              "opt_in": whether its cases run only where it is named
    REQUIRES  importable module -> command that installs it
    EXECUTES  family of methods -> bits words the backend runs
    REFUSES   family of methods, bits word, or both; method; kind of network and bits -> why not, in one sentence
    NATIVE    method name -> {bits word: what the runtime's own quantizer is called}
    TEMPLATE_PER_PRECISION  whether a float16 program needs a template of its own
    RUNS_ON   the one platform on which the runtime itself runs; elsewhere its artefacts are evaluated otherwise
    WIDTHS    bits of the integers it stores without padding; a weight of another width takes the next wider one
    GROUP_BITS  width -> bits that scale and zero point of an asymmetric group take; absent where they are the table's
    LOOSE_WIDTHS  widths of codes of weights that are no matrices of whole groups; absent where they are stored alike
    SETTINGS  name -> values of what :meth:`Backend.load` takes, the default first: what is worth trying on a machine
    NUMBERS   bits word -> words like it that a kernel may be faster with
    INTEGER_KERNELS  whether 8-bit activations are multiplied with 8-bit weights by the processor itself
    DYNAMIC_GRANULARITY  "token", "tensor" or "group": how its kernels quantize activations at run time the fastest

and holds the functions of :class:`Backend`. It may have one more, ``forecast``, which takes the folder of an artefact
and returns sentences on what a device would run of it, as far as that is known unmeasured. Backends read the tables and
know nothing of methods.
"""

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from quant.hardware.presence import holds, lacking
from quant.registry import Entry, find, missing, scan

if TYPE_CHECKING:
    import numpy as np

    from quant.graph import FloatGraph, QuantizedModel


class Executable(Protocol):
    """A saved artefact loaded into its runtime.

    path            the artefact, a file or a folder
    evidence        "measured"; "simulated" where an operator of the tables has no native kernel (``evidence_of``); or
                    "evaluated" (a reference evaluator stands in for the runtime)
    untimed_reason  why its time means nothing, or None where it does
    """

    path: Path
    evidence: str
    untimed_reason: str | None

    def __call__(self, *inputs: "np.ndarray") -> "list[np.ndarray]":
        """Run one batch; inputs and outputs as the float graph's ``forward`` has them, outputs float32."""

    def step(self, *inputs: object) -> "tuple[np.ndarray, list]":
        """Run one batch as a call does and return the first output, float32, and the others as they are.

        Those stay in the runtime's own memory, and may be inputs of the next step.
        """

    @property
    def size_bytes(self) -> int:
        """Bytes of the artefact on disk."""

    def coverage(self) -> dict[str, object]:
        """Return what the runtime made of it, read from its optimized form.

        ``operators_native`` and ``operators_simulated`` are shares of all multiply-accumulates: run by a kernel for the
        quantized type, and quantized in the tables but computed otherwise. The rest runs in float. ``notes`` lists
        sentences on kernels that quantize more than was asked.
        """


class Backend(Protocol):
    """The functions of a backend's module."""

    def version(self) -> str:
        """Return the runtime's name and version."""

    def template(self, graph: "FloatGraph", folder: Path, precision: str) -> None:
        """Write what is made once per model: the float graph in the runtime's form, and a checked map of names.

        ``precision`` is the type of what stays float; a backend that can change it when splicing ignores it.
        """

    def compile(self, quantized: "QuantizedModel", template: Path, folder: Path) -> None:
        """Splice the tables into the template and write the artefact into ``folder``."""

    def compile_native(
        self, method: str, bits: str, template: Path, folder: Path, calibration: "Sequence[tuple[np.ndarray, ...]]"
    ) -> None:
        """Write the artefact that the runtime's own quantizer makes of the float model."""

    def load(self, folder: Path, threads: int, device: str | None, **settings: object) -> Executable:
        """Load an artefact from disk into the runtime, with some of its ``SETTINGS`` other than their defaults."""


@dataclass(frozen=True)
class Target:
    """A backend with the device it runs on: what a case id names."""

    name: str
    entry: Entry
    device: str | None = None
    platform: str | None = None
    needs: str | None = None
    build: tuple[str, str, str] | None = None
    precision: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    opt_in: bool = False

    def load(self) -> Backend:
        return self.entry.load()

    def open(self, folder: Path, threads: int, settings: Mapping[str, object] | None = None) -> Executable:
        """Load an artefact from disk onto the target; ``settings`` may name other ``threads``."""
        chosen = {"threads": threads, **self.settings, **(settings or {})}
        return self.load().load(folder, device=self.device, **chosen)

    def constant(self, name: str, default: object = None) -> object:
        return self.entry.constants.get(name, default)

    def missing(self) -> str | None:
        """Return the commands that install what is missing, or None."""
        absent = missing(self.constant("REQUIRES", {}))
        if absent or self.build is None:
            return absent
        package, pattern, command = self.build
        return None if holds(package, pattern) else command

    @property
    def runs_here(self) -> bool:
        """Whether this platform has the runtime itself, so that its time can be taken."""
        return self.elsewhere() is None and self.constant("RUNS_ON", sys.platform) == sys.platform

    def elsewhere(self) -> str | None:
        """Return why this machine cannot run the target, whatever is installed, or None."""
        if self.platform in (None, sys.platform):
            absent = self.needs and lacking(self.needs)
            return f"{self.name} {absent}" if absent else None
        needed = {"darwin": "macOS", "linux": "Linux"}.get(self.platform, self.platform)
        return f"{self.name} exists only on {needed}"


def evidence_of(coverage: dict[str, object]) -> str:
    """Return "simulated" if any of the quantized work was computed without a kernel for it, else "measured"."""
    return "simulated" if coverage["operators_simulated"] > 0 else "measured"


@functools.cache
def targets() -> dict[str, Target]:
    """Return all targets by name."""
    found = {}
    for entry in scan(Path(__file__).parent, __name__).values():
        for name, options in entry.constants.get("TARGETS", {}).items():
            found[name] = Target(name, entry, **options)
    return found


def target(name: str) -> Target:
    """Return the target called ``name``; a ValueError names the nearest ones."""
    return find(targets(), name, "backend")
