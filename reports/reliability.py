"""How far the gate is to be trusted: the rates that its own test measured, as a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tabulate import tabulate

from reports.runs import RunError, read_json

Rate = dict[str, Any]

_NOTES = (
    "bound: one-sided 95 % (Clopper-Pearson), the upper one of alarms and refusals, the lower one of what was caught.",
    "true loss: on all samples, what was planted takes; accuracy and agreement in points, error and speed in percent.",
)


def rates_of(path: Path) -> list[Rate]:
    """Return the rates in a run, in the order they were measured.

    Raises:
        RunError: there are none.
    """
    benchmarks = read_json(path).get("benchmarks") or []
    rates = [rate for bench in benchmarks for rate in (bench.get("extra_info") or {}).get("reliability", [])]
    if not rates:
        raise RunError(f"{path} holds no rates of the gate; measure them with: pytest benchmarks -m gate")
    return rates


def reliability_table(rates: Sequence[Rate], format: Literal["simple", "github"] = "simple") -> str:
    """A row for each rate."""
    headers = ["what", "rate", "bound", "limits", "true loss"]
    rows = [
        [rate["name"], _share(rate), _bound(rate), " ".join(rate.get("limits", ())), _losses(rate)] for rate in rates
    ]
    bullet = "- " if format == "github" else ""
    drawn = tabulate(rows, headers, tablefmt=format, disable_numparse=True)
    return drawn + "\n\n" + "\n".join(f"{bullet}{note}" for note in _NOTES)


def _share(rate: Rate) -> str:
    return f"{rate['hits']}/{rate['trials']}"


def _bound(rate: Rate) -> str:
    if rate["name"].startswith("caught"):
        return f"≥ {100 * rate['low']:.1f} %"
    return f"≤ {100 * rate['high']:.1f} %"


def _losses(rate: Rate) -> str:
    return ", ".join(f"{name} {loss:.3g}" for name, loss in (rate.get("losses") or {}).items())
