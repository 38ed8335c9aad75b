"""Tables of what quantizers cost: each in time and memory, and other libraries' beside ours."""

from collections.abc import Sequence
from typing import Literal

from tabulate import tabulate

from reports.record import Record, case_id

Format = Literal["simple", "github"]

_COST_NOTES = (
    "s: processor time on one thread of one core; by clock: what passed meanwhile, on a machine that may be busy.",
    "peak: growth of memory over that of the loaded model and calibration data; ×: over the float model's size.",
)
_PEER_NOTES = (
    "s: processor time on one thread of one core; error: L2 distance of the outputs to float's, over theirs.",
    "ours: the fastest of our methods at no worse error than the peer's; ! where none is, and the closest stands.",
    "speed: time of peer / time of ours. Both quantize linear layers alone, of the same model with the same data.",
)


def cost_text(record: Record) -> str:
    """``3.21 s, peak 1.9×``; for a peer ``13.6 s, error .077; gptq 4.1 s, .070``."""
    cost = record["cost"]
    if record["kind"] == "quantize":
        return f"{_seconds(cost)} s, peak {_megabytes(cost)} MB, {_multiple(cost)} the float model"
    peer, ours = record["peer"], _answer(record)
    answer = f"{peer['answer']} {_seconds(ours)} s, {_error(ours)}"
    return f"{_seconds(cost)} s, error {_error(record['fidelity'])}; {answer}"


def cost_table(records: Sequence[Record], format: Format = "simple") -> str:
    """A row for each case of kind ``quantize``, by model and bits, the quickest first."""
    rows = [
        [case_id(record), *(show(record["cost"]) for show in (_seconds, _elapsed, _megabytes, _multiple))]
        for record in sorted(records, key=_cost_order)
    ]
    return _draw(["quantizer", "s", "by clock", "peak MB", "×"], rows, format, _COST_NOTES)


def peer_table(records: Sequence[Record], format: Format = "simple") -> str:
    """A row for each peer, with the one of our methods that answers it."""
    rows = [
        [
            record["case"]["method"],
            record["case"]["bits"],
            _seconds(record["cost"]),
            _error(record["fidelity"]),
            record["peer"]["answer"] + ("" if _is_answered(record) else " !"),
            _seconds(_answer(record)),
            _error(_answer(record)),
            f"{record['peer']['ratio']:.2g}×",
        ]
        for record in sorted(records, key=lambda record: (record["case"]["bits"], record["case"]["method"]))
    ]
    headers = ["peer", "bits", "s", "error", "ours", "s ", "error ", "speed"]
    libraries = sorted({record["peer"]["library"] for record in records})
    models = sorted({record["case"]["model"] for record in records})
    notes = [*_PEER_NOTES, f"Model {', '.join(models)}; {', '.join(libraries)}.", *_all_ours(records)]
    return _draw(headers, rows, format, notes)


def _all_ours(records: Sequence[Record]) -> list[str]:
    """One line for each bits word: what all our methods took, and their errors."""
    tried = {record["case"]["bits"]: record["peer"]["ours"] for record in records}
    return [
        f"All of ours, {bits}: "
        + ", ".join(f"{name} {_seconds(own)} s {_error(own)}" for name, own in sorted(ours.items()))
        + "."
        for bits, ours in sorted(tried.items())
    ]


def _answer(record: Record) -> dict:
    return record["peer"]["ours"][record["peer"]["answer"]]


def _is_answered(record: Record) -> bool:
    return _answer(record)["error"] <= record["fidelity"]["error"]


def _cost_order(record: Record) -> tuple:
    case = record["case"]
    return case["model"], case["bits"], record["cost"]["seconds"], case["method"]


def _seconds(cost: dict) -> str:
    return f"{cost['seconds']:.3g}"


def _elapsed(cost: dict) -> str:
    return f"{cost['elapsed_seconds']:.3g}"


def _megabytes(cost: dict) -> str:
    return f"{cost['peak_bytes'] / 1e6:.3g}"


def _multiple(cost: dict) -> str:
    times = cost["peak_bytes"] / cost["float_bytes"]
    return f"{times:.0f}×" if times >= 10 else f"{times:.1f}×"


def _error(section: dict) -> str:
    return f"{section['error']:.4f}".lstrip("0")


def _draw(headers: list[str], rows: list[list[str]], format: Format, notes: Sequence[str]) -> str:
    align = ["left" if header in ("quantizer", "peer", "bits", "ours") else "right" for header in headers]
    drawn = tabulate(rows, headers, tablefmt=format, disable_numparse=True, colalign=align)
    if format == "github":
        return drawn + "\n\n" + "\n".join(f"- {note}" for note in notes)
    return "\n".join([drawn, *notes])
