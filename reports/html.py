"""One HTML page of saved runs that needs nothing else: no server, no network, no other file.

The page is complete without its script, which adds sorting, filters and details. Every text that comes from a run is
escaped on its way into the page; data for the script stand in a JSON block that nothing in them can leave.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from reports.advice import advise
from reports.chips import machine
from reports.costs import cost_table, peer_table
from reports.figures import figure_text
from reports.flat import flat
from reports.history import Series, changes_by_save, histories, save_name
from reports.judgement import Finding, Judgement
from reports.machines import environment_of, instructions
from reports.pareto import COSTS, Front, front_text, fronts
from reports.plots import scatter, shape, sparkline_svg
from reports.record import Record, record_name
from reports.runs import Run
from reports.sensitivities import heat_map
from reports.tables import NULL, delta_text, footnotes, metric_text, order, speed_text, three_digits
from reports.verdicts import headline, sections

_TEMPLATES = Path(__file__).parent / "templates"
_AXES = ("model", "method", "bits", "backend")
# Records of a quantizer rather than of what it made: they have tables of their own.
_COSTED = ("quantize", "peer")
_HISTORY = ("accuracy", "agreement", "speed", "size")
_FIRST = ("accuracy", "fidelity", "speed", "size", "memory", "coverage", "parity", "cost", "scheme", "model")
_UNITS = {"points": " pp", "percent": " %", "absolute": ""}
_VERDICTS = ("regressed", "inconclusive", "not judged", "pass")
# What the judgement's table shows already.
_IN_TABLE = ("regressed", "inconclusive", "passed", "not judged")


@dataclass(frozen=True)
class Cell:
    """A cell of the table: its text, what it is sorted by (None last), a smaller remark, why it is empty."""

    text: str
    value: float | str | None
    small: str = ""
    reason: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Row:
    """A record of the table, under its machine."""

    record: Record
    machine: str
    cells: list[Cell]

    @property
    def name(self) -> str:
        return record_name(self.record)


def page(runs: Sequence[Run], judgement: Judgement | None = None) -> str:
    """The report of these runs: of each case the last record on each machine, and the history where there is one.

    Args:
        runs: at least one, each with records.
        judgement: of the last run beside a baseline, which is then the first thing to read.
    """
    runs = sorted(runs, key=lambda run: run.saved or "")
    latest = _latest(runs)
    machines = sorted({place for place, _ in latest})
    cases = {key: record for key, record in latest.items() if record["kind"] not in _COSTED}
    found = [
        (place, front)
        for place in machines
        for front in fronts([record for (where, _), record in cases.items() if where == place])
    ]
    ordered = sorted(cases.items(), key=lambda item: (order(item[1]), item[0][0]))
    records = [record for _, record in ordered]
    metrics = {metric for record in records if (metric := record["accuracy"].get("metric"))}
    fronted = _fronted([front for _, front in found])
    rows = [Row(record, place, _cells(record, fronted, len(metrics) > 1)) for (place, _), record in ordered]
    backends = sorted({record["case"]["backend"] for record in records})
    numbers = {id(record): index for index, record in enumerate(records)}
    series = _series(runs)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html").render(
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((_TEMPLATES / "report.js").read_text(encoding="utf-8")),
        data=_script_data(rows),
        newest=runs[-1],
        title=", ".join(sorted({record["case"]["model"] for record in latest.values()})),
        advice=_advice(rows, machines),
        judged=judgement and _judged(judgement),
        machines=machines,
        columns=[(_sentence(metrics.pop()) if len(metrics) == 1 else "Metric", "num"), *_COLUMNS],
        rows=rows,
        filters=_filters(records),
        legend=[(name, index % 8, Markup(shape(index))) for index, name in enumerate(backends)],
        plots=_plots(found, numbers, backends, machines),
        layered=[index for index, record in enumerate(records) if record.get("layers")],
        sensitivities=[(row.name, row.machine, found) for row in rows if (found := heat_map(row.record))],
        history=_history(series, rows),
        changes=changes_by_save(series),
        footnotes=footnotes(records, verbose=True),
        costs=_costs([record for record in latest.values() if record["kind"] in _COSTED]),
        environments=_environments(runs),
    )


def _latest(runs: Sequence[Run]) -> dict[tuple[str, str], Record]:
    """The last record of every case on every machine, by machine and name."""
    return {(machine(run, record), record_name(record)): record for run in runs for record in run.records}


def _costs(records: Sequence[Record]) -> list[tuple[str, str]]:
    """What quantizers cost, ours and other libraries', as plain tables."""
    ours, peers = ([record for record in records if record["kind"] == kind] for kind in _COSTED)
    found = [("What each quantizer costs", cost_table(ours))] if ours else []
    return found + ([("Other libraries' quantizers beside ours", peer_table(peers))] if peers else [])


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a script element: no character of it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


