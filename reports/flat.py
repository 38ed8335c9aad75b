"""Records as flat rows for other programs: every figure under its path, such as ``accuracy.ci95.low``."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from reports.record import SECTIONS, Record, record_name
from reports.runs import Run

# What single samples scored and single rounds took, packed.
_LEFT_OUT = ("scores", "speed.samples")
_ENDS = ("low", "high")


def csv_text(runs: Sequence[Run]) -> str:
    """One line a record of every run, after a line of names: run, commit, machine, case, then the record's figures.

    Figures keep their full precision and the record's own units; a missing one is empty.
    """
    rows = [
        {**_run_columns(run), "name": record_name(record), **flat(record)} for run in runs for record in run.records
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    # A section's figures stand together, in the schema's order, wherever a record adds some.
    names.sort(key=_section_rank)
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def flat(record: Record) -> dict[str, Any]:
    """Every value of a record under its path, but for samples and rounds; texts of a list are joined by ``; ``."""
    return dict(_leaves(record, ""))


def _leaves(value: Any, path: str) -> Iterable[tuple[str, Any]]:
    if path in _LEFT_OUT:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and len(value) == 2 and not any(isinstance(item, dict | list | str) for item in value):
        yield from ((f"{path}.{end}", item) for end, item in zip(_ENDS, value, strict=True))
    elif isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
        yield path, "; ".join(map(str, value))
    elif not isinstance(value, list):
        yield path, value


def _run_columns(run: Run) -> dict[str, Any]:
    environment = run.machine.get("quant", {})
    return {
        "run": str(run.path),
        "saved": run.saved,
        "commit": run.commit.get("id"),
        "cpu": environment.get("cpu"),
        "threads": environment.get("threads"),
    }


def _section_rank(name: str) -> int:
    order = ["run", "saved", "commit", "cpu", "threads", "name", "schema", "kind", "evidence", *SECTIONS]
    section = name.partition(".")[0]
    return order.index(section) if section in order else len(order)
