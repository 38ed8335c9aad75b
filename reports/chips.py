"""One commit on several chips, side by side; and what a run's machine is called."""

from collections.abc import Sequence
from typing import Literal

from tabulate import tabulate

from reports.machines import environment_of
from reports.record import Record, record_name
from reports.runs import Run
from reports.tables import NULL, delta_text, metric_text, speed_text, three_digits


def machine(run: Run, record: Record) -> str:
    """The processor and the threads a case ran on, which together decide whose times may stand in one series."""
    environment = environment_of(run, record)
    known = run.machine.get("cpu") or {}
    cpu = environment.get("cpu") or known.get("brand_raw") or run.machine.get("machine") or "an unnamed processor"
    threads = environment.get("threads")
    return cpu if threads is None else f"{cpu}, {threads} thread{'' if threads == 1 else 's'}"


def chip_table(runs: Sequence[Run], format: Literal["simple", "github"] = "simple") -> str:
    """Every case with its metric, time and speed on each chip of these runs, which should be of one commit.

    Of several records of a case on one chip the last saved counts. Times are those of different machines: they say
    which chip to buy, not what a change did, so nothing is judged here. Where the commits differ a line says so.
    """
    found: dict[str, dict[str, Record]] = {}
    for run in sorted(runs, key=lambda run: run.saved or ""):
        for record in run.records:
            found.setdefault(machine(run, record), {})[record_name(record)] = record
    cases = list(dict.fromkeys(case for records in found.values() for case in records))
    rows = [[case, *(cell for records in found.values() for cell in _cells(records.get(case)))] for case in cases]
    marks = [f"{title} {_letter(index)}" for index in range(len(found)) for title in ("metric", "ms", "speed")]
    align = ["left", *["left", "right", "right"] * len(found)]
    drawn = tabulate(rows, ["case", *marks], tablefmt=format, disable_numparse=True, colalign=align)
    lines = [f"{_letter(index)}: {name}" for index, name in enumerate(found)]
    commits = {run.commit.get("id") for run in runs}
    if len(commits) > 1:
        names = ", ".join(sorted(str(commit)[:7] for commit in commits))
        lines.append(f"These runs are of different commits ({names}): figures differ by more than the chip.")
    if format == "github":
        return drawn + "\n\n" + "\n".join(f"- {line}" for line in lines)
    return "\n".join([drawn, *lines])


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def _cells(record: Record | None) -> list[str]:
    if record is None:
        return [NULL, NULL, NULL]
    p50, delta = record["speed"].get("p50"), delta_text(record)
    metric = metric_text(record) + ("" if delta == NULL else f" ({delta})")
    return [metric, NULL if p50 is None else three_digits(1000 * p50), speed_text(record)]
