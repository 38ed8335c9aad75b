"""One sentence of advice: which of the measured cases to ship, in the figures that say so."""

import math
from collections import Counter
from collections.abc import Sequence

from reports.figures import figure_text
from reports.recommendation import Candidate, assess, best, quantized_cases
from reports.record import Record
from reports.requirements import Requirements, drop_text, parse_requirements
from reports.tables import delta_text, is_share, metric_text, speed_text


def advise(records: Sequence[Record]) -> str:
    """Name the best case of the model with most rows, the largest of several such, in one sentence.

    Best is what :mod:`reports.recommendation` finds under the usual requirements.
    """
    cases = quantized_cases(records)
    if not cases:
        return "There is no quantized case to recommend."
    rows = Counter(record["case"]["model"] for record in cases)
    parameters = {record["case"]["model"]: record["model"].get("parameters") or 0 for record in cases}
    model = min(rows, key=lambda name: (-rows[name], -parameters[name], name))
    usual = parse_requirements()
    candidates = assess([record for record in cases if record["case"]["model"] == model], usual)
    return f"{model}: {in_words(candidates, usual)}."


def in_words(candidates: Sequence[Candidate], requirements: Requirements) -> str:
    """Which of these cases of one model to ship and why, as a sentence without its end."""
    chosen = best(candidates)
    if chosen is None:
        return _for_nothing(candidates, requirements)
    if chosen.is_faster:
        return _for_speed(chosen, candidates)
    return _for_size(chosen, [one for one in candidates if one.qualifies], requirements)


def _for_speed(chosen: Candidate, candidates: Sequence[Candidate]) -> str:
    record = chosen.record
    sentence = (
        f"ship {chosen.name}, {speed_text(record)} the speed of float on {record['case']['backend']} "
        f"({1000 * chosen.seconds:.3g} ms), {_size(record)}{_accuracy(record)}"
    )
    floats = {
        one.record["case"]["backend"]: one.record["speed"]["baseline_p50"]
        for one in candidates
        if one.record["evidence"] == "measured" and one.record["speed"].get("baseline_p50") is not None
    }
    quickest = min(floats, key=floats.__getitem__, default=None)
    if quickest is not None and floats[quickest] < chosen.seconds:
        return f"{sentence}; but float on {quickest} takes only {1000 * floats[quickest]:.3g} ms"
    return sentence


def _for_size(chosen: Candidate, qualified: Sequence[Candidate], requirements: Requirements) -> str:
    timed = any(math.isfinite(one.seconds) for one in qualified)
    no_speed = "was measured faster than float" if timed else "has a measured speed"
    sentence = f"no case that keeps {_conditions(qualified[0], requirements)} {no_speed}"
    if math.isinf(chosen.size):
        return f"{sentence}, and none has a known size"
    return f"{sentence}; for size alone take {chosen.name}, {_size(chosen.record)}{_accuracy(chosen.record)}"


def _for_nothing(candidates: Sequence[Candidate], requirements: Requirements) -> str:
    judged = [one for one in candidates if one.drop and one.drop.loss is not None]
    if not judged:
        reasons = Counter(obstacle.reason for one in candidates for obstacle in one.obstacles[:1])
        why = f": {reasons.most_common(1)[0][0]}" if any(reasons) else ""
        return f"the accuracy of no case is judged ({len(candidates)} tried), so none is recommended{why}"
    closest = min(judged, key=lambda one: (one.drop.loss, one.seconds))
    samples = f" on {closest.drop.samples} samples" if closest.drop.samples else ""
    shown = f"no case is shown to keep {_conditions(closest, requirements)} ({len(judged)} tried{samples})"
    counts = Counter(obstacle.word for one in candidates for obstacle in one.obstacles[:1])
    why = ", ".join(f"{count} {word}" for word, count in counts.most_common())
    return f"{shown}: {why}; the most accurate is {closest.name}, {_accuracy(closest.record)}"


def _conditions(candidate: Candidate, requirements: Requirements) -> str:
    """``accuracy within a point of float in at most 20 MB and 10 ms``."""
    record = candidate.record
    limits = (("size", requirements.max_size), ("time", requirements.max_latency))
    most = [figure_text(record, metric, limit) for metric, limit in limits if limit is not None]
    within = f" in at most {' and '.join(most)}" if most else ""
    return drop_text(candidate.drop.limit, record["accuracy"].get("metric") or "accuracy") + within


def _accuracy(record: Record) -> str:
    if record["accuracy"].get("delta") is None:
        return f"agreeing with float on {100 * record['fidelity']['agreement']:.1f} % of the samples"
    return f"{metric_text(record)} ({delta_text(record)}{' points' if is_share(record) else ''})"


def _size(record: Record) -> str:
    ratio = record["size"].get("ratio")
    return "" if ratio is None else f"{ratio:.2f} of its size, "
