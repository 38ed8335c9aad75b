"""Finding methods, backends and models by file name, without importing them.

A registry is a folder of modules: adding an entry means adding one file. What must be known to list and filter
thousands of cases stands in the file as upper-case literal constants, which are read from the source text; the module
itself, and whatever heavy library it needs, is imported only by :meth:`Entry.load`.
"""

import ast
import difflib
import functools
import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One module of a registry: its name, the first line of its docstring and its literal constants."""

    name: str
    module: str
    path: Path
    summary: str
    constants: dict[str, object]

    def load(self) -> ModuleType:
        return importlib.import_module(self.module)


def modules(folder: Path) -> list[Path]:
    """Return the files that may be entries, sorted by name; those that start with an underscore are helpers."""
    return sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))


@functools.cache
def scan(folder: Path, package: str) -> dict[str, Entry]:
    """Return the entries of ``folder``, sorted by name: modules with literal constants.

    Raises:
        ValueError: one is not Python; the sentence names the line.
    """
    entries = (_read(path, package) for path in modules(folder))
    return {entry.name: entry for entry in entries if entry.constants}


def find(entries: Mapping[str, T], name: str, noun: str) -> T:
    """Return the entry called ``name``.

    Raises:
        ValueError: there is none; the sentence names the nearest ones.
    """
    if name not in entries:
        raise ValueError(f"unknown {noun} {name!r}: {nearest(name, entries)}")
    return entries[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error sentence: the known names most like ``name``, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}."


def missing(packages: Mapping[str, str]) -> str | None:
    """Return the commands that install what is absent of ``packages`` (importable module -> command), or None."""
    commands = [command for package, command in packages.items() if not _installed(package)]
    return " && ".join(dict.fromkeys(commands)) or None


@functools.cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _read(path: Path, package: str) -> Entry:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise ValueError(f"{path}:{error.lineno}: {error.msg}.") from None
    constants = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id
            if name.isupper() and not name.startswith("_"):
                try:
                    constants[name] = ast.literal_eval(statement.value)
                except ValueError:
                    continue  # a computed constant is the module's own business
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    return Entry(path.stem, f"{package}.{path.stem}", path, summary, constants)
