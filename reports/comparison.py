"""Two runs side by side: what changed in each case, whether or not anyone set a limit on it."""

import math
from typing import Literal

from tabulate import tabulate

from reports.findings import Finding, Pair, finding_of
from reports.judgement import Judgement, pairs_of
from reports.limits import Limit
from reports.measures import is_share
from reports.record import Record
from reports.tables import NULL, margin, metric_text, rounded
from reports.words import some

_NOTES = (
    "Changes from the first run to the second, ± 95 %; of shares in points. Speed: time of float / time of case.",
    "= the same outputs, bit for bit. ! the interval excludes no change, to the worse; + to the better.",
)


def comparison(judgement: Judgement, all_cases: bool = False, format: Literal["simple", "github"] = "simple") -> str:
    """The table of all cases that both runs hold; those where nothing changed are counted unless all are asked for."""
    pairs = pairs_of(judgement.base, judgement.head)
    rows = [_row(pair) for pair in pairs]
    shown = [row for row in rows if all_cases or _is_changed(row)]
    parts = [tabulate(shown, _HEADERS, tablefmt=format, disable_numparse=True, colalign=_ALIGN)] if shown else []
    hidden = len(rows) - len(shown)
    lines = [*_NOTES] if shown else []
    lines += [f"{hidden} case{'' if hidden == 1 else 's'} without a change"] if hidden else []
    lines += _differences(judgement)
    bullet = "- " if format == "github" else ""
    return "\n\n".join(filter(None, [*parts, "\n".join(f"{bullet}{line}" for line in lines)]))


_HEADERS = ("case", "metric", "change", "error", "speed", "change", "MB", "change")
_ALIGN = ("left", "left", "right", "right", "right", "right", "right", "right")
_SAME = "="


def _row(pair: Pair) -> list[str]:
    own = "accuracy" if pair.after["accuracy"].get("value") is not None else "agreement"
    share = own == "agreement" or is_share(pair.after)
    return [
        pair.name,
        metric_text(pair.after),
        _change(pair, Limit(own, math.inf, "points" if share else "absolute", "*", own), 1 if share else 3),
        _change(pair, Limit("error", math.inf, "percent", "*", "error"), 1, " %"),
        _speed(pair.after),
        _change(pair, Limit("speed", math.inf, "percent", "*", "speed"), 1, " %"),
        _megabytes(pair.after),
        _change(pair, Limit("size", math.inf, "percent", "*", "size"), 1, " %"),
    ]


def _change(pair: Pair, limit: Limit, decimals: int, unit: str = "") -> str:
    finding = finding_of(pair, limit, tested=False)
    if finding is None or finding.loss is None:
        return NULL
    text = change_text(finding, decimals, unit)
    return text if text == _SAME else _flag(finding) + text


def change_text(finding: Finding, decimals: int, unit: str = "") -> str:
    """``-0.6 ±1.2`` and the unit: the change of a figure, of which the loss is known, in the limit's unit; ``=``."""
    if finding.interval == (0.0, 0.0) or (finding.interval is None and finding.loss == 0):
        return _SAME
    sign = -1.0 if _higher(finding) else 1.0
    change = sign * finding.loss
    bounds = sorted(sign * bound for bound in finding.interval or ())
    return rounded(change, decimals, "+") + margin(change, bounds, decimals, "+") + unit


def _higher(finding: Finding) -> bool:
    """Whether a positive loss is a fall of the figure."""
    return (finding.head - finding.base) * finding.loss < 0 if finding.loss else False


def _flag(finding: Finding) -> str:
    if finding.interval is None:
        return ""
    low, high = finding.interval
    return "! " if low > 0 else "+ " if high < 0 else ""


def _is_changed(row: list[str]) -> bool:
    """Whether outputs differ, or a figure with noise differs by more than that, or one without noise at all."""
    _, _, *outputs, _, speed, _, size = row
    return not {*outputs, size} <= {_SAME, NULL} or speed.startswith(("! ", "+ "))


def _speed(record: Record) -> str:
    ratio = record["speed"].get("ratio")
    return NULL if ratio is None else f"{ratio:.2f}×"


def _megabytes(record: Record) -> str:
    size = record["size"].get("bytes")
    return NULL if size is None else f"{size / 1e6:.3g}"


def _differences(judgement: Judgement) -> list[str]:
    """What a reader of the table must know besides: cases of one run alone, and where the other ran."""
    lines = [f"only in the first: {name} ({why})" for name, why in judgement.lost.items()]
    lines += [f"fails in the second: {name} ({how})" for name, how in judgement.failed.items()]
    lines += [f"only in the second: {some(judgement.added)}"] if judgement.added else []
    places: dict[str, list[str]] = {}
    for name, where in judgement.elsewhere.items():
        places.setdefault(where, []).append(name)
    return lines + [f"ran elsewhere, so times are not compared: {some(n)} ({where})" for where, n in places.items()]