_COLUMNS = (
    ("Δ to float", "num"),
    ("Agreement", "num"),
    ("MB", "num"),
    ("ms", "num"),
    ("Speed", "num"),
    ("Bits/weight", "num"),
    ("Native %", "num"),
    ("Evidence", ""),
    ("Leads in", ""),
)


def _cells(record: Record, fronted: dict[int, list[str]], names_metric: bool) -> list[Cell]:
    accuracy, size, speed = record["accuracy"], record["size"], record["speed"]
    metric, _, own = (metric_text(record) if accuracy.get("value") is not None else NULL).rpartition(" ")
    agreement, native = record["fidelity"].get("agreement"), record["coverage"].get("operators_native")
    delta, bits, p50, ratio = accuracy.get("delta"), size.get("bits_per_weight"), speed.get("p50"), speed.get("ratio")
    on = fronted.get(id(record), [])
    return [
        Cell(own, accuracy.get("value"), metric if names_metric else "", accuracy.get("reason") or ""),
        Cell(delta_text(record), delta, reason=accuracy.get("reason") or "", tone=_tone(record)),
        _number(agreement, agreement and f"{100 * agreement:.1f}", record["fidelity"]),
        _number(size.get("bytes"), size.get("bytes") and three_digits(size["bytes"] / 1e6), size),
        _number(p50, p50 and three_digits(1000 * p50), speed),
        Cell(speed_text(record), ratio, reason=speed.get("reason") or ""),
        _number(bits, bits and f"{bits:.2f}", size),
        _number(native, native is not None and f"{100 * native:.0f}", record["coverage"]),
        Cell(record["evidence"], record["evidence"]),
        Cell(", ".join(on), -len(on)),
    ]


def _number(value: float | None, text: str | None, section: dict) -> Cell:
    return Cell(NULL, None, reason=section.get("reason") or "") if value is None else Cell(str(text), value)


def _tone(record: Record) -> str:
    """``bad`` or ``good`` where the interval of the change excludes none."""
    bounds = record["accuracy"].get("ci95")
    if not bounds or bounds[0] <= 0 <= bounds[1]:
        return ""
    return "good" if (bounds[0] > 0) == (record["accuracy"].get("better") == "higher") else "bad"


def _fronted(found: Sequence[Front]) -> dict[int, list[str]]:
    """The costs against which a record is on the front, by the record's identity."""
    named: dict[int, list[str]] = {}
    for front in found:
        for group in front.sets:
            named.setdefault(id(group.leader.record), []).append(COSTS[front.cost])
    return named


def _advice(rows: Sequence[Row], machines: Sequence[str]) -> list[str]:
    """A sentence for each model on each machine."""
    found = []
    for place in machines:
        for model in sorted({row.record["case"]["model"] for row in rows if row.machine == place}):
            about = [row.record for row in rows if row.machine == place and row.record["case"]["model"] == model]
            found.append(advise(about) + (f" ({place})" if len(machines) > 1 else ""))
    return list(dict.fromkeys(found))


def _judged(judgement: Judgement) -> dict[str, Any]:
    ranked = sorted(judgement.findings, key=lambda finding: (_VERDICTS.index(finding.verdict), -_excess(finding)))
    records = {record_name(record): record for record in judgement.head.records}
    regressed = any(finding.verdict == "regressed" for finding in ranked)
    words = {"pass": "Pass", "inconclusive": "Inconclusive", "regressed": "Regressed" if regressed else "Failed"}
    return {
        "verdict": judgement.verdict,
        "word": words[judgement.verdict],
        "headline": _sentence(headline(judgement).removeprefix("FAILED ").removeprefix("Passed ")),
        "base": judgement.base,
        "findings": [_finding(finding, records[finding.case]) for finding in ranked],
        "open": sum(finding.verdict in ("regressed", "inconclusive") for finding in ranked),
        "sections": [(name, lines) for name, lines, _ in sections(judgement) if name not in _IN_TABLE],
    }


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _excess(finding: Finding) -> float:
    return (finding.loss or 0.0) / max(finding.limit.amount, 1e-12)


def _finding(finding: Finding, record: Record) -> dict[str, str]:
    def shown(value: float | None) -> str:
        return NULL if value is None else figure_text(record, finding.limit.metric, value)

    unit = _UNITS[finding.limit.unit]
    loss = NULL if finding.loss is None else f"{finding.loss:+.3g}{unit}" if finding.loss else f"0{unit}"
    between = f"{finding.interval[0]:+.3g} to {finding.interval[1]:+.3g}" if any(finding.interval or ()) else ""
    needed = f"about {finding.needed:,} samples would decide" if finding.needed else ""
    return {
        "verdict": finding.verdict,
        "case": finding.case,
        "limit": finding.limit.text,
        "base": shown(finding.base),
        "head": shown(finding.head),
        "loss": loss,
        "interval": between,
        "note": "; ".join(part for part in (finding.reason, needed) if part),
    }


