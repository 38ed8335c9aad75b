"""The table of a run: one row a case, at most 100 columns wide, every dash explained once underneath."""

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Literal

from tabulate import tabulate

from reports.measures import is_share
from reports.record import Record, case_id, record_name
from reports.words import some

WIDTH = 100
NULL = "–"

_UNSET = "none"
_AXES = ("backend", "model", "method", "bits")
_EVIDENCE_NOTES = {
    "simulated": "simulated: some operator has no native kernel here, so the time is not that of a quantized model",
    "evaluated": "evaluated: a reference evaluator read the saved model; the runtime itself runs elsewhere",
}


def table(records: Sequence[Record], verbose: bool = False, format: Literal["simple", "github"] = "simple") -> str:
    """The table of valid records with its footnotes; verbose adds columns, and may then be wider than ``WIDTH``."""
    if not records:
        return "No case was measured."
    records = sorted(records, key=order)
    columns = _COLUMNS + _VERBOSE_COLUMNS if verbose else _COLUMNS
    headers = ["case", *(header for header, _ in columns)]
    rows = [[record_name(record), *(cell(record) for _, cell in columns)] for record in records]
    if format == "github":
        return _draw(headers, rows, format) + "\n\n" + "\n".join(f"- {note}" for note in footnotes(records, verbose))
    drawn = _draw(headers, rows, format)
    if not verbose and _width(drawn) > WIDTH:
        rows = _under_headings(rows)
        drawn = _draw(headers, rows, format)
        excess = _width(drawn) - WIDTH
        if excess > 0:
            longest = max(len(row[0]) for row in rows)
            drawn = _draw(headers, rows, format, case_width=max(12, longest - excess))
    notes = [textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in footnotes(records, verbose)]
    return "\n".join([drawn, *notes])


def footnotes(records: Sequence[Record], verbose: bool = False) -> list[str]:
    """What a reader must know besides the figures: the units, why a figure is missing, what ran other than asked."""
    words = sorted({record["evidence"] for record in records} & set(_EVIDENCE_NOTES))
    return [
        "Shares in percent, their deltas in points, ± 95 %; speed: time of float / time of case, same backend.",
        *(f"{_EVIDENCE_NOTES[word]}." for word in words),
        *_reason_notes(records, verbose),
        *_coverage_notes(records),
        *_scheme_notes(records),
    ]


def metric_text(record: Record) -> str:
    """``accuracy 94.0``; without labels the agreement with float, ``agree 92.5``."""
    accuracy = record["accuracy"]
    value, agreement = accuracy.get("value"), record["fidelity"].get("agreement")
    if value is not None:
        return f"{accuracy['metric']} {_in_unit(record, value)}"
    return NULL if agreement is None else f"agree {100 * agreement:.1f}"


def delta_text(record: Record) -> str:
    """The change from float with its interval: ``-0.6 ±1.2`` in points for a share, else in the metric's own unit."""
    accuracy = record["accuracy"]
    if accuracy.get("delta") is None:
        return NULL
    scale, decimals = _unit(record)
    bounds = [scale * bound for bound in accuracy.get("ci95") or []]
    delta = scale * accuracy["delta"]
    return rounded(delta, decimals, "+") + margin(delta, bounds, decimals, "+")


def speed_text(record: Record) -> str:
    """``1.87× ±.04``: how many times faster than float on the same backend."""
    speed = record["speed"]
    ratio = speed.get("ratio")
    if ratio is None:
        return NULL
    return f"{ratio:.2f}×" + margin(ratio, speed.get("ci95") or [], 2, "")


def three_digits(value: float) -> str:
    """``1234``, ``12.3``, ``1.23``, ``0.012``."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def memory_text(record: Record) -> str:
    """``+56.5 MB (0.35×)``: by how much the process grew at most, and how many times float's growth that is."""
    memory = record["memory"]
    if memory.get("growth_bytes") is None:
        return NULL
    ratio = "" if memory.get("ratio") is None else f" ({memory['ratio']:.2f}×)"
    return f"+{three_digits(memory['growth_bytes'] / 1e6)} MB{ratio}"


def _milliseconds(record: Record) -> str:
    p50 = record["speed"].get("p50")
    return NULL if p50 is None else three_digits(1000 * p50)


def _megabytes(record: Record) -> str:
    size = record["size"].get("bytes")
    return NULL if size is None else three_digits(size / 1e6)


