"""One sentence of advice: which of the measured cases to ship, in the figures that say so."""

import math
from collections import Counter
from collections.abc import Sequence

from reports.record import Record, case_id
from reports.tables import delta_text, is_share, metric_text, speed_text

# The loss a user is taken to accept: one point of a share, one per cent of another metric.
TOLERATED_LOSS = 0.01
TOLERATED_AGREEMENT = 0.95


def advise(records: Sequence[Record]) -> str:
    """Name the best case of the model with most rows, the largest of several such, in one sentence.

    Best is the shortest measured time among the cases whose loss of accuracy is, at the far end of its interval, under
    a point (without labels: that agree with float on at least 95 % of the samples). A case that was not measured, such
    as a simulated one, is only ever named for its size.
    """
    cases = [record for record in records if record["kind"] == "inference" and not _is_float(record)]
    if not cases:
        return "There is no quantized case to recommend."
    rows = Counter(record["case"]["model"] for record in cases)
    parameters = {record["case"]["model"]: record["model"].get("parameters") or 0 for record in cases}
    model = min(rows, key=lambda name: (-rows[name], -parameters[name], name))
    return f"{model}: {_about([record for record in cases if record['case']['model'] == model])}."


def _is_float(record: Record) -> bool:
    return record["case"]["bits"] == "fp32"


def _about(cases: Sequence[Record]) -> str:
    judged = [record for record in cases if not math.isnan(_loss(record))]
    keeping = [record for record in judged if _keeps(record)]
    faster = [record for record in keeping if _is_faster(record)]
    if faster:
        return _for_speed(min(faster, key=_time), cases)
    if keeping:
        return _for_size(keeping)
    if not judged:
        return f"the accuracy of no case is known ({len(cases)} tried), so none is recommended"
    closest = min(judged, key=lambda record: (_loss(record), _time(record)))
    samples = closest["accuracy"].get("n")
    tried = f"{len(judged)} tried on {samples} samples" if samples else f"{len(judged)} tried"
    shown = f"no case is shown to keep {_tolerance(closest)} ({tried})"
    return f"{shown}; the most accurate is {case_id(closest)}, {_accuracy(closest)}"


def _for_speed(best: Record, cases: Sequence[Record]) -> str:
    milliseconds = 1000 * best["speed"]["p50"]
    sentence = (
        f"ship {case_id(best)}, {speed_text(best)} the speed of float on {best['case']['backend']} "
        f"({milliseconds:.3g} ms), {_size(best)}{_accuracy(best)}"
    )
    floats = {
        record["case"]["backend"]: record["speed"]["baseline_p50"]
        for record in cases
        if record["evidence"] == "measured" and record["speed"].get("baseline_p50") is not None
    }
    quickest = min(floats, key=floats.__getitem__, default=None)
    if quickest is not None and floats[quickest] < best["speed"]["p50"]:
        return f"{sentence}; but float on {quickest} takes only {1000 * floats[quickest]:.3g} ms"
    return sentence


def _for_size(keeping: Sequence[Record]) -> str:
    no_speed = "was measured faster than float" if any(map(_is_timed, keeping)) else "has a measured speed"
    sentence = f"no case that keeps {_tolerance(keeping[0])} {no_speed}"
    sized = [record for record in keeping if record["size"].get("bytes") is not None]
    if not sized:
        return f"{sentence}, and none has a known size"
    smallest = min(sized, key=lambda record: record["size"]["bytes"])
    return f"{sentence}; for size alone take {case_id(smallest)}, {_size(smallest)}{_accuracy(smallest)}"


def _loss(record: Record) -> float:
    """What accuracy was lost, as a share of the tolerance's kind; NaN where nothing is known."""
    accuracy = record["accuracy"]
    if accuracy.get("delta") is not None:
        return _worsening(record, accuracy["delta"])
    agreement = record["fidelity"].get("agreement")
    return math.nan if agreement is None else 1 - agreement


def _keeps(record: Record) -> bool:
    accuracy = record["accuracy"]
    if accuracy.get("delta") is None:
        return record["fidelity"]["agreement"] >= TOLERATED_AGREEMENT
    bounds = accuracy.get("ci95")
    return bool(bounds) and max(_worsening(record, bound) for bound in bounds) < TOLERATED_LOSS


def _worsening(record: Record, delta: float) -> float:
    accuracy = record["accuracy"]
    worse = -delta if accuracy["better"] == "higher" else delta
    if is_share(record):
        return worse
    return worse / abs(accuracy["baseline"]) if accuracy.get("baseline") else math.copysign(math.inf, worse)


def _is_timed(record: Record) -> bool:
    return math.isfinite(_time(record))


def _time(record: Record) -> float:
    """Median seconds where the runtime itself ran quantized, else infinity."""
    p50 = record["speed"].get("p50")
    return p50 if record["evidence"] == "measured" and p50 is not None else math.inf


def _is_faster(record: Record) -> bool:
    """Whether the whole interval of the speed lies above one."""
    bounds = record["speed"].get("ci95")
    return _is_timed(record) and bool(bounds) and record["speed"].get("ratio") is not None and bounds[0] > 1


def _tolerance(record: Record) -> str:
    if record["accuracy"].get("delta") is None:
        return f"{100 * TOLERATED_AGREEMENT:.0f} % agreement with float"
    return f"{record['accuracy']['metric']} within {'a point' if is_share(record) else '1 %'} of float"


def _accuracy(record: Record) -> str:
    if record["accuracy"].get("delta") is None:
        return f"agreeing with float on {100 * record['fidelity']['agreement']:.1f} % of the samples"
    return f"{metric_text(record)} ({delta_text(record)}{' points' if is_share(record) else ''})"


def _size(record: Record) -> str:
    ratio = record["size"].get("ratio")
    return "" if ratio is None else f"{ratio:.2f} of its size, "
