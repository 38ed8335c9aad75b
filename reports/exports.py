"""Exported models in one table: what ``validation.json`` beside each of them says."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from reports.runs import RunError

VALIDATION = "validation.json"

_HEADERS = (
    "case",
    "format",
    "size",
    "verdict",
    "samples",
    "SQNR",
    "agreement",
    "metric",
    "codes",
    "memory",
    "checked by",
)


@dataclass(frozen=True)
class Export:
    """One case in one format, with its validation."""

    case: str
    format: str
    validation: dict[str, Any]


def read_exports(folder: Path) -> list[Export]:
    """Return what was exported below ``folder``, as CASE/FORMAT, by name.

    Raises:
        RunError: there is none, or a validation cannot be read.
    """
    paths = sorted(folder.glob(f"*/*/{VALIDATION}"))
    if not paths:
        raise RunError(f"{folder} holds no CASE/FORMAT/{VALIDATION}: name the folder that cases were exported into.")
    return [Export(path.parts[-3], path.parts[-2], _read(path)) for path in paths]


def exports_table(exports: Sequence[Export], format: str = "simple") -> str:
    """Return a table of exports; ``format`` is one of tabulate's."""
    return tabulate(map(_row, exports), _HEADERS, tablefmt=format, disable_numparse=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        _row(Export("", "", found))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = type(error).__name__
        raise RunError(f"{path} is not what an export is validated with ({reason}): export the case again.") from None
    return found


def _row(export: Export) -> list[str]:
    found = export.validation
    parity, codes, memory = found.get("parity"), found.get("codes"), found.get("memory", {}).get("peak_bytes")
    return [
        export.case,
        export.format,
        f"{found['bytes'] / 1e6:.2f} MB",
        found["verdict"],
        str(parity["samples"]) if parity else "-",
        ("equal" if parity["sqnr_db"] is None else f"{parity['sqnr_db']:.0f} dB") if parity else "-",
        f"{100 * parity['agreement']:.1f} %" if parity and parity["agreement"] is not None else "-",
        _metric(found.get("metric")),
        f"{codes['identical']}/{codes['weights']}" if codes and codes["weights"] else "-",
        f"{memory / 1e6:.0f} MB" if memory else "-",
        _checked_by(found),
    ]


def _metric(found: dict[str, Any] | None) -> str:
    """Return the metric's value, and the interval of its difference to the simulation's."""
    if not found or found.get("value") is None:
        return "-"
    interval = found["ci95"]
    between = f" ({interval[0]:+.3g} .. {interval[1]:+.3g})" if interval else ""
    return f"{found['metric']} {found['value']:.4g}{between}"


def _checked_by(found: dict[str, Any]) -> str:
    """Return what ran the artefact, and what else did."""
    readers = (name for name, read in found.get("readers", {}).items() if "error" in read)
    return ", ".join([found["checked_by"] or "-", *readers])
