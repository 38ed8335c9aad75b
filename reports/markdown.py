"""A run as Markdown for a pull request: the verdict and the worst cases, everything else folded, within a comment."""

from collections.abc import Iterator

from reports.advice import advise
from reports.embed import machine_line
from reports.judgement import Judgement
from reports.pareto import front_text, fronts
from reports.record import Record
from reports.runs import Run
from reports.summary import summary
from reports.tables import table
from reports.verdicts import headline, sections
from reports.words import counted

LIMIT = 65_536
"""How many characters GitHub takes in a comment."""
WORST = 10
"""How many lines of a kind stand open."""
_OPEN = ("problems", "regressed", "lost", "newly failed", "inconclusive")
_MARKS = {"pass": "✅", "regressed": "❌", "inconclusive": "❔"}


def comment(run: Run, judgement: Judgement | None = None) -> str:
    """The comment, at most ``LIMIT`` characters; what does not fit is named in its place.

    Without a judgement it begins with the advice and the cases that lost most against float.
    """
    parts = _judged(judgement) if judgement else _advised(run)
    kept, room = [], LIMIT - 1
    for part in [*parts, *_appendix(run, judgement)]:
        shown = part if len(part) + 2 <= room - 400 else _in_place_of(part)
        if len(shown) + 2 <= room:
            kept.append(shown)
            room -= len(shown) + 2
    return "\n\n".join(kept) + "\n"


def _judged(judgement: Judgement) -> Iterator[str]:
    yield f"### {_MARKS[judgement.verdict]} {_plain(headline(judgement))}"
    for heading, lines, count in sections(judgement):
        items = [f"- {_plain(line)}" for line in lines]
        if heading in _OPEN:
            yield f"**{heading.capitalize()}**\n\n" + "\n".join(items[:WORST])
            items = items[WORST:]
            heading, count = f"more {heading}", len(items)
        if items:
            yield _folded(f"{heading.capitalize()} ({count})", "\n".join(items))


def _advised(run: Run) -> Iterator[str]:
    yield f"### {_plain(advise(run.records))}"
    losing = sorted((record for record in run.records if _loss(record) > 0), key=_loss, reverse=True)
    if losing:
        yield f"**Largest losses against float**\n\n{table(losing[:WORST], format='github')}"


def _loss(record: Record) -> float:
    """What was lost for sure: the near end of the interval, as a share of float's value."""
    accuracy = record["accuracy"]
    bounds, baseline = accuracy.get("ci95"), accuracy.get("baseline")
    if not bounds or not baseline:
        return 0.0
    return max(0.0, (-bounds[1] if accuracy["better"] == "higher" else bounds[0]) / abs(baseline))


def _appendix(run: Run, judgement: Judgement | None) -> Iterator[str]:
    if judgement:
        yield _folded("Advice", _plain(advise(run.records)))
    found = fronts(run.records)
    if found:
        yield _folded("Fronts", "\n\n".join(f"```\n{front_text(one)}\n```" for one in found))
    yield _folded("Where it ran", _plain(machine_line(run)))
    yield _folded(f"All of {counted(len(run.records), 'case')}", summary(run.records, format="github"))


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _in_place_of(part: str) -> str:
    title = part.partition("<summary>")[2].partition("</summary>")[0] or part.partition("\n")[0]
    return f"{title}: too long for a comment; see the HTML report."


def _plain(text: str) -> str:
    """Text in which Markdown, and HTML, mean nothing."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#~" else letter for letter in escaped)
