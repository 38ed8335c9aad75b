"""The map of sensitivities in the HTML report: what every format would cost every weight, and which one was chosen.

It is a table that is coloured as a heat map: it can be read by a screen reader, copied, and printed, as it is.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from reports.record import Record
from reports.tables import NULL

LEVELS = 8
"""How many shades there are, from the smallest error to the largest, by its logarithm."""


@dataclass(frozen=True)
class Shade:
    """One cell: its text, its shade from 0 on, and whether the format was chosen."""

    text: str
    level: int
    chosen: bool = False


@dataclass(frozen=True)
class HeatMap:
    """The cells of every weight, by name, under ``formats``; and what each format would cost if all had it."""

    criterion: str
    formats: list[str]
    weights: list[tuple[str, list[Shade]]]
    together: list[str]


def heat_map(record: Record) -> HeatMap | None:
    """Return the map of a record, or None where no method chose formats."""
    section, layers = record.get("sensitivity"), record.get("layers")
    if not section or not layers:
        return None
    formats = [str(word) for word in section["formats"]]
    errors = [[_number(error) for error in layer["errors"]] for layer in layers]
    known = [error for row in errors for error in row if error]
    low, high = (math.log(end(known)) if known else 0.0 for end in (min, max))

    def level(error: float | None) -> int:
        if not error:
            return 0
        return min(LEVELS - 1, int(LEVELS * (math.log(error) - low) / (high - low or 1.0)))

    weights = [
        (
            str(layer["name"]),
            [
                Shade(_text(error), level(error), word == layer.get("format"))
                for word, error in zip(formats, row, strict=True)
            ],
        )
        for layer, row in zip(layers, errors, strict=True)
    ]
    together = [_text(_total(row[column] for row in errors)) for column in range(len(formats))]
    return HeatMap(str(section["criterion"]), formats, weights, together)


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and value >= 0 else None


def _total(values: Iterable[float | None]) -> float | None:
    values = list(values)
    return None if None in values else sum(values)


def _text(error: float | None) -> str:
    """Return an error as 1.9e-8: in one notation all over the map, which spans many powers of ten."""
    if not error:
        return NULL if error is None else "0"
    digits, exponent = f"{error:.1e}".split("e")
    return f"{digits}e{int(exponent)}"
