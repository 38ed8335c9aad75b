"""A recommendation as text, Markdown or JSON: the case to ship in a sentence, then every alternative beside it."""

import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

from tabulate import tabulate

from reports.advice import in_words
from reports.comparison import change_text
from reports.findings import Finding
from reports.recommendation import Alternative, Candidate, Recommendation
from reports.tables import NULL, WIDTH, delta_text, metric_text, three_digits
from reports.verdicts import gathered

Format = Literal["simple", "github"]

_NOTES = (
    "to float: change of the model's own metric from float, of shares in points, ± 95 %.",
    "n: how many samples would decide. ms: only where the runtime itself ran quantized, and was not refused.",
)
_OF_ALTERNATIVES = "accuracy, size, speed: what changes with this case instead of the recommended one, ± 95 %."
# The figure stands in the row already.
_SHOWN = ("inconclusive", "too lossy", "too large", "too slow")


def recommendation_text(recommendations: Sequence[Recommendation], format: Format = "simple") -> str:
    """For each model the best on any backend, then for each backend the best there and its alternatives."""
    parts = []
    for _, group in groupby(recommendations, key=lambda one: (one.case["model"], one.machine)):
        parts += _about_model(list(group), format)
    notes = [*_NOTES, _OF_ALTERNATIVES] if any(one.best for one in recommendations) else _NOTES
    return "\n\n".join([*parts, _lines(notes, format)])


def recommendation_json(recommendation: Recommendation) -> dict[str, Any]:
    """The same in plain JSON types; sizes in bytes, times in seconds, losses positive where something is lost."""
    best = recommendation.best
    requirements = recommendation.requirements
    return {
        "run": str(recommendation.run.path),
        "machine": recommendation.machine,
        "model": recommendation.case["model"],
        "family": recommendation.family,
        "backend": recommendation.case["backend"],
        "max_drop": [limit.text for limit in requirements.drops],
        "max_size": requirements.max_size,
        "max_latency": requirements.max_latency,
        "verdict": "none" if best is None else "faster than float" if best.is_faster else "for size alone",
        "sentence": in_words(recommendation.candidates, requirements),
        "ship": best and _candidate_json(best),
        "alternatives": [_alternative_json(one) for one in recommendation.alternatives],
    }


def _about_model(group: Sequence[Recommendation], format: Format) -> list[str]:
    first = group[0]
    title = f"{first.case['model']} ({first.family}), {first.machine}"
    everything = [candidate for one in group for candidate in one.candidates]
    sentence = f"{in_words(everything, first.requirements)}."
    overall = [_wrapped(f"On any backend: {sentence}", format)] if len(group) > 1 else []
    return [f"### {title}" if format == "github" else title, *overall, *(_about_backend(one, format) for one in group)]


def _about_backend(recommendation: Recommendation, format: Format) -> str:
    backend, sentence = recommendation.case["backend"], in_words(recommendation.candidates, recommendation.requirements)
    head = _wrapped(f"**{backend}**: {sentence}." if format == "github" else f"{backend}: {sentence}.", format)
    others = recommendation.alternatives
    if not others:
        return head
    headers = ["instead" if recommendation.best else "case", "verdict", "to float", "MB", "ms"]
    headers += ["accuracy", "size", "speed"] if recommendation.best else []
    rows = [_row(one, len(headers)) for one in others]
    align = ["left", "left", *["right"] * (len(headers) - 2)]
    drawn = tabulate(rows, headers, tablefmt=format, disable_numparse=True, colalign=align)
    reasons = _reasons([one.candidate for one in others])
    lines = [_lines(reasons, format)] if reasons else []
    return ("\n\n" if format == "github" else "\n").join([head, drawn, *lines])


def _reasons(candidates: Sequence[Candidate]) -> list[str]:
    """Why cases do not qualify, where their rows do not say it already."""
    told: dict[str, dict[str, str]] = {}
    for candidate in candidates:
        for word, reason in candidate.obstacles:
            if reason and word not in _SHOWN:
                told.setdefault(word, {})[_short(candidate)] = f"{word}: {reason}"
    return [line for reasons in told.values() for line in gathered(reasons)]


def _row(alternative: Alternative, width: int) -> list[str]:
    record, losses = alternative.candidate.record, alternative.losses
    size = record["size"].get("bytes")
    own = next((loss for name, loss in losses.items() if name not in ("size", "speed")), None)
    cells = [
        _short(alternative.candidate),
        _verdict(alternative.candidate),
        delta_text(record) if record["accuracy"].get("delta") is not None else metric_text(record),
        NULL if size is None else three_digits(size / 1e6),
        _milliseconds(alternative.candidate),
        _change(own, 1, " %" if own and own.limit.unit == "percent" else ""),
        *(_change(losses.get(name), 0, " %") for name in ("size", "speed")),
    ]
    return cells[:width]


def _change(loss: Finding | None, decimals: int, unit: str) -> str:
    return NULL if loss is None else change_text(loss, decimals, unit)


def _short(candidate: Candidate) -> str:
    """The case without its model and backend, which stand above it."""
    case = candidate.record["case"]
    return f"{case['method']}-{case['bits']}"


def _verdict(candidate: Candidate) -> str:
    if candidate.qualifies:
        return "qualifies"
    needed = candidate.drop.needed if candidate.drop else None
    words = [
        f"{one.word} (n {needed:,})" if one.word == "inconclusive" and needed else one.word
        for one in candidate.obstacles
    ]
    return ", ".join(words)


def _milliseconds(candidate: Candidate) -> str:
    record = candidate.record
    if record["evidence"] != "measured":
        return record["evidence"]
    p50 = record["speed"].get("p50")
    if p50 is None:
        return "refused" if record["speed"].get("refused") else NULL
    return three_digits(1000 * p50)


def _lines(lines: Sequence[str], format: Format) -> str:
    if format == "github":
        return "\n".join(f"- {line}" for line in lines)
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in lines)


def _wrapped(text: str, format: Format) -> str:
    return text if format == "github" else textwrap.fill(text, WIDTH, subsequent_indent="  ")


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    record, drop = candidate.record, candidate.drop
    measured = record["evidence"] == "measured"
    return {
        "case": candidate.name,
        **record["case"],
        "qualifies": candidate.qualifies,
        "obstacles": [obstacle._asdict() for obstacle in candidate.obstacles],
        "drop": drop
        and {
            "limit": drop.limit.text,
            "verdict": drop.verdict,
            "float": drop.base,
            "value": drop.head,
            **_loss_json(drop),
            "samples": drop.samples,
            "needed": drop.needed,
        },
        "bytes": record["size"].get("bytes"),
        "evidence": record["evidence"],
        "seconds": record["speed"].get("p50") if measured else None,
        "speed": record["speed"].get("ratio") if measured else None,
    }


def _alternative_json(alternative: Alternative) -> dict[str, Any]:
    losses = {name: _loss_json(finding) for name, finding in alternative.losses.items()}
    return {**_candidate_json(alternative.candidate), "instead": losses}


def _loss_json(finding: Finding) -> dict[str, Any]:
    interval = finding.interval and list(finding.interval)
    return {"loss": finding.loss, "ci95": interval, "unit": finding.limit.unit}