def _evidence(record: Record) -> str:
    return record["evidence"]


def _flips(record: Record) -> str:
    counts = record["accuracy"].get("flips")
    return f"-{counts['regressed']} +{counts['fixed']}" if counts else NULL


def _coverage(record: Record) -> str:
    names = ("parameters_quantized", "operators_native", "operators_simulated")
    shares = [record["coverage"].get(name) for name in names]
    return NULL if None in shares else " / ".join(f"{100 * share:.0f}" for share in shares)


def _figure(section: str, name: str, form: str) -> Callable[[Record], str]:
    def cell(record: Record) -> str:
        value = record[section].get(name)
        return NULL if value is None else format(value, form)

    return cell


_COLUMNS: list[tuple[str, Callable[[Record], str]]] = [
    ("metric", metric_text),
    ("delta", delta_text),
    ("MB", _megabytes),
    ("ms", _milliseconds),
    ("speed", speed_text),
    ("evidence", _evidence),
]
_VERBOSE_COLUMNS: list[tuple[str, Callable[[Record], str]]] = [
    ("flips", _flips),
    ("error", _figure("fidelity", "error", ".3g")),
    ("bits/weight", _figure("size", "bits_per_weight", ".2f")),
    ("% quantized / native / simulated", _coverage),
    ("parity", _figure("parity", "error", ".1e")),
    ("memory", memory_text),
]
# Which section explains a dash in a column.
_EXPLAINED_BY = {
    metric_text: "fidelity",
    delta_text: "accuracy",
    _megabytes: "size",
    _milliseconds: "speed",
    speed_text: "speed",
}


def _draw(headers: list[str], rows: list[list[str]], format: str, case_width: int | None = None) -> str:
    widths = [case_width, *[None] * (len(headers) - 1)] if case_width else None
    align = ["left" if header in ("case", "metric", "evidence") else "right" for header in headers]
    return tabulate(rows, headers, tablefmt=format, disable_numparse=True, colalign=align, maxcolwidths=widths)


def _width(drawn: str) -> int:
    return max(len(line) for line in drawn.splitlines())


def _under_headings(rows: list[list[str]]) -> list[list[str]]:
    """Name the model, and its metric, once in a line above its cases; heading and row together spell the id."""
    shortened = []
    for model, group in groupby(rows, key=lambda row: row[0].split("-", 1)[0]):
        cases = [[row[0].removeprefix(model), *row[1:]] for row in group]
        metrics = {row[1].rpartition(" ")[0] for row in cases if row[1] != NULL}
        metric = metrics.pop() if len(metrics) == 1 else ""
        for row in cases:
            row[1] = row[1].removeprefix(f"{metric} ") if metric else row[1]
        shortened += [[model, metric, *[""] * (len(_COLUMNS) - 1)], *cases]
    return shortened


def order(record: Record) -> tuple:
    case = record["case"]
    return (
        case["model"],
        record["kind"] != "inference",
        record["kind"],
        -_nominal_bits(case["bits"]),
        case["bits"],
        case["method"],
        case["backend"],
    )


def _nominal_bits(word: str) -> int:
    """The bits a scheme's word names: 32 of ``fp32``, 8 of ``int8`` and ``e4m3``, 4 of ``w4a8``, 0 of ``mixed``.

    Sorted from many to few, the float model leads its cases.
    """
    exponent = re.match(r"e(\d)m(\d)", word)
    if exponent:
        return 1 + int(exponent[1]) + int(exponent[2])
    digits = re.match(r"[a-z]+(\d+)", word)
    return int(digits[1]) if digits else 0


def _unit(record: Record) -> tuple[float, int]:
    """The factor to the unit shown, and the decimals: points with one, other metrics with four digits or so."""
    if is_share(record):
        return 100.0, 1
    size = abs(record["accuracy"]["value"])
    return 1.0, max(0, 3 - math.floor(math.log10(size))) if size > 0 else 3


def _in_unit(record: Record, value: float) -> str:
    scale, decimals = _unit(record)
    return f"{scale * value:.{decimals}f}"


def rounded(value: float, decimals: int, sign: str) -> str:
    text = format(value, f"{sign}.{decimals}f")
    return text if float(text) else text.lstrip("+-")


