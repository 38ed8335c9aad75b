"""The table of language models that generate: how fast they read a prompt and go on with it, how often as float."""

from collections.abc import Callable, Sequence
from typing import Literal

from tabulate import tabulate

from reports.record import Record, case_id
from reports.tables import NULL, footnotes, order, speed_text, three_digits

Format = Literal["simple", "github"]

_HEADERS = ("generate", "tokens/s", "ms/token", "speed", "prompt/s", "speed ", "same", "cache MB", "evidence")
_LEFT = ("generate", "evidence")


def generation_text(record: Record) -> str:
    """``412 tokens/s  1.21× ±.02, prompt 8410 tokens/s  1.05× ±.01, 97.3 % as float, cache 5.3 MB``."""
    speed, prefill = record["speed"], record["prefill"]
    parts = [
        f"{_rate(speed)} tokens/s  {_ratio(speed)}" if speed.get("tokens_per_second") else "",
        f"prompt {_rate(prefill)} tokens/s  {_ratio(prefill)}" if prefill.get("tokens_per_second") else "",
        f"{_same(record)} % as float",
        f"cache {_cache(record)} MB",
    ]
    return ", ".join(part for part in parts if part) + f"  {record['evidence']}"


def generation_table(records: Sequence[Record], format: Format = "simple") -> str:
    """A row for each case of kind ``generate``, in the order of the other table."""
    records = sorted(records, key=order)
    rows = [[cell(record) for cell in _CELLS] for record in records]
    align = ["left" if header in _LEFT else "right" for header in _HEADERS]
    drawn = tabulate(rows, _HEADERS, tablefmt=format, disable_numparse=True, colalign=align)
    notes = [*_notes(records), *footnotes(records)[1:]]
    if format == "github":
        return drawn + "\n\n" + "\n".join(f"- {note}" for note in notes)
    return "\n".join([drawn, *notes])


def _notes(records: Sequence[Record]) -> list[str]:
    sizes = sorted({(one["generation"]["prompt_tokens"], one["generation"]["new_tokens"]) for one in records})
    lengths = " or ".join(f"{prompt} and {new}" for prompt, new in sizes)
    return [
        f"Batch 1, a prompt of {lengths} new tokens; speed: time of float / time of case, same backend, ± 95 %.",
        "same: share in percent of float's tokens that the case would have chosen too, after the same tokens.",
    ]


def _rate(speed: dict) -> str:
    rate = speed.get("tokens_per_second")
    return NULL if rate is None else three_digits(rate)


def _ratio(speed: dict) -> str:
    return speed_text({"speed": speed})


def _milliseconds(record: Record) -> str:
    p50 = record["speed"].get("p50")
    return NULL if p50 is None else three_digits(1000 * p50)


def _same(record: Record) -> str:
    agreement = record["fidelity"].get("agreement")
    return NULL if agreement is None else f"{100 * agreement:.1f}"


def _cache(record: Record) -> str:
    size = record["generation"].get("cache_bytes")
    return NULL if size is None else three_digits(size / 1e6)


_CELLS: tuple[Callable[[Record], str], ...] = (
    case_id,
    lambda record: _rate(record["speed"]),
    _milliseconds,
    speed_text,
    lambda record: _rate(record["prefill"]),
    lambda record: _ratio(record["prefill"]),
    _same,
    _cache,
    lambda record: record["evidence"],
)
