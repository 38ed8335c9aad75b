"""What a judgement says, in words: the verdict first, then what shuts the gate, what is open, and what passed."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from reports.words import some

if TYPE_CHECKING:
    from reports.judgement import Finding, Judgement, Verdict
    from reports.runs import Run

_UNITS = {"points": " pp", "percent": " %", "absolute": ""}


class Section(NamedTuple):
    """What is said under one heading; ``count`` is what the lines speak of, of which one line may name several."""

    heading: str
    lines: list[str]
    count: int


def verdict_text(judgement: "Judgement", inconclusive_fails: bool = False, verbose: bool = False) -> str:
    """The judgement as plain text; what passed is a count unless ``verbose``."""
    parts = [headline(judgement, inconclusive_fails)]
    for heading, lines, count in sections(judgement):
        if heading == "passed" and not verbose:
            parts.append(f"passed: {count}; -v lists them")
        else:
            parts.append("\n".join([f"{heading}:", *(f"  {line}" for line in lines)]))
    return "\n".join(parts)


def verdict_markdown(judgement: "Judgement", inconclusive_fails: bool = False) -> str:
    """The judgement for a comment: what shuts the gate stands open, everything else is folded."""
    parts = [f"**{headline(judgement, inconclusive_fails)}**"]
    shutting = {"problems", "regressed", "lost", "newly failed"} | ({"inconclusive"} if inconclusive_fails else set())
    for heading, lines, count in sections(judgement):
        items = "\n".join(f"- {line}" for line in lines)
        if heading in shutting:
            parts.append(f"{heading.capitalize()}:\n\n{items}")
        else:
            title = f"{heading.capitalize()} ({count})"
            parts.append(f"<details><summary>{title}</summary>\n\n{items}\n\n</details>")
    return "\n\n".join(parts)


def headline(judgement: "Judgement", inconclusive_fails: bool = False) -> str:
    """One sentence: whether the gate is shut, why, and what was compared."""
    against = f"against {name_of(judgement.base)}"
    findings = judgement.findings
    counts = [
        _count(len(judgement.problems), "problem"),
        *(_of(findings, verdict) for verdict in ("regressed", "inconclusive", "not judged")),
        f"{len(judgement.lost)} lost" if judgement.lost else "",
        f"{len(judgement.failed)} newly failed" if judgement.failed else "",
    ]
    details = ", ".join(count for count in counts if count)
    if judgement.fails(inconclusive_fails):
        return f"FAILED {against}: {details}."
    passed = f"{len(_with(findings, 'pass'))} of {_count(len(findings), 'check')} passed"
    return f"Passed {against}: {passed}{', ' if details else ''}{details}."


def name_of(run: "Run") -> str:
    """What a run's file is called, such as ``0003_main``."""
    return run.path.name.removesuffix(".json")


def sections(judgement: "Judgement") -> list[Section]:
    """What there is to say under each heading, the worst first; headings with nothing to say are left out."""
    findings = judgement.findings
    unjudged = {_label(finding): finding.reason or "" for finding in _with(findings, "not judged")}
    elsewhere = judgement.elsewhere
    found = [
        _section("problems", judgement.problems),
        _section("regressed", map(finding_text, _worst_first(_with(findings, "regressed")))),
        _section("lost", [f"{case}: {why}" for case, why in judgement.lost.items()]),
        _section("newly failed", [f"{case}: {how}" for case, how in judgement.failed.items()]),
        _section("inconclusive", map(finding_text, _worst_first(_with(findings, "inconclusive")))),
        Section("not judged", gathered(unjudged), len(unjudged)),
        Section("ran elsewhere, so times are not compared", gathered(elsewhere), len(elsewhere)),
        _section("new", judgement.added),
        _section("notes", judgement.notes),
        _section("passed", map(finding_text, _with(findings, "pass"))),
    ]
    return [section for section in found if section.count]


def _section(heading: str, lines: Iterable[str]) -> Section:
    lines = list(lines)
    return Section(heading, lines, len(lines))


def finding_text(finding: "Finding") -> str:
    """``minilm-rtn-int4-torch accuracy:1pp: 0.946 -> 0.928, 1.8 pp worse [0.6, 3.1], p .002, 500 samples``."""
    parts = []
    if finding.base is not None and finding.head is not None:
        parts.append(f"{finding.base:.4g} -> {finding.head:.4g}")
    if finding.loss is not None:
        parts.append(_loss(finding))
    if finding.p_value is not None and finding.verdict != "pass":
        parts.append(f"p {finding.p_value:.2g}")
    if finding.samples is not None:
        parts.append(f"{finding.samples} samples")
    if finding.needed is not None:
        parts.append(f"about {finding.needed} would decide")
    if finding.reason:
        parts.append(finding.reason)
    return f"{_label(finding)}: {', '.join(parts)}" if parts else _label(finding)


def _loss(finding: "Finding") -> str:
    word, unit = ("better" if finding.loss < 0 else "worse"), _UNITS[finding.limit.unit]
    text = f"{abs(finding.loss):.3g}{unit} {word}" if finding.loss else "no change"
    if finding.interval is not None:
        # Adding zero takes the sign off a zero.
        low, high = (bound + 0.0 for bound in finding.interval)
        text += f" (loss between {low:.3g} and {high:.3g}{unit})"
    return text


def _label(finding: "Finding") -> str:
    return f"{finding.case} {finding.limit.text}"


def _with(findings: "Sequence[Finding]", verdict: "Verdict") -> "list[Finding]":
    return [finding for finding in findings if finding.verdict == verdict]


def _of(findings: "Sequence[Finding]", verdict: str) -> str:
    number = len(_with(findings, verdict))
    return f"{number} {verdict}" if number else ""


def _worst_first(findings: "Sequence[Finding]") -> "list[Finding]":
    """By how many times its limit each exceeds, so that metrics of different units share an order."""

    def excess(finding: "Finding") -> float:
        return (finding.loss or 0.0) / max(finding.limit.amount, 1e-12)

    return sorted(findings, key=excess, reverse=True)


def gathered(reasons: dict[str, str]) -> list[str]:
    """One line for each reason, with the first few it concerns."""
    named: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        named.setdefault(reason, []).append(name)
    return [f"{some(names)}: {reason}" for reason, names in named.items()]


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}" if number else ""
