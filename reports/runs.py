"""Saved runs: reading the file that holds the records of one invocation, with all that is known of it as a whole.

``quant`` of such a file holds what this suite adds beside the benchmarks:

    selection, settings   the options that decided what ran and how
    planned, deselected   names of cases (as rows and lists call them)
    skipped, failed       name of case -> why
    complete              whether every planned case came to its end
    shard                 number and count, where the run is one of several that were planned together
    missing_shards        numbers of those that a merged run lacks
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reports.record import Record, full_name, newer_schema, type_name, validate

# Where in a file what is expected: a type and, of lists and objects, that of all it holds.
_TYPES: dict[str, tuple[type, ...]] = {
    "quant.planned": (list, str),
    "quant.deselected": (list, str),
    "quant.skipped": (dict, str),
    "quant.failed": (dict, str),
    "quant.complete": (bool,),
    "quant.selection": (dict,),
    "quant.settings": (dict,),
    "quant.shard": (dict, int),
    "quant.shard.number": (int,),
    "quant.shard.of": (int,),
    "quant.missing_shards": (list, int),
    "machine_info": (dict,),
    "machine_info.cpu": (dict,),
    "machine_info.quant": (dict,),
    "machine_info.quant.cpu": (str,),
    "machine_info.quant.isa": (list, str),
    "machine_info.quant.versions": (dict, str),
    "commit_info": (dict,),
    "commit_info.id": (str,),
    "datetime": (str,),
}


class RunError(Exception):
    """A run file that cannot be used; the message is one sentence with the remedy."""


@dataclass(frozen=True)
class Run:
    """One run: its records in file order, and what pytest-benchmark and this suite know of the run as a whole."""

    path: Path
    records: list[Record]
    quant: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    commit: dict[str, Any] = field(default_factory=dict)
    saved: str | None = None


def read_run(path: str | os.PathLike) -> Run:
    """Read a run that ``--benchmark-save`` or ``--benchmark-json`` wrote.

    Benchmarks without a record of ours are left out. The records are not validated here, except that each is an object
    of a schema this version can read.

    Raises:
        RunError: when the file is missing, truncated, not a pytest-benchmark file, without any record of ours, or
            written with a newer schema.
    """
    path = Path(path)
    return run_of(path, read_document(path))


def read_document(path: Path) -> dict[str, Any]:
    """Read a whole file as pytest-benchmark wrote it.

    Raises:
        RunError: the file is missing, truncated or not a pytest-benchmark file.
    """
    document = read_json(path)
    benchmarks = document.get("benchmarks") if isinstance(document, dict) else None
    if not isinstance(benchmarks, list) or not all(isinstance(benchmark, dict) for benchmark in benchmarks):
        raise RunError(f"{path} is not a pytest-benchmark file; save a run with --benchmark-json={path}.")
    return document


def run_of(path: Path, document: dict[str, Any]) -> Run:
    """Return the run that a file holds.

    Raises:
        RunError: it has no record of ours, or one of a newer schema.
    """
    quant = document.get("quant") or {}
    extras = [benchmark.get("extra_info") or {} for benchmark in document["benchmarks"]]
    records = [extra["quant"] for extra in extras if isinstance(extra, dict) and "quant" in extra]
    for part in (quant, *records):
        if not isinstance(part, dict):
            raise RunError(f"{path} holds {type_name(part)} where a record should be; measure the run again.")
        newer = newer_schema(part)
        if newer:
            raise RunError(f"{path}: {newer}")
    if not records and not quant:
        raise RunError(f"{path} holds no quantization record; it was not saved by `pytest benchmarks`.")
    problem = next(_misshapen(document), None)
    if problem:
        raise RunError(f"{path}: {problem}; measure the run again.")
    machine, commit = document.get("machine_info") or {}, document.get("commit_info") or {}
    return Run(path, records, quant, machine, commit, document.get("datetime"))


def _misshapen(document: dict[str, Any]) -> Iterator[str]:
    """What of the run as a whole is of another type than whoever reads it expects; null is nothing at all."""
    for names, kinds in _TYPES.items():
        holder: Any = document
        for name in names.split("."):
            holder = holder.get(name) if isinstance(holder, dict) else None
        kind, *inner = kinds
        if holder is not None and type(holder) is not kind:
            yield f"{names} is {type_name(holder)}"
        elif holder is not None and inner:
            wrong = [item for item in (holder.values() if kind is dict else holder) if type(item) is not inner[0]]
            if wrong:
                yield f"{names} holds {type_name(wrong[0])}"


def read_valid_run(path: str | os.PathLike) -> Run:
    """Read a run all of whose records are valid.

    Raises:
        RunError: as :func:`read_run`, and when a record is not valid, or there is none.
    """
    run = read_run(path)
    problems = problems_of(run)
    if problems:
        more = f" ({len(problems) - 1} more: python -m reports validate {run.path})" if len(problems) > 1 else ""
        raise RunError(problems[0] + more)
    return run


def problems_of(run: Run) -> list[str]:
    """Every problem of a run's records, each with its file and case."""
    if not run.records:
        return [f"{run.path} holds no record; nothing was measured in that run."]
    names = [_name(record) for record in run.records]
    problems = [
        f"{run.path}: {name}: {problem}"
        for name, record in zip(names, run.records, strict=True)
        for problem in validate(record)
    ]
    return problems + [f"{run.path}: {name} was recorded more than once." for name in _repeated(names)]


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1]


def _name(record: Record) -> str:
    try:
        return full_name(record)
    except (KeyError, TypeError):
        return "unnamed record"


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        RunError: it is missing, or not complete JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(f"{path} does not exist; save a run with --benchmark-json={path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read as text: {getattr(error, 'strerror', None) or 'not UTF-8'}.") from None
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise RunError(f"{path} is not complete JSON ({where}): the save was cut short; measure again.") from None
