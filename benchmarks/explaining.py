"""What a search found, in words and as the file of a recipe."""

from collections import Counter
from collections.abc import Iterator

from tabulate import tabulate

from benchmarks.losses import Drop, outcome_text
from benchmarks.matrix import Case
from benchmarks.prices import Price, quickest_float
from benchmarks.searching import SAME_NUMBERS, Bounds, Found
from quant.search import COMES_AFTER, Loss, Step
from reports.record import plain
from reports.tables import NULL, three_digits
from reports.words import some

_ROWS = 12


def explanation(found: Found, drop: Drop, bounds: Bounds) -> str:
    """Say what was chosen and why, what every alternative would lose, and what the search cost."""
    parts = [" ".join(reasons(found, drop, bounds)) if found.chosen else nothing_holds(found, drop)]
    if found.steps:
        parts.append(_alternatives(found, drop))
    if found.answered:
        parts.append(_effort(found))
    return "\n\n".join(parts)


def reasons(found: Found, drop: Drop, bounds: Bounds) -> list[str]:
    """Return the sentences that say why the chosen candidate is the one to ship."""
    chosen = found.chosen
    sentences = [
        f"Ship {chosen.case}: {chosen.price}.",
        f"On {chosen.verified.samples} samples no look had used it {_loses(chosen.verified, drop)}; {drop} is allowed.",
    ]
    place = found.place_of(chosen.case)
    fast = _is_fast(found, chosen.price)
    if place == 0:
        sentences.append(f"Nothing that was tried is {'shown to be faster' if fast else 'smaller'}.")
    else:
        cheaper = [rung.first.id for rung, _ in found.priced[:place]]
        what = "Of what is as fast or faster" if fast else "Of what is smaller"
        sentences.append(f"{what}, nothing was shown to keep that: {some(cheaper)}.")
    if not fast:
        sentences.append("Nothing that keeps it is shown to be faster than float, so the smallest is preferred.")
    refused = [price.reason for _, price in found.priced if price.refused]
    if refused:
        sentences.append(f"{len(refused)} could not be timed and may be faster: {refused[0]}.")
    if bounds.size:
        sentences.append(f"It is within the {bounds.size / 1e6:.3g} MB it may take.")
    if bounds.latency:
        sentences.append(f"A call is within the {1e3 * bounds.latency:.3g} ms it may take.")
    if found.over:
        sentences.append("Time was over before all that is cheaper was tried.")
    return sentences


def nothing_holds(found: Found, drop: Drop) -> str:
    """Say in one sentence why nothing is recommended, and what came closest."""
    if not found.priced:
        if found.over:
            return "Time was over before anything was priced: give more, or run the same command again to go on."
        counted = Counter(reason.partition(":")[0] for reason in found.refused.values())
        why = ", ".join(f"{count} {reason}" for reason, count in counted.most_common())
        return f"No candidate fits ({why})."
    closest, why, near = found.closest, "", ""
    if found.over:
        why = " before time was over: give more, or run the same command again to go on"
    if closest:
        near = f"; the closest is {closest.candidate}, which {_loses(closest.verified or closest.loss, drop)}"
    return f"No candidate was shown to lose at most {drop}{why}{near}.{_remedy(found, drop)}"


def _remedy(found: Found, drop: Drop) -> str:
    """What would decide, where it is the number of samples that leaves the closest candidate open."""
    known = found.closest and (found.closest.verified or found.closest.loss)
    if not known or found.over or known.value > drop.limit.amount:
        return ""
    return f" {known.samples} samples leave it open: give more to judge it on, or allow a larger --max-drop."