def margin(value: float, bounds: list[float], decimals: int, sign: str) -> str:
    """`` ±1.2`` where the interval is about symmetric, else `` -.7/+1.4``; never narrower than it is.

    The few intervals that leave their own estimate outside are written out: `` [low, high]``.
    """
    if not bounds:
        return ""
    below, above = value - bounds[0], bounds[1] - value
    if min(below, above) < 0:
        return f" [{rounded(bounds[0], decimals, sign)}, {rounded(bounds[1], decimals, sign)}]"
    if abs(below - above) <= max(10.0**-decimals, 0.2 * max(below, above)):
        return f" ±{_rounded_up(max(below, above), decimals)}"
    return f" -{_rounded_up(below, decimals)}/+{_rounded_up(above, decimals)}"


def _rounded_up(margin: float, decimals: int) -> str:
    unit = 10.0**-decimals
    text = f"{math.ceil(margin / unit - 1e-6) * unit:.{decimals}f}"
    return text.removeprefix("0") if float(text) else "0"


def _reason_notes(records: Sequence[Record], verbose: bool) -> list[str]:
    lacking: dict[str, list[Record]] = {}
    for record in records:
        for reason in dict.fromkeys(_reasons(record, verbose)):
            lacking.setdefault(reason, []).append(record)
    return [f"{NULL} {_scoped(reason, affected, records)}" for reason, affected in lacking.items()]


def _reasons(record: Record, verbose: bool) -> Iterable[str]:
    sections = [section for cell, section in _EXPLAINED_BY.items() if cell(record) == NULL]
    if verbose:
        cells = {"accuracy": _flips, "coverage": _coverage, "memory": memory_text}
        cells |= {section: _figure(section, "error", "g") for section in ("fidelity", "parity")}
        sections += [section for section, cell in cells.items() if cell(record) == NULL]
    for section in sections:
        if record[section].get("reason"):
            yield record[section]["reason"]


def _coverage_notes(records: Sequence[Record]) -> list[str]:
    noted: dict[str, list[Record]] = {}
    for record in records:
        provenance = record["model"].get("provenance")
        for note in [*(record["coverage"].get("notes") or []), *([provenance] if provenance else [])]:
            noted.setdefault(note, []).append(record)
    return [f"* {_scoped(note, affected, records)}" for note, affected in noted.items()]


def _scoped(text: str, affected: Sequence[Record], records: Sequence[Record]) -> str:
    scope = _scope(affected, records)
    return text if not scope or text.startswith(scope) else f"{scope}: {text}"


def _scope(affected: Sequence[Record], records: Sequence[Record]) -> str:
    """The shortest true name for these records among all: nothing for all, a backend or model, else their ids."""
    if len(affected) == len(records):
        return ""
    named = []
    for axis in _AXES:
        words = {record["case"][axis] for record in affected}
        if sum(record["case"][axis] in words for record in records) == len(affected):
            named.append(sorted(words))
    if named and len(min(named, key=len)) <= 3:
        return ", ".join(min(named, key=len))
    return some(sorted({record_name(record) for record in affected}))


def _scheme_notes(records: Sequence[Record]) -> list[str]:
    """Cases that share model, method and bits but not the scheme: their backends ran different artefacts."""
    siblings: dict[str, dict[str, dict]] = {}
    for record in records:
        name = case_id(record).rpartition("-")[0]
        siblings.setdefault(name, {})[record["case"]["backend"]] = _flat(record["scheme"])
    differences: dict[str, list[str]] = {}
    for name, schemes in siblings.items():
        differences.setdefault(_scheme_difference(schemes), []).append(name)
    differences.pop("", None)
    return [f"* {some(names)}: backends ran different schemes: {text}." for text, names in differences.items()]


def _scheme_difference(schemes: dict[str, dict[str, str]]) -> str:
    keys = sorted({key for scheme in schemes.values() for key in scheme})
    differing = [key for key in keys if len({scheme.get(key, _UNSET) for scheme in schemes.values()}) > 1]
    return "; ".join(f"{key} {_by_value(key, schemes)}" for key in differing[:2])


def _by_value(key: str, schemes: dict[str, dict[str, str]]) -> str:
    backends: dict[str, list[str]] = {}
    for backend, scheme in sorted(schemes.items()):
        backends.setdefault(scheme.get(key, _UNSET), []).append(backend)
    return ", ".join(f"{value} on {' and '.join(names)}" for value, names in backends.items())


def _flat(scheme: dict, prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in scheme.items():
        inner = _UNSET if value is None else str(value)
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": inner}
    return flat
