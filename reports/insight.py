"""Which methods win on which family of networks, and by how much, from records of several models.

Methods compete within a contest: one model, one width of weights, activations quantized or not. On each backend they
are paired sample by sample. First the model's own metric decides. It rarely tells good methods apart, so among those
that it cannot, the error of the outputs does: every sample tells it, whether or not an answer flips. A method is behind
only where a paired test says so, at a level divided by the number of pairs in the contest (Bonferroni); else it is
tied.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tabulate import tabulate

from reports.comparison import change_text
from reports.figures import figure, higher_is_better
from reports.findings import LEVEL, Finding, Pair, finding_of
from reports.limits import Limit
from reports.measures import is_share
from reports.record import Record, record_name
from reports.runs import Run
from reports.tables import NULL
from reports.words import some

PLAIN = ("rtn", "static_plain")
"""Rounding to nearest: of weights alone, and of weights and activations within the ranges that were seen."""
_NATIVE = {"native": "weight_only", "native_static": "static", "native_dynamic": "dynamic"}
_ERROR = Limit("error", math.inf, "percent", "*", "error")
_UNITS = {"points": " pp", "percent": " %"}
_NOTES = (
    "by: the model's own metric where it shows one method to be best; else the error of the outputs, among those tied.",
    "over: change from that method to the winner on the same samples, ± 95 %, where it is smallest of these backends.",
    "over rtn: of weights and activations both, over static_plain. pp: points; %: of the other method's figure.",
    "tie: no method is shown to be better by a paired test, at 5 % over all pairs of the row.",
)


@dataclass(frozen=True, order=True)
class Contest:
    """What methods compete in: family and model, bits, and whether activations are quantized too."""

    family: str
    model: str
    activations: bool
    bits: str


@dataclass(frozen=True, eq=False)
class Contender:
    """A method's record, and the run it is of."""

    run: Run
    record: Record

    @property
    def method(self) -> str:
        return self.record["case"]["method"]


@dataclass(frozen=True)
class Win:
    """The outcome of a contest on one backend.

    winners     methods that no other is shown to be better than, the best by its figure first; several are tied
    own         what the model's own metric is called
    by_error    whether the error of the outputs decided, because the own metric could not
    tied        how many methods the own metric could not tell apart
    competed    how many there were
    over_plain  the winner's change from plain rounding, None where that does not compete or is among the winners
    over_next   the winner's change from the method that comes next, None where the winners are tied
    next        that method
    """

    backend: str
    winners: tuple[str, ...]
    own: str
    by_error: bool
    tied: int
    competed: int
    over_plain: Finding | None
    over_next: Finding | None
    next: str | None


@dataclass(frozen=True)
class Insight:
    """A contest's outcomes on the backends on which at least two methods competed."""

    contest: Contest
    wins: list[Win]

    @property
    def held(self) -> list[Win]:
        """The outcome on most backends, on each of them: where it leads by least first."""
        outcomes = [win.winners for win in self.wins]
        usual = max(outcomes, key=outcomes.count)
        return sorted((win for win in self.wins if win.winners == usual), key=_lead)


def insights(runs: Sequence[Run]) -> list[Insight]:
    """The outcome of every contest in these runs; of several records of a case the last saved counts."""
    found: dict[Contest, dict[str, dict[str, Contender]]] = {}
    for run in sorted(runs, key=lambda run: run.saved or ""):
        for record in run.records:
            contest = _contest(record)
            if contest and _keeps_samples(record):
                backend = found.setdefault(contest, {}).setdefault(record["case"]["backend"], {})
                backend[record["case"]["method"]] = Contender(run, record)
    decided = {
        contest: [_decide(backend, list(members.values())) for backend, members in backends.items() if len(members) > 1]
        for contest, backends in sorted(found.items())
    }
    return [Insight(contest, wins) for contest, wins in decided.items() if wins]


def insight_table(runs: Sequence[Run], format: Literal["simple", "github"] = "simple") -> str:
    """A row for each contest, by family; empty where no two methods competed in any."""
    rows = [_row(insight) for insight in insights(runs)]
    if not rows:
        return ""
    headers = ["family", "model", "bits", "winner", "by", "over rtn", "over the next", "on"]
    align = ["left", "left", "left", "left", "left", "right", "right", "left"]
    drawn = tabulate(rows, headers, tablefmt=format, disable_numparse=True, colalign=align)
    lines = [*_NOTES, *_left_out(runs)]
    if format == "github":
        return drawn + "\n\n" + "\n".join(f"- {line}" for line in lines)
    return "\n".join([drawn, *lines])