def _filters(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    words = {axis: sorted({record["case"][axis] for record in records}) for axis in _AXES}
    return [*words.items(), ("evidence", sorted({record["evidence"] for record in records}))]


def _plots(
    found: Sequence[tuple[str, Front]], numbers: dict[int, int], backends: Sequence[str], machines: Sequence[str]
) -> list[dict[str, Any]]:
    """The plots of each model on each machine, with the same in words."""
    groups: dict[tuple[str, str], list[Front]] = {}
    for place, front in found:
        groups.setdefault((front.model, place), []).append(front)
    return [
        {
            "model": model,
            "title": model if len(machines) == 1 else f"{model} on {place}",
            "figures": [
                (Markup(scatter(front, numbers, backends)), COSTS[front.cost], front, front_text(front))
                for front in group
            ],
        }
        for (model, place), group in sorted(groups.items())
    ]


def _series(runs: Sequence[Run]) -> list[Series]:
    """Every series of at least two saves, those that changed first; agreement only where there is no accuracy."""
    found = [one for metric in _HISTORY for one in histories(runs, metric)]
    series = [one for one in found if len(one.values) > 1 and one.last["kind"] not in _COSTED]
    labelled = {one.case for one in series if one.metric == "accuracy"}
    series = [one for one in series if one.metric != "agreement" or one.case not in labelled]
    return sorted(series, key=lambda one: (not one.changes, one.case, one.machine))


def _history(series: Sequence[Series], rows: Sequence[Row]) -> list[dict[str, Any]]:
    numbers = {(row.machine, row.name): index for index, row in enumerate(rows)}
    return [
        {
            "row": numbers[one.machine, one.case],
            "series": one,
            "metric": one.last["accuracy"]["metric"] if one.metric == "accuracy" else one.metric,
            "spark": Markup(sparkline_svg(one.values, [(c.index, c.better) for c in one.changes], _in_words(one))),
            "changes": [(change, one.step_text(change)) for change in one.changes],
        }
        for one in series
    ]


def _in_words(series: Series) -> str:
    ends = f"{series.text(series.values[0])} to {series.text(series.values[-1])}"
    return f"{len(series.values)} saves, from {ends}, lowest {series.text(min(series.values))}"


def _environments(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What is known of each run, the newest first."""
    found = []
    for run in reversed(runs):
        described = environment_of(run, run.records[0])
        facts = {
            "Processor": described.get("cpu"),
            "Instructions": instructions(described),
            "Threads": described.get("threads"),
            "System": described.get("system"),
            "Python": described.get("python"),
            "Libraries": ", ".join(f"{name} {version}" for name, version in (described.get("versions") or {}).items()),
            "Commit": _commit(run),
            "Selection": _pairs_text(run.quant.get("selection")),
            "Settings": _pairs_text(run.quant.get("settings")),
        }
        facts = {name: value for name, value in facts.items() if value not in (None, "")}
        found.append({"name": save_name(run), "run": run, "facts": facts, "complete": run.quant.get("complete", True)})
    return found


def _commit(run: Run) -> str:
    words = [run.commit.get("id"), run.commit.get("branch"), "with local changes" if run.commit.get("dirty") else ""]
    return ", ".join(str(word) for word in words if word)


def _pairs_text(holder: dict[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (holder or {}).items() if value not in (None, "", [], {}))


def _details(record: Record) -> dict[str, Any]:
    """What is known of a record, the sections a reader asks for first; its case is the title already."""
    found = {name: value for name, value in flat(record).items() if value not in (None, "")}
    sections = sorted({name.partition(".")[0] for name in found} - {"case"}, key=_section_rank)
    return {name: found[name] for section in sections for name in found if name.partition(".")[0] == section}


def _section_rank(section: str) -> int:
    return _FIRST.index(section) if section in _FIRST else len(_FIRST)


def _script_data(rows: Sequence[Row]) -> Markup:
    """The details of every row, as columns and values; names of layers, which cases share, are kept once."""
    details = [_details(row.record) for row in rows]
    columns = list(dict.fromkeys(name for detail in details for name in detail))
    numbers = {name: index for index, name in enumerate(columns)}
    names: dict[tuple[str, ...], int] = {}
    layers = {}
    for index, row in enumerate(rows):
        found = row.record.get("layers") or []
        if found:
            key = tuple(str(layer["name"]) for layer in found)
            layers[index] = [names.setdefault(key, len(names)), [layer.get("error") for layer in found]]
    return script_json(
        {
            "columns": columns,
            "rows": [[part for name, value in detail.items() for part in (numbers[name], value)] for detail in details],
            "layerNames": list(names),
            "layers": layers,
        }
    )