def recipe_document(found: Found, drop: Drop, bounds: Bounds) -> dict[str, object]:
    """Return the file of the chosen recipe, in plain JSON types."""
    chosen = found.chosen
    price, verified = chosen.price, chosen.verified
    speed = {"seconds": price.seconds, "low": price.low, "high": price.high, "ratio": price.speed}
    return plain(
        {
            **chosen.recipe,
            "model": chosen.case.model,
            "backend": chosen.case.backend,
            "runtime": chosen.runtime,
            "scheme": chosen.case.scheme.as_dict(),
            "artifact_sha256": chosen.artifact_sha256,
            "size_bytes": price.size,
            "speed": {"reason": price.reason} if price.seconds is None else speed,
            "verified": {
                "metric": drop.metric,
                "unit": drop.limit.unit,
                "loss": verified.value,
                "ci95": [verified.low, verified.high],
                "samples": verified.samples,
                "tolerated": drop.limit.amount,
            },
            "limits": {"size_bytes": bounds.size, "latency_seconds": bounds.latency},
            "reasons": reasons(found, drop, bounds),
            "alternatives": dict(_fates(found, drop)),
        }
    )


def _effort(found: Found) -> str:
    """How many samples were evaluated, beside what judging every candidate would take."""
    used, candidates = 100 * found.answered / found.exhaustive, sum(len(rung.cases) for rung, _ in found.priced)
    return (
        f"{found.answered:,} samples were evaluated, float's among them: {used:.1f} % of the {found.exhaustive:,} that "
        f"judging every candidate ({candidates}) on all of them would take."
    )


def _alternatives(found: Found, drop: Drop) -> str:
    """The table of what was judged and of what would have been next, the cheapest first."""
    steps = sorted(found.steps.values(), key=lambda step: found.place_of(step.candidate))
    elsewhere = [step for step in steps if (step.reason or "").startswith(SAME_NUMBERS)]
    behind = [step for step in steps if step.reason == COMES_AFTER]
    judged = [step for step in steps if step not in elsewhere and step not in behind]
    shown = behind[: max(0, _ROWS - len(judged))]
    headers = ("candidate", "MB", "ms", "what it would lose")
    lines = [tabulate([_row(found, step, drop) for step in (*judged, *shown)], headers, disable_numparse=True)]
    if len(shown) < len(behind):
        lines.append(f"{len(behind) - len(shown)} more come after these.")
    if elsewhere:
        lines.append(f"{len(elsewhere)} more hold the same numbers as one that failed, on another backend.")
    lines += _refusals(found)
    return "\n".join(lines)


def _refusals(found: Found) -> list[str]:
    """What was out of the question, a line for each reason: an operator that a backend lacks stops all its cases."""
    cases: dict[str, list[str]] = {}
    for case, reason in found.refused.items():
        cases.setdefault(reason.rstrip("."), []).append(case.id)
    return [f"{some(names)}: {reason}." for reason, names in cases.items()]


def _row(found: Found, step: Step[Case], drop: Drop) -> tuple[str, str, str, str]:
    price = found.price_of(step.candidate)
    time = NULL if price.seconds is None else three_digits(1e3 * price.seconds)
    return step.candidate.id, three_digits(price.size / 1e6), time, _fate(found, step, drop)


def _fates(found: Found, drop: Drop) -> Iterator[tuple[str, str]]:
    for case, step in found.steps.items():
        if step.outcome != "chosen":
            yield case.id, _fate(found, step, drop)
    for case, reason in found.refused.items():
        yield case.id, reason


def _fate(found: Found, step: Step[Case], drop: Drop) -> str:
    """What a candidate would lose, or what is against it where it was not judged."""
    if step.loss is not None:
        return outcome_text(step, drop.unit)
    if step.reason != COMES_AFTER:
        return step.reason
    own, best = found.price_of(step.candidate), found.chosen.price
    if _is_fast(found, own) and _is_fast(found, best):
        return f"not judged: {own.seconds / best.seconds:.2f}× the time"
    if _is_fast(found, best):
        return "not judged: not shown to be faster than float"
    return f"not judged: {own.size / best.size:.2f}× the size"


def _is_fast(found: Found, price: Price) -> bool:
    return price.high < quickest_float(price for _, price in found.priced)


def _loses(loss: Loss, drop: Drop) -> str:
    return f"loses {loss.value:.2g}{drop.unit} of {drop.metric} ({loss.low:.2g} to {loss.high:.2g})"