def _contest(record: Record) -> Contest | None:
    case = record["case"]
    family = record["scheme"].get("family") or _NATIVE.get(case["method"])
    if record["kind"] != "inference" or family in (None, "float"):
        return None
    return Contest(record["model"].get("family") or "unknown", case["model"], family != "weight_only", case["bits"])


def _keeps_samples(record: Record) -> bool:
    return bool(record["scores"].get("squared_error"))


def _left_out(runs: Sequence[Run]) -> Iterator[str]:
    cases = sorted({record_name(r) for run in runs for r in run.records if _contest(r) and not _keeps_samples(r)})
    if cases:
        yield f"left out, because their records keep no outcomes of single samples: {some(cases)}"


def _decide(backend: str, members: Sequence[Contender]) -> Win:
    limit = _own_limit(members)
    by_own, behind = _ranked(members, limit)
    by_error, tied = len(by_own) > 1, by_own
    if by_error:
        limit = _ERROR
        tied, behind = _ranked(by_own, limit)
    leader, alone = tied[0], len(tied) == 1
    plain = next((one for one in members if one.method in PLAIN and one not in tied), None)
    return Win(
        backend,
        tuple(one.method for one in tied),
        own=leader.record["accuracy"].get("metric") or "agreement",
        by_error=by_error,
        tied=len(by_own),
        competed=len(members),
        over_plain=plain and _change(plain, leader, limit),
        over_next=_change(behind[0], leader, limit) if alone else None,
        next=behind[0].method if alone else None,
    )


def _own_limit(members: Sequence[Contender]) -> Limit:
    """What the model's own metric is compared in: its accuracy, or agreement with float where there are no labels."""
    records = [one.record for one in members]
    for metric in ("accuracy", "agreement"):
        if all(figure(record, metric) for record in records):
            share = metric == "agreement" or all(map(is_share, records))
            return Limit(metric, math.inf, "points" if share else "percent", "*", metric)
    return _ERROR


def _ranked(members: Sequence[Contender], limit: Limit) -> tuple[list[Contender], list[Contender]]:
    """Those tied with the best by its figure, the best first, and those shown to be behind it, the nearest first."""
    higher = higher_is_better(members[0].record, limit.metric)
    leader, *others = sorted(members, key=lambda one: figure(one.record, limit.metric).value, reverse=higher)
    changes = [_change(other, leader, limit) for other in others]
    # Which one leads is seen from the same samples, so this is one test of every pair there could have been.
    level = LEVEL / math.comb(len(members), 2)
    behind = [
        other
        for other, change in zip(others, changes, strict=True)
        if change.p_value is not None and change.p_value < level and change.loss < 0
    ]
    return [leader, *(other for other in others if other not in behind)], behind


def _change(before: Contender, after: Contender, limit: Limit) -> Finding:
    return finding_of(Pair(before.run, after.run, before.record, after.record), limit)


def _lead(win: Win) -> tuple[bool, float]:
    """Orders backends from the smallest lead: one in error alone is less than one in the model's own metric."""
    lead = win.over_plain or win.over_next
    return not win.by_error, abs(lead.loss) if lead and lead.loss is not None else math.inf


def _row(insight: Insight) -> list[str]:
    contest, held = insight.contest, insight.held
    win = held[0]
    alone = len(win.winners) == 1
    beaten = "tie" if not alone and set(PLAIN) & set(win.winners) else NULL
    return [
        contest.family,
        contest.model,
        f"{contest.bits}, activations too" if contest.activations else contest.bits,
        win.winners[0] if alone else f"tie: {some(win.winners)}",
        f"error; {win.tied} of {win.competed} tie in {win.own}" if win.by_error else win.own,
        _lead_text(win.over_plain) if win.over_plain else beaten,
        f"{_lead_text(win.over_next)} ({win.next})" if win.over_next else NULL,
        _places(insight, held),
    ]


def _lead_text(change: Finding) -> str:
    return NULL if change.loss is None else change_text(change, 1, _UNITS[change.limit.unit])


def _places(insight: Insight, held: Sequence[Win]) -> str:
    """The backends on which it holds, and what won on the others."""
    others = [f"{win.backend}: {some(win.winners)}" for win in insight.wins if win not in held]
    return "; ".join([", ".join(sorted(win.backend for win in held)), *others])
